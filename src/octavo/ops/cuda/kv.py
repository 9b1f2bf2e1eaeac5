"""The page pool as the GPU kernels see it.

A block holds [layers, keys and values, slots, Hk, D]: a layer's keys of a block are one contiguous run, a token's heads beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.ops.base import KVLayer, KVShape

CACHE_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
"""By ``KVShape.dtype``. Eight-bit values are rounded as they are, without a scale: e4m3 reaches 448, keys and values some tens."""


@dataclass(slots=True)
class CudaKVLayer(KVLayer):
    """One layer's part of the pool.

    Attributes:
        keys, values: [blocks, block size, Hk, D]; strided over the blocks of the pool, contiguous within one.
    """

    keys: torch.Tensor
    values: torch.Tensor


def cuda_kv_layers(pool: torch.Tensor, shape: KVShape) -> list[KVLayer]:
    """Views of a byte pool uint8 [blocks, bytes a block].

    Raises:
        ValueError: the blocks have another size than the layout asks for, or values of a type that there is not.
    """
    if shape.dtype not in CACHE_TYPES:
        raise ValueError(f"the GPU kernels have no {shape.dtype} cache")
    dtype = CACHE_TYPES[shape.dtype]
    sizes = (shape.num_layers, 2, shape.block_size, shape.num_kv_heads, shape.head_dim)
    block_bytes = torch.Size(sizes).numel() * dtype.itemsize
    if pool.shape[1] != block_bytes:
        raise ValueError(f"the pool's blocks have {pool.shape[1]} bytes; {list(sizes)} values of {dtype} take {block_bytes}")
    blocks = pool.view(dtype).view(-1, *sizes)
    return [CudaKVLayer(keys=blocks[:, layer, 0], values=blocks[:, layer, 1]) for layer in range(shape.num_layers)]
