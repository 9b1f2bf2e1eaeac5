"""transformers' generate with a static cache; torch compiles the decoding step and captures it, which takes a minute or so."""

from __future__ import annotations

import torch
from harness.transformers_model import random_model

from contenders import Settings, Unsuited


class _Compiled:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        dtype = torch.float32 if settings.dry else torch.bfloat16
        self._model = random_model(settings.model, settings.device, dtype, "sdpa")

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        if len(prompts) != 1:
            raise Unsuited("one sequence only")
        ids = torch.tensor(prompts, device=self._settings.device)
        options = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "cache_implementation": "static"}
        made = self._model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        if made.shape[1] != len(prompts[0]) + new_tokens:
            raise RuntimeError("fewer tokens than were asked for")


def load(settings: Settings) -> _Compiled:
    """transformers' model."""
    return _Compiled(settings)
