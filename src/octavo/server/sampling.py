"""From a request's fields to ``SamplingParams``: the client's values over the model's defaults, within the server's limits."""

from __future__ import annotations

from typing import Any

from octavo.errors import InvalidRequestError
from octavo.frontend.beam_types import check_beam_search
from octavo.sampling_params import SamplingParams
from octavo.server.protocol import SamplingFields
from octavo.server.structured_fields import structured_outputs

_COPIED = tuple(name for name in SamplingParams.__struct_fields__ if name in SamplingFields.model_fields and name != "structured_outputs")


def sampling_params(
    body: SamplingFields,
    model_defaults: dict[str, Any],
    *,
    default_max_tokens: int | None,
    logprobs: int | None,
    max_logprobs: int,
    **overrides: Any,
) -> SamplingParams:
    """Build and check the sampling parameters of a request.

    Args:
        body: the request; absent fields take the model's default, else vLLM's.
        model_defaults: from the model's generation config.
        default_max_tokens: the dialect's default; None is what the context leaves.
        logprobs: log probabilities wanted at each position of the answer.
        max_logprobs: the server's limit on those; -1 is none.
        overrides: values that the dialect decides.

    Raises:
        InvalidRequestError: naming the field and its range.
    """
    given = {name: value for name in _COPIED if (value := getattr(body, name)) is not None}
    if body.use_beam_search:  # the model's defaults say how to draw, and a beam search draws nothing
        model_defaults = {name: model_defaults[name] for name in ("max_tokens",) if name in model_defaults}
    values = {"max_tokens": default_max_tokens, **model_defaults, **given, "logprobs": logprobs}
    values |= {"structured_outputs": structured_outputs(body), **overrides}
    for name in ("logprobs", "prompt_logprobs"):
        _check_limit(name, values.get(name), max_logprobs)
    return SamplingParams(**values)


def beam_length_penalty(body: SamplingFields, params: SamplingParams) -> float | None:
    """The length penalty of a beam search; None where none is asked for.

    Raises:
        InvalidRequestError: naming a field that a beam search cannot honour.
    """
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    if body.use_beam_search:
        check_beam_search(params, penalty)
        return penalty
    if penalty != 1.0:
        raise InvalidRequestError(
            "length_penalty is only for beam searches: set use_beam_search to true, or leave it out.", "length_penalty"
        )
    return None


def _check_limit(name: str, value: int | None, limit: int) -> None:
    if value is None or limit == -1 or 0 <= value <= limit:
        return
    raise InvalidRequestError(f"{name} must be an integer in [0, {limit}], this server's limit (--max-logprobs); got {value}.", name)
