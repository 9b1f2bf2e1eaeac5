"""One step's plan and its result: all that passes from the scheduler to the executor and the runner, and back.

A step may be planned before the result of the one before it is known. Its plan then counts tokens that are still to be sampled.

Messages are differences: a sequence that a worker does not know yet comes whole (``NewSequence``), one it knows comes as what
changed (``ScheduledSequence``). A worker keeps token ids and block tables between steps and appends the tokens it samples.
A preempted sequence is dropped from the worker and later comes whole again.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from octavo.sampling_params import SamplingParams


class NewSequence(msgspec.Struct, array_like=True):
    """A sequence the worker does not know.

    Attributes:
        token_ids: prompt and any output so far.
        seed: random key of this sequence (request seed and index already mixed); draws are keyed by (seed, position).
        suppress_until_min: ids that may not be sampled before ``params.min_tokens`` outputs (end-of-sequence and stop ids).
    """

    seq_id: int
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    suppress_until_min: list[int] = []
    bad_word_ids: list[list[int]] = []


class ScheduledSequence(msgspec.Struct, array_like=True):
    """One sequence's share of the step.

    Attributes:
        num_computed: tokens already in the pool; the step computes ``num_computed .. num_computed + num_tokens - 1``.
        num_tokens: at least 1.
        table_start, block_ids: from index ``table_start`` on, the block table now reads ``block_ids`` (empty: unchanged).
        samples: whether the last computed token's logits are sampled (it is the last token there is).
    """

    seq_id: int
    num_computed: int
    num_tokens: int
    table_start: int
    block_ids: list[int]
    samples: bool


class Batch(msgspec.Struct, array_like=True):
    """One step's plan.

    Attributes:
        dropped: sequences (finished, aborted or preempted) that the worker forgets before it does anything else.
        new: sequences it learns next; each is also in ``scheduled``.
        block_copies: (source, destination) block ids, copied before the forward pass (copy-on-write).
        scheduled: in batch order; at most one entry a sequence.
    """

    step: int
    dropped: list[int]
    new: list[NewSequence]
    block_copies: list[tuple[int, int]]
    scheduled: list[ScheduledSequence]

    @property
    def num_tokens(self) -> int:
        return sum(entry.num_tokens for entry in self.scheduled)


class PendingStep:
    """A step that was launched; the device may still be at it.

    Args:
        result: waits for the step and says what came of it. Steps are asked in the order of their launches, each once.
        ready: whether ``result`` would not wait for the device.
    """

    __slots__ = ("ready", "result")

    def __init__(self, result: Callable[[], StepResult], ready: Callable[[], bool] = lambda: True) -> None:
        self.result = result
        self.ready = ready


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log probabilities at one position: the chosen token first, then the most likely ones in falling order.

    Attributes:
        token_ids, logprobs: equally long; entry 0 is the token that was sampled (or stands in the prompt).
        rank: the chosen token's rank, 1 being the most likely.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


class SampledToken(msgspec.Struct, array_like=True):
    seq_id: int
    token_id: int
    logprobs: TokenLogprobs | None = None


class StepResult(msgspec.Struct, array_like=True):
    """What a step produced.

    Attributes:
        sampled: one entry for each scheduled sequence with ``samples``, in batch order.
        prompt_logprobs: for sequences that ask for them, those of the prompt positions the step computed: computing token
            ``i`` yields the log probabilities of prompt token ``i + 1``; the last prompt token yields none.
        failed: sequences whose logits no token can be drawn from (NaN, infinite), or whose grammar failed; they are not in ``sampled``.
        reasons: what the client is to be told of a failed sequence, where there is something to tell.
        complete: sequences whose form (``structured_outputs``) is fulfilled with the token they sampled: they end.
    """

    sampled: list[SampledToken]
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    failed: list[int] = []
    reasons: dict[int, str] = {}
    complete: list[int] = []
