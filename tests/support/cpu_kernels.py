"""What tests of the C++ kernels share: the instruction sets, outputs between guards, a poisoned page pool, bounds of rounding errors."""

from __future__ import annotations

import random
from typing import cast

import pytest
import torch
from paged_steps import attention_batch

from octavo.ops import _cpu
from octavo.ops.base import AttentionBatch, KVLayer, KVShape
from octavo.ops.cpu.backend import WIDE_KERNELS, CpuOps
from octavo.ops.workspace import CPU_POOL_SPARE_BYTES

EIGHT_BITS = " 8"
"""Ends the name of a set whose rows are to have 8 bits where they meet quantised weights, though it can with 16."""

KERNELS = [name + end for name in _cpu.kernel_sets() for end in (["", EIGHT_BITS] if name == WIDE_KERNELS else [""])]
"""The instruction sets that run here, best first; the last is scalar."""

every_set = pytest.mark.parametrize("kernels", KERNELS)

ALIKE = [name for name in KERNELS if name != "scalar"]
"""Sets whose fma rounds once, so that they give the same bits wherever bf16 dot products in hardware have no part."""

ALIKE_BF16 = [name for name in ALIKE if not name.startswith(("amx", "avx512_bf16"))]
"""Of these, the ones without such dot products."""

ALIKE_8_BITS = [name for name in ALIKE if name != WIDE_KERNELS]
"""The ones whose rows have 8 bits where they meet quantised weights."""

U = 2.0**-24
"""Most that rounding to float32 is off, relative to the result."""

TANH = 6 * U
"""Most that the kernels' tanh is off: an exponential of about 2 U, a quotient and a difference of numbers up to 1."""

U_BF16 = 2.0**-8
"""The same for bfloat16."""

SIGMAS = 6.0
"""Roundings that are at most e each, independent and of no sign, sum to more than 6 sqrt(sum of e^2) once in 30 million (Hoeffding)."""

_GUARD = 19


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def worst(actual: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> float:
    """The largest difference as a share of what each element may be off; infinite where an element is no number."""
    assert actual.shape == exact.shape
    share = (actual.double() - exact).abs() / (bound + 1e-36)
    return share.nan_to_num(torch.inf).max().item()


def cpu_ops(dtype: torch.dtype, threads: int, kernels: str) -> CpuOps:
    """Kernels by one of their names in KERNELS."""
    return CpuOps(dtype, threads, *_split(kernels))


def _split(kernels: str) -> tuple[str, int | None]:
    """Set and bits."""
    return kernels.removesuffix(EIGHT_BITS), 8 if kernels.endswith(EIGHT_BITS) else None


class GuardedOps(CpuOps):
    """Kernels whose outputs are NaN before they are written, and lie between guards that nothing may write."""

    def __init__(self, dtype: torch.dtype, threads: int, kernels: str) -> None:
        super().__init__(dtype, threads, *_split(kernels))
        self._outputs: list[tuple[torch.Tensor, int]] = []

    def _new(self, rows: int, width: int) -> torch.Tensor:
        if self._tape is not None:
            return super()._new(rows, width)
        whole = torch.full((rows + 2, width + _GUARD), torch.nan)
        self._outputs.append((whole, width))
        return whole[1:-1, :width]

    def assert_guards(self) -> None:
        """Nothing has been written beside the outputs since the last call."""
        for whole, width in self._outputs:
            assert whole[0].isnan().all()
            assert whole[-1].isnan().all()
            assert whole[:, width:].isnan().all()
        self._outputs.clear()


class Pool:
    """A page pool of three layers of which tests use the middle one; all is NaN (int8: scales are) until it is written."""

    LAYERS, LAYER = 3, 1

    def __init__(self, ops: CpuOps, dtype: str, kv_heads: int, head_dim: int, block_size: int, blocks: int) -> None:
        self.shape = KVShape(self.LAYERS, kv_heads, head_dim, block_size, dtype)
        value_bytes = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
        self.value_part = block_size * kv_heads * head_dim * value_bytes
        self.scale_part = block_size * kv_heads * 4 if dtype == "int8" else 0
        block_bytes = self.LAYERS * 2 * (self.value_part + self.scale_part)
        memory = torch.full((blocks * block_bytes + CPU_POOL_SPARE_BYTES,), 255, dtype=torch.uint8)
        self.bytes = memory[: blocks * block_bytes].view(blocks, block_bytes)
        self.kv: KVLayer = ops.kv_layers(self.bytes, self.shape)[self.LAYER]

    def layer_bytes(self, layer: int) -> torch.Tensor:
        size = 2 * (self.value_part + self.scale_part)
        return self.bytes[:, layer * size : (layer + 1) * size]

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as ``ops.h`` draws them, spelled out: float64 [blocks, block size, kv heads, head size]."""
        shape, own = self.shape, self.layer_bytes(self.LAYER)
        blocks, tiles, heads, dim = len(own), shape.block_size // 16, shape.num_kv_heads, shape.head_dim
        keys, values, scales = torch.split(own, [self.value_part, self.value_part, 2 * self.scale_part], dim=1)
        together = {"float32": 1, "bfloat16": 2, "int8": 4}[shape.dtype]
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}[shape.dtype]
        keys = keys.contiguous().view(dtype).view(blocks, heads, tiles, dim // together, 16, together).double()
        keys = keys.permute(0, 2, 4, 1, 3, 5).reshape(blocks, shape.block_size, heads, dim)
        if shape.dtype == "bfloat16":
            pairs = values.contiguous().view(dtype).view(blocks, heads, shape.block_size // 2, dim, 2)
            return keys, pairs.permute(0, 2, 4, 1, 3).reshape(blocks, shape.block_size, heads, dim).double()
        if shape.dtype == "float32":
            return keys, values.contiguous().view(dtype).view(blocks, heads, shape.block_size, dim).transpose(1, 2).double()
        both = scales.contiguous().view(torch.float32).view(blocks, 2, heads, shape.block_size, 1).transpose(2, 3).double()
        signed = values.contiguous().view(torch.int8).view(blocks, heads, shape.block_size, dim).transpose(1, 2)
        return (keys - 128) * both[:, 0], signed.double() * both[:, 1]


def scattered_tables(contexts: list[int], block_size: int, blocks: int, seed: int = 9) -> list[list[int]]:
    """Blocks for each sequence, in no order."""
    free = list(range(blocks))
    random.Random(seed).shuffle(free)
    return [[free.pop() for _ in range(-(-context // block_size))] for context in contexts]


def scattered_step(cached: list[int], counts: list[int], block_size: int, blocks: int) -> AttentionBatch:
    contexts = [begin + count for begin, count in zip(cached, counts, strict=True)]
    return attention_batch(scattered_tables(contexts, block_size, blocks), cached, counts, block_size)


def no_rotation(positions: int, head_dim: int) -> torch.Tensor:
    """A rotary table that leaves everything as it is."""
    return torch.cat((torch.ones(positions, head_dim // 2), torch.zeros(positions, head_dim // 2)), dim=1)


def write_cache(ops: CpuOps, pool: Pool, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch) -> None:
    """Put the rows' keys and values [T, kv heads, head size] where the step says."""
    table = no_rotation(int(batch.positions.max()) + 1, pool.shape.head_dim)
    ops.rotary_and_cache(keys.clone(), keys, values, table, batch, pool.kv)


def run_alone(ops: CpuOps, name: str, rows: int, **arguments: object) -> None:
    """One operation of ``_cpu.Program``, for arguments that no method of ``Ops`` gives."""
    program = _cpu.Program(ops.team, ops.kernels, rows)
    getattr(program, name)(**arguments)
    program.run(rows, **cast("dict[str, int]", {}))
