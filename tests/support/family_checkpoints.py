"""Tiny random checkpoints of every family, written by transformers, and transformers' own logits as the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

LENGTH = 97
"""Tokens of the longest sequence the tests run: beyond every original limit and window below."""

_SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _llama(**changes: Any) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**(_SHAPE | {"tie_word_embeddings": False} | changes))


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0} | parameters


def _longrope(dim: int, original: int) -> dict[str, Any]:
    short = [1.0 + 0.01 * index for index in range(dim // 2)]
    long = [1.0 + 0.5 * index for index in range(dim // 2)]
    return _rope("longrope", short_factor=short, long_factor=long, original_max_position_embeddings=original)


def _phi3(original: int, **changes: Any) -> transformers.Phi3Config:
    rope = _longrope(8, original) | {"partial_rotary_factor": 0.5}
    shape = _SHAPE | {"hidden_size": 64, "tie_word_embeddings": False, "original_max_position_embeddings": original}
    return transformers.Phi3Config(**(shape | {"rope_parameters": rope} | changes))


def _gemma2() -> transformers.Gemma2Config:
    return transformers.Gemma2Config(
        **(_SHAPE | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 20, "num_hidden_layers": 4}),
        attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0,
    )


def _gemma3() -> transformers.Gemma3TextConfig:
    local, full = _rope("default"), _rope("linear", factor=4.0) | {"rope_theta": 100000.0}
    return transformers.Gemma3TextConfig(
        **(_SHAPE | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 20, "num_hidden_layers": 4}),
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": local, "full_attention": full},
    )


_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "llama-tied": lambda: _llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama-biases": lambda: _llama(attention_bias=True, mlp_bias=True, num_key_value_heads=4),
    "llama-wide-heads": lambda: _llama(head_dim=32),
    "llama3-scaling": lambda: _llama(rope_parameters=_rope("llama3", **_LLAMA3)),
    "linear-scaling": lambda: _llama(rope_parameters=_rope("linear", factor=3.0)),
    "dynamic-scaling": lambda: _llama(rope_parameters=_rope("dynamic", factor=4.0), max_position_embeddings=48),
    "dynamic-scaling-unreached": lambda: _llama(rope_parameters=_rope("dynamic", factor=4.0)),
    "yarn": lambda: _llama(rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "yarn-mscale": lambda: _llama(
        rope_parameters=_rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=64,
            mscale=0.8,
            mscale_all_dim=0.4,
            beta_fast=16.0,
            beta_slow=2.0,
            truncate=False,
        )
    ),
    "yarn-attention-factor": lambda: _llama(
        rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.3)
    ),
    "longrope": lambda: _llama(rope_parameters=_longrope(12, 48)),
    "mistral": lambda: transformers.MistralConfig(**_SHAPE, sliding_window=20, tie_word_embeddings=False),
    "qwen2": lambda: transformers.Qwen2Config(**_SHAPE, tie_word_embeddings=True),
    "qwen2-window": lambda: transformers.Qwen2Config(**_SHAPE, use_sliding_window=True, sliding_window=20, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**_SHAPE, head_dim=16),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3-long": lambda: _phi3(48),
    "phi3-short": lambda: _phi3(128),
    "phi3-window": lambda: _phi3(128, sliding_window=20),
}


def save_checkpoint(name: str, directory: Path, layers: int | None = None) -> PreTrainedModel:
    """Write the checkpoint ``name`` in float32, with as many layers as it has or ``layers``, and return transformers' model of it.

    Weights are drawn so that every part matters: products keep the scale of their input, norms and biases differ from their start.
    """
    config = CONFIGS[name]()
    config.dtype = "float32"
    if layers is not None:
        config.num_hidden_layers = layers
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = (kinds * layers)[:layers]
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * (1.5 / parameter.shape[1] ** 0.5))
            else:
                parameter.add_(noise * (0.5 if key.endswith("bias") else 0.2))
    model.save_pretrained(directory)
    return model


@torch.inference_mode()
def oracle_logits(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    """transformers' float32 logits [tokens, V] of one sequence in one pass, without a cache."""
    output: torch.Tensor = model(torch.tensor([token_ids]), use_cache=False).logits[0].float()
    return output
