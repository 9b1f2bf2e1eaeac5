"""Models to run: the shape of Llama 3 8B, whole or cut down, with random weights; no tokenizer, since engines take token ids."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LLAMA3_8B = Path(__file__).resolve().parents[1] / "llama3_8b"

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What a rehearsal on the CPU makes of it."""


def write_shape(folder: Path, **changes: Any) -> Path:
    """Write Llama 3 8B's config.json with some values changed into ``folder``, which is made; dummy weights do for the rest."""
    shape = json.loads((LLAMA3_8B / "config.json").read_text()) | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape, indent=2))
    return folder


def random_prompts(count: int, length: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random token ids, none an end of sequence (Llama 3's special tokens are the last 256, others' the first few)."""
    draw = random.Random(f"{seed} {count} {length}")
    return [[draw.randrange(8, vocab_size - 256) for _ in range(length)] for _ in range(count)]
