"""Weights in every packed format of the C++ kernels, and their exact products with what the kernels round the rows to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cpu_kernels import U, drawn

from octavo.ops.base import QUANT_BLOCK, BlockWeight, WeightPart
from octavo.ops.cpu.backend import CpuOps

FORMATS = ["f32", "bf16", "u8_row", "u8_block", "u8_block_min", "u4_block", "u4_block_min"]
OPERAND = Path(__file__).parents[2] / "csrc" / "cpu" / "operand.h"
WIDE_ABOVE = float(re.findall(r"WIDE_ABOVE = ([0-9.]+)f;", OPERAND.read_text())[0])
"""Blocks whose largest magnitude is so many times the mean one have a second byte."""

NEXT_TO_NOTHING = 1e-36
"""Blocks of values no larger count as zeros."""


def compute_type(packed: str) -> torch.dtype:
    """Of the kernels that make this format of a dense weight; any runs the quantised ones."""
    return torch.float32 if packed == "f32" else torch.bfloat16


def drawn_weight(packed: str, rows: int, columns: int, seed: int = 1) -> WeightPart:
    """A weight that is packed in a format, with scales and minima of both signs and several magnitudes."""
    if packed in ("f32", "bf16"):
        return drawn(rows, columns, seed=seed, dtype=compute_type(packed))
    random = np.random.default_rng(seed)
    bits, blocks = int(packed[1]), columns // QUANT_BLOCK
    scales = random.standard_normal((rows, blocks)) * 10.0 ** random.integers(-3, 0, (rows, blocks))
    minima = random.standard_normal((rows, blocks)).astype(np.float16) if packed.endswith("min") else None
    values = random.integers(0, 256, (rows, blocks, QUANT_BLOCK * bits // 8), dtype=np.uint8)
    if packed == "u8_row":
        return BlockWeight(8, values.view(np.int8), 0, scales[:, :1].astype(np.float32))
    zero = 0 if minima is not None else 8 if bits == 4 else 16
    return BlockWeight(bits, values, zero, scales.astype(np.float16), minima)


def integers(weight: BlockWeight) -> torch.Tensor:
    """q - zero: float64 [N, blocks, 32]."""
    q = weight.values if weight.bits == 8 else np.concatenate([weight.values & 15, weight.values >> 4], axis=2)
    return torch.from_numpy(q.astype(np.float64) - weight.zero)


def spelled_out(weight: WeightPart) -> torch.Tensor:
    """The numbers that a weight stands for: float64 [N, K], exact."""
    if not isinstance(weight, BlockWeight):
        return weight.double()
    values = integers(weight) * torch.from_numpy(weight.scales.astype(np.float64)).unsqueeze(2)
    if weight.minima is not None:
        values += torch.from_numpy(weight.minima.astype(np.float64)).unsqueeze(2)
    return values.flatten(1)


def drawn_rows(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of several magnitudes; in every third a block of 32 towers over the others (it becomes a wide one), in every fifth one is 0."""
    x, blocks = drawn(count, columns, seed=seed), -(-columns // QUANT_BLOCK)
    for row in range(count):
        if row % 3 == 1:
            x[row, 13 * row % blocks * QUANT_BLOCK] = 30.0
        if row % 5 == 2:
            x[row, 7 * row % blocks * QUANT_BLOCK :][:QUANT_BLOCK] = 0.0
        x[row] *= (1.0, 1e-6, 1e3, 1e6)[row % 4]
    return x


@dataclass
class RowBytes:
    """Rows as the products with quantised weights take them (``csrc/cpu/operand.h``).

    Attributes:
        values: what the bytes stand for, exactly: float64 [T, blocks, 32].
        step: most that a value of a block is off: float64 [T, blocks].
        wide: which blocks have a second byte.
    """

    values: torch.Tensor
    step: torch.Tensor
    wide: torch.Tensor


def row_bytes(x: torch.Tensor) -> RowBytes:
    """Round rows: a block's largest magnitude is 127 steps; a wide block, whose largest is WIDE_ABOVE times the mean one, has 256ths.

    A value is off by half a step; in a wide block by half of a 256th, or by one where 128 of them are left, which no byte holds.
    """
    blocks = x.view(len(x), -1, QUANT_BLOCK)
    largest = blocks.abs().amax(2, keepdim=True)
    scaled = blocks * torch.where(largest > NEXT_TO_NOTHING, torch.full_like(largest, 127.0) / largest, 0.0)
    high = scaled.round()
    wide = largest > WIDE_ABOVE * largest.double().mean(1, keepdim=True)
    low = torch.where(wide, ((scaled - high) * 256).clamp(max=127).round(), 0.0)
    scale = (largest / 127).double()
    # The quotient and the product that make `scaled` are rounded: 127 times U, twice.
    step = scale * (torch.where(wide, 1 / 256, 1 / 2) + 255 * U)
    return RowBytes(scale * (high.double() + low.double() / 256), step.squeeze(2), wide.squeeze(2))


def row_words(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as 16-bit whole numbers of a step (``csrc/cpu/operand.h``): float64 [T, K], and the step [T, 1]."""
    largest = x.abs().amax(1, keepdim=True)
    step = largest.double() / 32512
    return (
        x * torch.where(largest > 256 * NEXT_TO_NOTHING, torch.full_like(largest, 32512.0) / largest, 0.0)
    ).round().double() * step, step


def looked_up(weight: BlockWeight) -> torch.Tensor:
    """What 4-bit weights become where they are looked up: float64 [N, K] of numbers that bfloat16 has."""
    return spelled_out(weight).float().bfloat16().double()


def product(x: torch.Tensor, weight: WeightPart, ops: CpuOps) -> tuple[torch.Tensor, torch.Tensor]:
    """x W^T of the rounded rows, exact to double, and most that sums in float32 may be off, each [T, N].

    Dense: K additions and a multiplication. In blocks: whole numbers are exact; a block's sum is rounded, multiplied by the product of two
    scales and added, and so is its minimum times the sum of the values (two roundings of its own): twice the blocks and 8 more.
    Looked up: as dense ones of bfloat16. Rows of 16 bits: two whole sums become one float, times two scales.
    """
    if isinstance(weight, BlockWeight) and weight.bits == 4 and ops.wide_activations:
        rows, matrix = x.bfloat16().double(), looked_up(weight).T
        return rows @ matrix, (x.shape[1] + 2) * U * (rows.abs() @ matrix.abs())
    if not isinstance(weight, BlockWeight):
        rows, matrix = x.to(weight.dtype).double(), weight.double().T
        return rows @ matrix, (x.shape[1] + 2) * U * (rows.abs() @ matrix.abs())
    if weight.scales.dtype == np.float32 and ops.wide_activations:
        rows, step = row_words(x)
        matrix = spelled_out(weight).T
        return rows @ matrix, 8 * U * (rows.abs() @ matrix.abs() + 128 * step * matrix.abs().sum(0))
    rows = row_bytes(x).values
    scales = torch.from_numpy(weight.scales.astype(np.float64))
    terms = torch.einsum("tbi,nbi->tnb", rows, integers(weight)) * scales
    exact, magnitude = terms.sum(2), terms.abs().sum(2)
    if weight.minima is not None:
        terms = torch.einsum("tbi,nb->tnb", rows, torch.from_numpy(weight.minima.astype(np.float64)))
        exact, magnitude = exact + terms.sum(2), magnitude + terms.abs().sum(2)
    return exact, (2 * rows.shape[1] + 8) * U * magnitude
