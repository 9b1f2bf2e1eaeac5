"""vLLM's module of this name: the engine's options as one object."""

from __future__ import annotations

from typing import Any


class EngineArgs:
    """The options of an engine, checked when the engine is made.

    Args:
        model: a directory, a GGUF file or a Hugging Face repository id; Octavo's embedded default when omitted.
        options: the engine's flags of ``octavo serve``, with underscores.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self.model = model
        self.options = options


class AsyncEngineArgs(EngineArgs):
    """The same, for ``AsyncLLMEngine``."""
