"""transformers' own continuous batching, at its own defaults."""

from __future__ import annotations

from typing import Any

import torch
from harness.transformers_model import random_model

from contenders import Settings


class _Batching:
    def __init__(self, settings: Settings) -> None:
        import transformers

        dtype = torch.float32 if settings.dry else torch.bfloat16
        self._model = random_model(settings.model, settings.device, dtype, "sdpa")
        self._sizes: dict[str, Any] = {"num_blocks": 32, "max_batch_tokens": 64} if settings.dry else {}
        settings_of_theirs: Any = transformers.GenerationConfig
        self._config = settings_of_theirs(do_sample=False, eos_token_id=-1, pad_token_id=0)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        from transformers import ContinuousBatchingConfig

        sizes = ContinuousBatchingConfig(**self._sizes, allow_block_sharing=False)
        self._config.max_new_tokens = new_tokens
        made = self._model.generate_batch(prompts, generation_config=self._config, continuous_batching_config=sizes)
        short = [len(entry.generated_tokens) for entry in made.values() if len(entry.generated_tokens) != new_tokens]
        if len(made) != len(prompts) or short:
            raise RuntimeError(f"{len(made)} of {len(prompts)} prompts were answered, {len(short)} not with {new_tokens} tokens")


def load(settings: Settings) -> _Batching:
    """transformers' model."""
    return _Batching(settings)
