"""From a request's fields to ``SamplingParams``: the client's values over the model's defaults, within the server's limits."""

from __future__ import annotations

from typing import Any

from octavo.errors import InvalidRequestError
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
    values = {"max_tokens": default_max_tokens, **model_defaults, **given, "logprobs": logprobs}
    values |= {"structured_outputs": structured_outputs(body), **overrides}
    for name in ("logprobs", "prompt_logprobs"):
        _check_limit(name, values.get(name), max_logprobs)
    return SamplingParams(**values)


def _check_limit(name: str, value: int | None, limit: int) -> None:
    if value is None or limit == -1 or 0 <= value <= limit:
        return
    raise InvalidRequestError(f"{name} must be an integer in [0, {limit}], this server's limit (--max-logprobs); got {value}.", name)
