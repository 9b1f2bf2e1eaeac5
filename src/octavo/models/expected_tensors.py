"""The tensors a model of a given shape consists of: their Hugging Face names and their shapes."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.models.config import ModelConfig
from octavo.models.families import BY_ARCHITECTURE


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by name. Matrices are [out_features, in_features]; tied output weights are not listed."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        for name, shape in _layer(config):
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def _layer(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    family = BY_ARCHITECTURE[config.architecture]
    hidden = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    norms = ["input_layernorm", "post_attention_layernorm"]
    if family.gemma:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for name in norms:
        yield f"{name}.weight", (hidden,)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (config.head_dim,)
        yield "self_attn.k_norm.weight", (config.head_dim,)
    if family.merged:
        yield from _linear("self_attn.qkv_proj", queries + 2 * keys, hidden, config.qkv_bias)
        yield from _linear("mlp.gate_up_proj", 2 * config.intermediate_size, hidden, config.mlp_bias)
    else:
        for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from _linear(f"self_attn.{name}", width, hidden, config.qkv_bias)
        for name in ("gate_proj", "up_proj"):
            yield from _linear(f"mlp.{name}", config.intermediate_size, hidden, config.mlp_bias)
    yield from _linear("self_attn.o_proj", hidden, queries, config.output_bias)
    yield from _linear("mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias)


def _linear(name: str, out_features: int, in_features: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out_features, in_features)
    if bias:
        yield f"{name}.bias", (out_features,)
