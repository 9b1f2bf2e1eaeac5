"""Octavo: a server and library for large language models.

Importing this package imports nothing heavy: the public names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM
    from octavo.frontend.outputs import CompletionOutput, RequestOutput
    from octavo.llm import LLM
    from octavo.sampling_params import SamplingParams
    from octavo.structured_outputs import StructuredOutputs

__version__ = "0.1.0"

_HOMES = {
    "LLM": "octavo.llm",
    "AsyncLLM": "octavo.async_llm",
    "SamplingParams": "octavo.sampling_params",
    "StructuredOutputs": "octavo.structured_outputs",
    "RequestOutput": "octavo.frontend.outputs",
    "CompletionOutput": "octavo.frontend.outputs",
}

__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "RequestOutput", "SamplingParams", "StructuredOutputs", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        if name == "LLM":  # computes in this process; torch is loaded with it
            from octavo import env

            env.limit_openmp_spinning()
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
