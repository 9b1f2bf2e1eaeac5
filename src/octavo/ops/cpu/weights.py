"""Weights for the CPU kernels: which packed format a checkpoint's parts get, and packing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from octavo.ops import _cpu
from octavo.ops.base import BlockWeight, WeightPart


@dataclass(frozen=True, slots=True)
class PackedPart:
    """Rows of a stacked weight that share a format, hence one product.

    Attributes:
        first: its first output feature in the stacked weight.
    """

    weight: _cpu.PackedWeight
    first: int
    out_features: int


def pack_parts(
    parts: Sequence[WeightPart], bias: torch.Tensor | None, gated: bool, dtype: torch.dtype, team: _cpu.Team, wide_activations: bool
) -> list[PackedPart]:
    """Pack stacked parts: neighbours of one format as one weight.

    Args:
        bias: [N] or None.
        wide_activations: whether rows have 16 bits where they meet quantised weights (``CpuOps``).
        gated: whether gate and up shall lie side by side; parts of different formats cannot, and come as two weights.
    """
    packed: list[PackedPart] = []
    first = 0
    for layout, group in groupby(parts, key=lambda part: _layout(part, dtype, wide_activations)):
        members = list(group)
        rows = sum(part.shape[0] for part in members)
        pair = gated and len(members) == len(parts)
        weight = _cpu.PackedWeight(layout[0], rows, layout[2], layout[1], pair)
        filled = 0
        for part in members:
            _fill(weight, part, filled, team)
            filled += part.shape[0]
        if bias is not None:
            values = bias[first : first + rows].float().contiguous()
            weight.set_bias(values.data_ptr())
        packed.append(PackedPart(weight, first, rows))
        first += rows
    return packed


def _layout(part: WeightPart, dtype: torch.dtype, wide_activations: bool) -> tuple[str, int, int]:
    """(packed format, zero of its bytes, K) of a part."""
    if not isinstance(part, BlockWeight):
        return ("f32" if dtype == torch.float32 else "bf16"), 0, part.shape[1]
    if part.scales.shape[1] == 1 and part.scales.dtype.itemsize == 4:
        return ("u8_wide" if wide_activations else "u8_row"), 128, part.shape[1]
    name = "u4_table" if part.bits == 4 and wide_activations else f"u{part.bits}_block"
    if part.minima is not None:
        return f"{name}_min", 0, part.shape[1]
    return name, 128 if _is_signed(part) else part.zero, part.shape[1]


def _is_signed(part: BlockWeight) -> bool:
    return part.values.dtype.kind == "i"


def _fill(weight: _cpu.PackedWeight, part: WeightPart, first: int, team: _cpu.Team) -> None:
    if isinstance(part, BlockWeight):
        weight.blocks(first, part.values, part.scales, part.minima, part.bits, _is_signed(part), team)
        return
    assert isinstance(part, torch.Tensor)
    values = part if part.dtype in (torch.float32, torch.bfloat16) else part.float()
    if values.stride(1) != 1:
        values = values.contiguous()
    bf16 = values.dtype == torch.bfloat16
    weight.dense(first, values.shape[0], values.data_ptr(), values.stride(0) * values.itemsize, bf16, team)
