"""Octavo."""

from __future__ import annotations

from typing import Any

from harness.engine import Engine

from contenders import Settings


class _Octavo:
    def __init__(self, settings: Settings) -> None:
        options: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 2**23} if settings.dry else {}
        options |= {"device": settings.device, "load_format": "dummy", "enable_prefix_caching": False}
        options |= {"max_model_len": settings.longest, "max_num_seqs": settings.sequences}
        self._engine = Engine(settings.model, **options)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        numbers = self._engine.generate(prompts, new_tokens)
        if any(len(self._engine.tokens[number]) != new_tokens for number in numbers):
            raise RuntimeError("a request has fewer tokens than were asked for")


def load(settings: Settings) -> _Octavo:
    """An engine with dummy weights."""
    return _Octavo(settings)
