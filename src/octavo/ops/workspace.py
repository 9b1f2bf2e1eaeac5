"""How much memory a backend's temporaries may take: the kernels keep to it and the memory plan counts it. Imports no torch."""

from __future__ import annotations

ATTENTION_GATHER_BYTES = 64 * 2**20
"""What the gathered keys and values of one group of decoding sequences may take; one long sequence takes what it needs."""

QUERY_TILE_ROWS = 32
"""Query rows of a prompt chunk computed at once: as many as torch's fused attention takes at a time on a CPU."""


def attention_workspace(context: int, num_heads: int, num_kv_heads: int, head_dim: int, value_bytes: int, softcap: bool) -> int:
    """Most bytes that attention's temporaries take at once in one layer.

    Args:
        context: the longest context in tokens.
        value_bytes: size of a value of the compute type.
        softcap: whether scores are capped.
    """
    # Gathered once in the pool's type and once laid out for the product.
    gathered = 2 * max(ATTENTION_GATHER_BYTES, 2 * context * num_kv_heads * head_dim * value_bytes)
    if not softcap:
        return gathered
    spelled_out = 2 * context * num_heads * head_dim * 4 + 3 * QUERY_TILE_ROWS * num_heads * context * 4
    return gathered + spelled_out
