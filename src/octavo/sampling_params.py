"""What a client may ask of sampling: one struct, checked when it is made, the same from HTTP to the sampler."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.structured_outputs import StructuredOutputs

MAX_N = 128
"""Most sequences one request may ask for (``n`` and ``best_of``)."""
MAX_STOP_STRINGS = 64
MAX_BIAS_ENTRIES = 1024
SEED_RANGE = (-(2**63), 2**64 - 1)


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How to turn logits into tokens for one request. Defaults are those of vLLM.

    Attributes:
        n: sequences to return.
        best_of: sequences to generate, of which the ``n`` with the highest mean log probability are returned.
        presence_penalty, frequency_penalty: in [-2, 2]; subtracted from logits of tokens generated so far.
        repetition_penalty: > 0; divides positive (multiplies negative) logits of tokens in the prompt or output.
        temperature: >= 0; 0 is greedy.
        top_p: in (0, 1]. top_k: 0 or -1 is off. min_p: in [0, 1].
        seed: makes the request's random numbers its own; None draws one.
        stop: strings that end a sequence. stop_token_ids: ids that do.
        bad_words: strings that must not be generated.
        ignore_eos: go on past the model's end-of-sequence token.
        max_tokens: most new tokens; None is what the context leaves. min_tokens: fewest before an end is allowed.
        logprobs: log probabilities of that many most likely tokens (0: of the sampled one only) at each position; -1: all.
        prompt_logprobs: the same for the prompt's tokens.
        detokenize: whether text is wanted at all. skip_special_tokens, spaces_between_special_tokens: how it is made.
        include_stop_str_in_output: keep the stop string at the text's end.
        logit_bias: token id -> value added to its logit, clamped to [-100, 100].
        allowed_token_ids: the only ids that may be generated.
        structured_outputs: the form that the output must have; None leaves it free.
        truncate_prompt_tokens: keep only that many last prompt tokens (-1: what the context allows); None never truncates.

    Raises:
        InvalidRequestError: naming the field and its range.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    bad_words: list[str] = []
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputs | None = None
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        self.stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        self.stop_token_ids = list(self.stop_token_ids or [])
        self.bad_words = [self.bad_words] if isinstance(self.bad_words, str) else list(self.bad_words or [])
        self.logit_bias = dict(self.logit_bias or {})
        self._check_numbers()
        self._check_lists()

    @property
    def num_sequences(self) -> int:
        """Sequences that are generated, of which ``n`` are returned."""
        return self.best_of if self.best_of is not None else self.n

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def _check_numbers(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        if self.best_of is not None:
            _integer("best_of", self.best_of, self.n, MAX_N)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, low_open=True)
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _integer("seed", self.seed, *SEED_RANGE)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens}).", "min_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _integer(name, value, -1, 2**31 - 1)
        if self.truncate_prompt_tokens is not None:
            _integer("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, 2**31 - 1)
            if self.truncate_prompt_tokens == 0:
                raise InvalidRequestError("truncate_prompt_tokens must be -1 or at least 1; got 0.", "truncate_prompt_tokens")

    def _check_lists(self) -> None:
        for name in ("stop", "bad_words"):
            values = getattr(self, name)
            if len(values) > MAX_STOP_STRINGS:
                raise InvalidRequestError(f"{name} may hold at most {MAX_STOP_STRINGS} strings; got {len(values)}.", name)
            if not all(isinstance(value, str) and value for value in values):
                raise InvalidRequestError(f"{name} must be non-empty strings.", name)
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop strings need detokenize=True.", "stop")
        if any(not _is_integer(token) for token in self.stop_token_ids):
            raise InvalidRequestError("stop_token_ids must be integers.", "stop_token_ids")
        if len(self.logit_bias) > MAX_BIAS_ENTRIES:
            raise InvalidRequestError(f"logit_bias may hold at most {MAX_BIAS_ENTRIES} entries; got {len(self.logit_bias)}.", "logit_bias")
        for token, bias in self.logit_bias.items():
            if not _is_integer(token):
                raise InvalidRequestError(f"logit_bias keys must be token ids; got {token!r}.", "logit_bias")
            _number("logit_bias", bias, -math.inf, math.inf)
        self.logit_bias = {token: min(100.0, max(-100.0, float(bias))) for token, bias in self.logit_bias.items()}
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            kind = type(self.structured_outputs).__name__
            raise InvalidRequestError(f"structured_outputs must be a StructuredOutputs; got {kind}.", "structured_outputs")
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise InvalidRequestError("allowed_token_ids must not be empty.", "allowed_token_ids")
            if any(not _is_integer(token) for token in self.allowed_token_ids):
                raise InvalidRequestError("allowed_token_ids must be integers.", "allowed_token_ids")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if not _is_integer(value) or not low <= value <= high:
        raise InvalidRequestError(f"{name} must be an integer in [{low}, {high}]; got {value!r}.", name)


def _number(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (low_open and value == low):
        closing = "inf)" if high == math.inf else f"{high:g}]"
        opening = f"({low:g}" if low_open or low == -math.inf else f"[{low:g}"
        raise InvalidRequestError(f"{name} must be a finite number in {opening}, {closing}; got {value!r}.", name)
