"""The CPU kernels' layout of the page pool: ``LayerCache`` in ``csrc/cpu/ops.h`` draws it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.ops.base import KVLayer, KVShape
from octavo.ops.workspace import CPU_POOL_SPARE_BYTES, CPU_SLOT_TILE

CACHE_TYPES = {"float32": ("f32", 4), "bfloat16": ("bf16", 2), "int8": ("int8", 1)}
"""The kernels' name of a cache's type, and the bytes of a value."""


@dataclass(frozen=True, slots=True)
class CpuKVLayer(KVLayer):
    """Where one layer's keys and values lie.

    Attributes:
        addresses: of block 0's keys, values, key scales and value scales, and the bytes from a block to the next.
        cache_type: f32, bf16 or int8.
    """

    addresses: list[int]
    cache_type: str
    shape: KVShape


def cpu_kv_layers(pool: torch.Tensor, shape: KVShape) -> list[KVLayer]:
    """Cut the pool; see ``Ops.kv_layers``. A layer's part of a block: keys, values, and for int8 the scales of both."""
    if shape.block_size % CPU_SLOT_TILE:
        raise ValueError(f"the CPU kernels need blocks of a multiple of {CPU_SLOT_TILE} slots; got {shape.block_size}")
    if shape.dtype not in CACHE_TYPES or shape.head_dim % (4 if shape.dtype == "int8" else 2):
        raise ValueError(f"the CPU kernels have no {shape.dtype} cache for heads of {shape.head_dim}")
    cache_type, value_bytes = CACHE_TYPES[shape.dtype]
    values = shape.block_size * shape.num_kv_heads * shape.head_dim * value_bytes
    scales = shape.block_size * shape.num_kv_heads * 4 if shape.dtype == "int8" else 0
    layer_bytes = 2 * (values + scales)
    if pool.shape[1] != shape.num_layers * layer_bytes:
        raise ValueError(f"the pool's blocks have {pool.shape[1]} bytes; {shape.num_layers} layers of {layer_bytes} bytes are needed")
    behind = pool.untyped_storage().nbytes() - pool.storage_offset() - pool.numel()
    if behind < CPU_POOL_SPARE_BYTES:
        raise ValueError(f"the CPU kernels need {CPU_POOL_SPARE_BYTES} readable bytes behind the pool; there are {behind}")
    layers: list[KVLayer] = []
    for index in range(shape.num_layers):
        keys = pool.data_ptr() + index * layer_bytes
        addresses = [keys, keys + values, keys + 2 * values, keys + 2 * values + scales, pool.stride(0)]
        layers.append(CpuKVLayer(addresses, cache_type, shape))
    return layers
