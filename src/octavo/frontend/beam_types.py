"""What ``LLM.beam_search`` takes and gives back, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from octavo.errors import InvalidRequestError
from octavo.frontend.outputs import PositionLogprobs
from octavo.sampling_params import MAX_N, SamplingParams

MAX_LENGTH_PENALTY = 100.0
"""Largest magnitude of a length penalty."""

_HONOURED = frozenset({
    "n", "max_tokens", "temperature", "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "logprobs", "prompt_logprobs",
    "detokenize", "shown_special_tokens", "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens",
})  # fmt: skip
"""Sampling parameters that mean something to a beam search."""


def check_beam_search(params: SamplingParams, length_penalty: float) -> None:
    """Refuse what a beam search cannot honour: it draws nothing, and ranks beams by the model's own distribution.

    Raises:
        InvalidRequestError: naming the field.
    """
    number = isinstance(length_penalty, int | float) and not isinstance(length_penalty, bool)
    if not number or not abs(length_penalty) <= MAX_LENGTH_PENALTY:
        raise InvalidRequestError(
            f"length_penalty must be a number in [-{MAX_LENGTH_PENALTY:g}, {MAX_LENGTH_PENALTY:g}]; got {length_penalty!r}.",
            "length_penalty",
        )
    if params.temperature not in (0.0, 1.0):
        raise InvalidRequestError(
            f"temperature must be 0, 1 or left out in a beam search: it ranks by the model's own probabilities; got {params.temperature}.",
            "temperature",
        )
    if params.structured_outputs is not None:  # which several fields ask for, so it is not the one to be named
        raise InvalidRequestError(
            "A beam search cannot hold its beams to a form (structured output, or a call that tool_choice requires); leave it out.",
            "use_beam_search",
        )
    harmless = msgspec.structs.asdict(SamplingParams()) | {"best_of": params.n}
    for name in SamplingParams.__struct_fields__:
        value = getattr(params, name)
        if name not in _HONOURED and value is not None and value != harmless[name] and (name, value) != ("top_k", -1):
            raise InvalidRequestError(f"{name} cannot be combined with a beam search; leave it out.", name)


class BeamSearchParams(msgspec.Struct, forbid_unknown_fields=True):
    """How to search.

    Attributes:
        beam_width: beams to keep and to return, in [1, 128].
        max_tokens: most tokens of a beam, at least 1.
        ignore_eos: go on past the model's end token.
        temperature: 0 or 1; beams are ranked by the model's own distribution, whichever it is.
        length_penalty: a beam's score is its log probability over its length to this power, in [-100, 100].
        include_stop_str_in_output: keep the end token in ``tokens`` and ``text``.

    Raises:
        InvalidRequestError: naming the field and its range.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        try:
            check_beam_search(self.sampling_params(), self.length_penalty)
        except InvalidRequestError as error:
            if error.param == "n":
                raise InvalidRequestError(
                    f"beam_width must be an integer in [1, {MAX_N}]; got {self.beam_width!r}.", "beam_width"
                ) from None
            raise

    def sampling_params(self) -> SamplingParams:
        """The same in the words of ``SamplingParams``, ``n`` being the width."""
        return SamplingParams(
            n=self.beam_width,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            include_stop_str_in_output=self.include_stop_str_in_output,
            logprobs=0,
        )


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam.

    Attributes:
        tokens: the prompt's and the beam's.
        text: theirs.
        cum_logprob: the sum of the log probabilities of the beam's tokens, the end token included.
        logprobs: one entry for each of the beam's tokens, the end token included.
        finish_reason: stop or length. stop_reason: None, or the stop token's id.
    """

    tokens: list[int]
    text: str
    cum_logprob: float
    logprobs: list[PositionLogprobs]
    finish_reason: str
    stop_reason: int | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """One prompt's beams, best first."""

    sequences: list[BeamSearchSequence]
