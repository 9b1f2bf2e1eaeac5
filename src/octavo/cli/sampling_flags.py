"""The sampling flags of ``octavo generate`` and ``octavo chat``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from octavo.cli.flags import collect
from octavo.config import option
from octavo.errors import ConfigError, InvalidRequestError
from octavo.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """How tokens are chosen; what is left out is the model's own default (its generation config)."""

    max_tokens: int | None = option(None, "most tokens of an answer; what the context leaves when omitted", kind=int)
    temperature: float | None = option(None, "0 always takes the likeliest token", kind=float)
    top_p: float | None = option(None, "choose among the likeliest tokens that make up this probability", kind=float)
    top_k: int | None = option(None, "choose among that many likeliest tokens", kind=int)
    min_p: float | None = option(None, "leave out tokens less likely than this share of the likeliest", kind=float)
    repetition_penalty: float | None = option(None, "above 1 makes tokens that were used less likely", kind=float)
    stop: list[str] = option([], "texts that end an answer")


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling fields the user set, by ``SamplingParams`` field, checked.

    Raises:
        ConfigError: a value out of range.
    """
    flags = collect(args, SamplingFlags)
    fields = {name: getattr(flags, name) for name in SamplingFlags.__dataclass_fields__}
    given = {name: value for name, value in fields.items() if value is not None and value != []}
    try:
        SamplingParams(**given)
    except InvalidRequestError as error:
        raise ConfigError(f"--{(error.param or '').replace('_', '-')}: {error}") from None
    return given
