"""A checkpoint small enough to make in a test: a two-layer Llama with a word tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

VOCAB = 64


def write_tiny_llama(folder: Path, tokenizer: bool = True) -> Path:
    """Write config, safetensors and, where asked for, tokenizer.json into ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    if tokenizer:
        model = {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(VOCAB)}, "unk_token": "t0"}
        content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder
