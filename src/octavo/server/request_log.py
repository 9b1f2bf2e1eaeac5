"""One line of figures for each request that has ended (``--enable-log-requests``): ``key=value`` pairs, never the request's text."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from octavo.log import get_logger
from octavo.sampling_params import SamplingParams
from octavo.server.request_metrics import RequestFollower

logger = get_logger(__name__)

_PLAIN = re.compile(r"[\w./:@+,-]+", re.ASCII)


def log_end(route: str, model: str, params: SamplingParams, length_penalty: float | None, follower: RequestFollower) -> None:
    """Log a request's end; see ``line``."""
    logger.info("%s", line(route, model, params, length_penalty, follower))


def line(route: str, model: str, params: SamplingParams, length_penalty: float | None, follower: RequestFollower) -> str:
    """What is known of a request once it has ended. Spans that it did not live to see are left out.

    Args:
        route: the path it came by.
        model: the served name.
        params: as the client asked.
        length_penalty: of a beam search, else None.
        follower: which has seen its end.
    """
    figures: dict[str, Any] = {
        "request": follower.request_id,
        "route": route,
        "model": model,
        "finish": follower.reason,
        "prompt_tokens": follower.prompt_tokens,
        "cached_tokens": follower.cached,
        "generated_tokens": follower.generated,
    }
    spans = follower.spans
    if spans is not None:
        figures |= {"queue_ms": _ms(spans.queue), "prefill_ms": _ms(spans.prefill), "decode_ms": _ms(spans.decode)}
    figures |= {"total_ms": _ms(follower.seconds), "preemptions": follower.preemptions}
    figures |= summary(params)
    if length_penalty is not None:
        figures["beam_search"] = f"length_penalty:{length_penalty:g}"
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in figures.items())


def summary(params: SamplingParams) -> dict[str, Any]:
    """The parameters that differ from their defaults: numbers and switches as they are, of all else how many entries it has."""
    defaults = msgspec.structs.asdict(SamplingParams())
    found: dict[str, Any] = {}
    for name, default in defaults.items():
        value = getattr(params, name)
        if name == "max_tokens" or value != default:
            found[name] = value if isinstance(value, bool | int | float | None) else _size(value)
    return found


def _size(value: Any) -> str:
    return f"[{len(value)}]" if isinstance(value, list | dict) else "given"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def _quoted(text: str) -> str:
    """As it is, or as a JSON string where it could be taken for something else: a client's id must not forge a line."""
    return text if _PLAIN.fullmatch(text) or re.fullmatch(r"\[\d+\]", text) else json.dumps(text)
