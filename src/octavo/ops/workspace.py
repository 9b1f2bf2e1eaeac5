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


CUDA_PARTIAL_BYTES = 128 * 2**20
"""What the partial results of decoding sequences' splits may take on a GPU at once; one sequence alone takes what it needs."""


CPU_SLOT_TILE = 16
"""Slots whose keys lie side by side in the C++ kernels' cache: a block holds a multiple of it."""

CPU_POOL_SPARE_BYTES = 64
"""Of readable memory behind the pool: the C++ kernels load whole vectors, the last of which may reach past the last block."""

CPU_PIECE_ROWS = 512
"""Rows that the C++ kernels' recorded pass computes at once: enough to use a weight well once it is in the cache, few enough for
activations to stay there."""

_CPU_THREAD_BYTES = 512 * 2**10
"""Of a thread's scratch, whatever the widths: unpacked weights, or attention's queries, scores and outputs (heads of up to 256)."""

_CPU_THREAD_VALUE_BYTES = 16 * 4 + 4 + 32 * 2
"""Of it for each value of a product's widest row: sixteen rows and one in float32, a panel of 32 columns in bfloat16."""


def cpu_workspace(tokens: int, hidden_size: int, intermediate_size: int, qkv_size: int, threads: int) -> int:
    """Most bytes that the C++ kernels' recorded pass takes for a step.

    Args:
        tokens: most rows of a step.
        qkv_size: columns of a row's queries, keys and values.
        threads: of the team; each has scratch of its own.
    """
    buffers = 3 * hidden_size + 2 * qkv_size + 3 * intermediate_size
    operands = max(hidden_size, intermediate_size, qkv_size)
    scratch = threads * (_CPU_THREAD_BYTES + _CPU_THREAD_VALUE_BYTES * operands)
    return 4 * (2 * tokens * hidden_size + CPU_PIECE_ROWS * (buffers + operands)) + scratch


def shared_slot_floats(hidden_size: int, vocab_size: int) -> int:
    """Floats of a rank's slot in the memory that ranks on a host share (``csrc/cpu/shared_group.h``); each has two."""
    return max(CPU_PIECE_ROWS * hidden_size, vocab_size)


CUDA_RUNTIME_BYTES = 1024 * 2**20
"""Of a GPU's memory beside the plan's other parts: cuBLAS's workspaces, compiled kernels, recorded graphs, and what torch's allocator
keeps in pieces too small to use."""

CUDA_LOGITS_ROWS = 256
"""Rows whose logits exist at once on a GPU: the head is read once for so many."""


FLASHINFER_FLOAT_BYTES = 128 * 2**20
"""What FlashInfer is given for partial results: what it recommends."""

FLASHINFER_INT_BYTES = 8 * 2**20
"""What it is given for a step's plan, for each kind of layer: what it takes itself."""


def flashinfer_workspace(sequences: int, blocks: int, kinds: int) -> int:
    """Bytes of a GPU's memory that FlashInfer takes beside a step's rows.

    Args:
        sequences: most of a step.
        blocks: most of a sequence.
        kinds: of layers.
    """
    # A wrapper that is being made has a plan of its own for a moment. Recorded steps keep the pages of all sequences, four bytes each, in
    # buffers that are rounded up to a power of two, the smaller ones of which together take no more than the largest.
    return FLASHINFER_FLOAT_BYTES + kinds * (2 * FLASHINFER_INT_BYTES + 4 * 2 * 2 * sequences * blocks)


CUDA_SPELLED_OUT_BYTES = 128 * 2**20
"""What rows of a quantised weight may take at once in the compute type, where many rows are multiplied with them."""


def cuda_workspace(tokens: int, hidden_size: int, intermediate_size: int, qkv_size: int, value_bytes: int, quantised: bool = False) -> int:
    """Most bytes that the GPU kernels' temporaries take for a step, logits aside.

    Args:
        tokens: most rows of a step.
        qkv_size: columns of a row's queries, keys and values.
        value_bytes: size of a value of the compute type.
        quantised: whether some weights are.
    """
    # The residual, in float32 and as it comes from the embedding; then what lives at once in a layer's attention or feed-forward part.
    row = 2 * 4 * hidden_size + value_bytes * (2 * hidden_size + max(3 * intermediate_size, 2 * qkv_size))
    if quantised:  # rows become float8 numbers; their product with such weights is bfloat16 before it is the compute type
        row += max(hidden_size, intermediate_size) + (4 * intermediate_size if value_bytes == 2 else 0)
    # Decoding steps and chunks do not share memory: the graphs' pool is their own.
    return 2 * tokens * row + 2 * CUDA_PARTIAL_BYTES + (CUDA_SPELLED_OUT_BYTES if quantised else 0)
