"""vLLM's module of this name: the engine in a process of its own."""

from __future__ import annotations

from octavo import AsyncLLM
from vllm.engine.arg_utils import EngineArgs


class AsyncLLMEngine(AsyncLLM):
    """``octavo.AsyncLLM``, with vLLM's way of making one."""

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> AsyncLLMEngine:
        """Make an engine.

        Raises:
            TypeError: an option that does not exist.
            octavo.errors.ConfigError: one that cannot be honoured.
        """
        return cls(engine_args.model, **engine_args.options)
