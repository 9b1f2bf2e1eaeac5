"""A model whose shares are equal: the shape of a small Llama with 16 query heads over 8 key/value heads, weights made at random."""

from __future__ import annotations

import json
from pathlib import Path

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}


def write_shape(folder: Path) -> None:
    """Write what ``load_format="dummy"`` needs."""
    (folder / "config.json").write_text(json.dumps(SHAPE))
