"""Octavo under the import name ``vllm`` (the distribution ``octavo-vllm``): vLLM's names, each of them Octavo's own."""

from __future__ import annotations

import importlib.metadata
from typing import Any


def _refuse_beside_the_real_one() -> None:
    """
    Raises:
        ImportError: the distribution ``vllm`` is installed too, and these files lie over its own.
    """
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"octavo-vllm lies over an installed vLLM {version}. Keep one: `pip uninstall vllm octavo-vllm`, then install the one you want. "
        "Octavo itself needs neither: `from octavo import LLM`, `octavo serve`.",
        name=__name__,
    )


_refuse_beside_the_real_one()

_HOMES = {
    "LLM": ("octavo", "LLM"),
    "SamplingParams": ("octavo", "SamplingParams"),
    "RequestOutput": ("octavo", "RequestOutput"),
    "CompletionOutput": ("octavo", "CompletionOutput"),
    "AsyncLLMEngine": ("vllm.engine.async_llm_engine", "AsyncLLMEngine"),
    "AsyncEngineArgs": ("vllm.engine.arg_utils", "AsyncEngineArgs"),
    "EngineArgs": ("vllm.engine.arg_utils", "EngineArgs"),
    "__version__": ("octavo", "__version__"),
}

__all__ = ["LLM", "AsyncEngineArgs", "AsyncLLMEngine", "CompletionOutput", "EngineArgs", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Loaded when first used, as Octavo's own names are."""
    if name not in _HOMES:
        raise AttributeError(f"Octavo, which stands in for vLLM here, has no {name!r}")
    module, own = _HOMES[name]
    return getattr(importlib.import_module(module), own)


def __dir__() -> list[str]:
    return sorted(__all__)
