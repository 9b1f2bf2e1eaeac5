"""A request and its sequences, as the engine process sees them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from octavo.sampling_params import SamplingParams


class FinishReason(enum.StrEnum):
    """Why a sequence ended. ``STOP``: an end-of-sequence or stop token (or, found by the frontend, a stop string)."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class SequenceStatus(enum.Enum):
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


@dataclass(slots=True, eq=False)
class Request:
    """What a client asked, tokenised and checked.

    Attributes:
        request_id: unique among live requests.
        prompt_token_ids: at least one token.
        params: sampling parameters; ``max_tokens`` is resolved (never None).
        seed: the request's random key, drawn by the frontend where the client brought none.
        eos_token_ids: tokens that end a sequence unless ``params.ignore_eos``.
        bad_word_ids: ``params.bad_words``, tokenised.
        priority: smaller runs earlier under the priority policy.
        cache_salt: extra key of the prefix cache; requests share pages only with their own salt.
        arrival_time: seconds on ``time.monotonic``'s clock.
        sequences: ``params.num_sequences`` of them; the first computes the prompt for all.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    cache_salt: str = ""
    arrival_time: float = 0.0
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return all(sequence.status is SequenceStatus.FINISHED for sequence in self.sequences)

    @property
    def num_preemptions(self) -> int:
        return sum(sequence.num_preemptions for sequence in self.sequences)

    @property
    def suppressed(self) -> set[int]:
        """Ids that may not be sampled before ``min_tokens`` outputs: those that would end a sequence."""
        params = self.params
        if params.min_tokens == 0:
            return set()
        return {*params.stop_token_ids, *(() if params.ignore_eos else self.eos_token_ids)}

    @property
    def simple(self) -> bool:
        """Whether a token depends on its logits, temperature, filters and seed alone, and is all that is asked for.

        Where the device samples, the host need not know such a sequence's last token before it plans the next.
        """
        params = self.params
        penalised = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0 or params.repetition_penalty != 1.0
        constrained = bool(params.logit_bias or self.bad_word_ids or self.suppressed) or params.allowed_token_ids is not None
        scored = params.logprobs is not None or params.prompt_logprobs is not None
        return not penalised and not constrained and not scored and params.structured_outputs is None


@dataclass(slots=True, eq=False)
class Sequence:
    """One stream of tokens.

    Attributes:
        seq_id: unique in the engine's life.
        index: 0 .. n-1 within the request.
        token_ids: prompt and output tokens known so far.
        num_computed: tokens whose keys and values are in the pool once all steps that were planned are done.
        num_in_flight: those of them whose step's result is not in yet.
        num_pending: tokens that steps in flight sample: they follow ``token_ids``, and only their number is known.
        num_cached_tokens: prompt tokens that the prefix cache (or a fork) saved at first scheduling.
        num_preemptions: how often its pages were taken from it.
    """

    seq_id: int
    request: Request
    index: int
    token_ids: list[int]
    num_computed: int = 0
    num_in_flight: int = 0
    num_pending: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_to_compute(self) -> int:
        """Tokens to catch up, the pending ones included."""
        return len(self.token_ids) + self.num_pending - self.num_computed


def sequence_seed(seed: int, index: int) -> int:
    """The random key of a request's sequence ``index``: an unsigned 64-bit integer, the same on every run and machine.

    ``mix(mix(seed) ^ index)`` with the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014). The finaliser is a bijection, so the sequences of a request never share a key.

    Args:
        seed: the request's seed; taken modulo 2**64.
        index: 0 .. n-1.
    """
    return _mix64(_mix64(seed) ^ index)


def _mix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)
