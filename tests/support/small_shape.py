"""A model's shape small enough to count by hand."""

from __future__ import annotations

from octavo.models.config import ModelConfig, RotaryConfig

SMALL_SHAPE = ModelConfig(
    architecture="LlamaForCausalLM",
    model_type="llama",
    vocab_size=100,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    max_position_embeddings=64,
    norm_eps=1e-5,
    rotary=RotaryConfig(2),
    windows=(None, None),
    attention_scale=1.0,
)
