"""transformers with a static cache; the decoding step is captured as a CUDA graph once and replayed, so that its launches cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness.transformers_model import random_model

from contenders import Settings, Unsuited


class _Static:
    def __init__(self, settings: Settings) -> None:
        from transformers import StaticCache

        self._device = torch.device(settings.device)
        dtype = torch.float32 if settings.dry else torch.bfloat16
        self._model = random_model(settings.model, settings.device, dtype, "sdpa")
        self._cache: Any = StaticCache(config=self._model.config, max_cache_len=settings.longest)
        self._token = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        self._replay: Callable[[], None] | None = None

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        if len(prompts) != 1:
            raise Unsuited("one sequence only")
        self._cache.reset()
        ids = torch.tensor(prompts, device=self._device)
        self._token.copy_(self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, True))
        made = [self._token.clone()]
        for _ in range(new_tokens - 1):
            self._step()
            made.append(self._token.clone())
        if len(torch.cat(made).tolist()) != new_tokens:
            raise RuntimeError("fewer tokens than were asked for")

    def _step(self) -> None:
        if self._replay is None:
            self._replay = self._captured() if self._device.type == "cuda" else self._decode
        self._replay()

    def _captured(self) -> Callable[[], None]:
        """The step as a graph. Trying it out first moves the cache on, which is put back; capturing runs nothing."""
        lengths = [layer.cumulative_length.clone() for layer in self._cache.layers]
        token = self._token.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._decode()
        torch.cuda.current_stream().wait_stream(stream)
        for layer, length in zip(self._cache.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)
        self._token.copy_(token)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._decode()
        return graph.replay

    def _decode(self) -> None:
        output = self._model(self._token, past_key_values=self._cache, use_cache=True)
        self._token.copy_(output.logits[:, -1].argmax(-1, keepdim=True))


def load(settings: Settings) -> _Static:
    """transformers' model and a cache for one sequence."""
    return _Static(settings)
