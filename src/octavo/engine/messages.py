"""Every struct that crosses the border between the server process and the engine process, as msgpack over ZeroMQ."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.batch import TokenLogprobs
from octavo.sampling_params import SamplingParams
from octavo.vocabulary import Vocabulary


class Seat(msgspec.Struct, frozen=True):
    """An engine's place among the server's.

    Attributes:
        number: in [0, count).
        memory_bytes: what is free of the host's memory for it; None where it is alone and asks itself.
    """

    number: int = 0
    count: int = 1
    memory_bytes: int | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return "the engine" if self.count == 1 else f"engine {self.number}"


ALONE = Seat()
"""The one engine there is."""


# ---- server -> engine ------------------------------------------------------------------------------------------------


class AddRequest(msgspec.Struct, tag="add", array_like=True):
    """A checked, tokenised request; see ``octavo.request.Request`` for the fields.

    The first that has ``params.structured_outputs`` comes after a ``Vocabulary``.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    eos_token_ids: list[int] = []
    bad_word_ids: list[list[int]] = []
    priority: int = 0
    cache_salt: str = ""
    arrival_time: float = 0.0


class AbortSequences(msgspec.Struct, tag="abort", array_like=True):
    """End sequences now and free their pages.

    Attributes:
        request_id: the request.
        indices: which of its sequences (a stop string ends one); empty is all.
    """

    request_id: str
    indices: list[int] = []


class Call(msgspec.Struct, tag="call", array_like=True):
    """A question outside the stream: ``reset_prefix_cache`` or ``audit``."""

    call_id: int
    method: str


class Shutdown(msgspec.Struct, tag="shutdown", array_like=True):
    """Leave the step loop and exit; sent when nothing runs any more, or to stop at once."""


EngineInput = AddRequest | AbortSequences | Call | Shutdown | Vocabulary

# ---- engine -> server ------------------------------------------------------------------------------------------------


class Loading(msgspec.Struct, tag="loading", array_like=True):
    """Progress before ``Ready``. ``fraction`` is in [0, 1], or -1 where unknown."""

    phase: str
    fraction: float = -1.0


class Alive(msgspec.Struct, tag="alive", array_like=True):
    """The engine's process runs, whatever it is at; said again and again."""


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """The engine takes requests.

    Attributes:
        max_model_len: the resolved context limit in tokens.
        max_num_seqs: the resolved sequence budget.
        num_blocks, block_size: the pool.
        plan: the memory plan in bytes by name, as printed at start.
    """

    max_model_len: int
    max_num_seqs: int
    num_blocks: int
    block_size: int
    plan: dict[str, int]


class Failed(msgspec.Struct, tag="failed", array_like=True):
    """The engine could not start, or a step raised; the process exits after it. ``message`` is for the user."""

    message: str


class RequestTimes(msgspec.Struct, array_like=True):
    """A request's life in seconds on ``time.monotonic``'s clock (one clock for all processes of a host)."""

    arrival: float
    first_scheduled: float
    first_token: float
    finished: float
    num_preemptions: int = 0


class SequenceUpdate(msgspec.Struct, array_like=True):
    """What a step added to one sequence.

    Attributes:
        token_ids: new output tokens (the stop token included, where one ended the sequence).
        logprobs: one entry a new token, where asked for.
        prompt_logprobs: one entry a prompt token from the second on (index 0 only, at the end of the prompt), where asked for.
        finish_reason: set with the sequence's last update: stop, length, abort or error.
        stop_reason: the stop token's id where one of ``stop_token_ids`` ended it.
        times: set with the request's last update (that of its last sequence).
    """

    request_id: str
    index: int
    token_ids: list[int]
    num_cached_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    times: RequestTimes | None = None


class EngineStats(msgspec.Struct, array_like=True):
    """The engine's state after a step; counters count from the engine's start.

    Attributes:
        kv_usage: share of blocks owned by live sequences.
        kv_waste: share of the owned blocks' slots that hold no token.
        preemptions: by reason.
        step_tokens: tokens of the steps (mostly one) whose results came in since the last report; step_seconds: how long that took.
        rss_bytes: resident memory of the engine process (-1 where unknown).
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    kv_waste: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: dict[str, int] = {}
    step_tokens: int = 0
    step_seconds: float = 0.0
    steps: int = 0
    rss_bytes: int = -1


class StepOutput(msgspec.Struct, tag="step", array_like=True):
    """All updates of one step in one message.

    Attributes:
        started: requests that were scheduled for the first time in this step (they left the waiting queue).
    """

    updates: list[SequenceUpdate]
    started: list[str]
    stats: EngineStats


class CallResult(msgspec.Struct, tag="result", array_like=True):
    """The answer to a ``Call``; ``error`` is empty on success."""

    call_id: int
    value: Any = None
    error: str = ""


EngineOutput = Loading | Alive | Ready | Failed | StepOutput | CallResult
