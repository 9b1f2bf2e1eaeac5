"""vLLM's module of this name: how a request samples, or searches, and the form its output must have."""

from __future__ import annotations

from typing import Any

import octavo

_NAMES = {
    "SamplingParams": "SamplingParams",
    "BeamSearchParams": "BeamSearchParams",
    "StructuredOutputsParams": "StructuredOutputs",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"Octavo, which stands in for vLLM here, has no {name!r}")
    return getattr(octavo, _NAMES[name])
