"""What a request gives back: the public result types of the Python API, and the deltas that streams are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.engine.messages import RequestTimes


@dataclass(slots=True)
class Logprob:
    """One candidate token at one position.

    Attributes:
        logprob: natural logarithm of its probability before temperature and filters.
        rank: 1 is the most likely.
        decoded_token: its text alone (may hold U+FFFD where it is part of a character).
    """

    logprob: float
    rank: int
    decoded_token: str


PositionLogprobs = dict[int, Logprob]
"""Candidates at one position by token id; the first entry is the token that stands there."""


@dataclass(slots=True)
class CompletionOutput:
    """One finished (or growing) sequence of a request."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestOutput:
    """A request's result.

    Attributes:
        prompt: the text the model saw, None for token-id prompts.
        prompt_logprobs: one entry a prompt token; the first is None.
        num_cached_tokens: prompt tokens found in the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    times: RequestTimes | None = None


@dataclass(slots=True)
class SequenceDelta:
    """What is new of one sequence since the last delta.

    Attributes:
        text: new text; nothing past a stop, no part of a character, nothing that may yet turn out to be a stop string.
        token_ids, logprobs: the tokens behind it (they may run ahead of the text, never past the stop).
        finish_reason: stop, length, abort or error, in the sequence's last delta.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestDelta:
    """One step's news of a request.

    Attributes:
        prompt_logprobs: comes once, with or before the first text.
        num_discarded_tokens: tokens of ``best_of``'s sequences that are not returned; they count in the usage all the same.
    """

    request_id: str
    sequences: list[SequenceDelta] = field(default_factory=list)
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = False
    times: RequestTimes | None = None
    num_discarded_tokens: int = 0
