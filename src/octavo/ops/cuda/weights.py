"""How a weight lies on the GPU: dense, in blocks of small integers, or as float8 numbers.

Blocks are arranged so that a product reads memory from one end to the other: rows in tiles of 32, and in a tile block after block.

    values [tiles, blocks, 32 rows, bytes]: 16 bytes a row and block of 4-bit numbers (``BlockWeight``'s own), 32 of 8-bit ones, signed
    scales, minima float16 [tiles, groups, 32 rows, run]: of ``run`` blocks side by side, so that a thread reads those of a row at once
    row scales float32 [tiles * 32]: where a row has one

A number is scale * (stored + shift) + minimum. Rows that fill up the last tile are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from octavo.ops.base import QUANT_BLOCK, BlockWeight, Float8Weight, WeightPart

TILE_ROWS = 32
"""Rows of a tile."""

MOST_ROW_TILES = 4
"""Tiles of x's rows that a fused product takes at once: there are counters for so many."""

FLOAT8 = torch.float8_e4m3fn
FLOAT8_LARGEST = 448.0

_FLOAT8_ALIGNMENT = 16
"""Both sides of a float8 weight are multiples of it."""
_QUANTISED_VALUES = 2**24
"""Of a weight that are float32 at once while it becomes float8 numbers."""


@dataclass(frozen=True, slots=True)
class DensePart:
    """Rows in the compute type.

    Attributes:
        first: its first column in the product of the stacked weight.
        weight: [N, K] in the compute type.
    """

    first: int
    weight: torch.Tensor

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The compute type."""
        return self.weight.dtype

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self.weight.nbytes


@dataclass(frozen=True, slots=True)
class BlockPart:
    """Rows in blocks of small integers.

    Attributes:
        first: its first column in the product of the stacked weight.
        out_features, in_features: N and K, a multiple of 32; x may have fewer columns, which are then followed by zeros.
        dtype: the compute type.
        bits: 4 or 8.
        shift: added to a stored number.
        values: uint8 (4 bits) or int8 (8 bits) [tiles, blocks, 32, bytes].
        scales: float16 [tiles, groups, 32, run], or float32 [tiles * 32] for one a row.
        minima: float16 [tiles, groups, 32, run] or None.
        counters: int32, zeros between products: how many programs have left their sums.
    """

    first: int
    out_features: int
    in_features: int
    dtype: torch.dtype
    bits: int
    shift: int
    values: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor | None
    counters: torch.Tensor

    @property
    def blocks(self) -> int:
        """Of a row."""
        return self.values.shape[1]

    @property
    def row_scales(self) -> bool:
        """Whether a row has one scale."""
        return self.scales.ndim == 1

    @property
    def nbytes(self) -> int:
        """On the device, without the counters."""
        return self.values.nbytes + self.scales.nbytes + (0 if self.minima is None else self.minima.nbytes)

    def scales_from(self, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and minima from a tile on; the scales once more where there are no minima."""
        scales = self.scales[tile * TILE_ROWS :] if self.row_scales else self.scales[tile:]
        return scales, scales if self.minima is None else self.minima[tile:]


@dataclass(frozen=True, slots=True)
class Float8Part:
    """Rows of float8 numbers.

    Attributes:
        first: its first column in the product of the stacked weight.
        out_features, in_features: N and K.
        dtype: the compute type.
        values: float8_e4m3fn [N, K], both filled up with zeros to multiples of 16 (N of 32).
        scales: float32 [filled N].
        counters: see ``BlockPart``.
    """

    first: int
    out_features: int
    in_features: int
    dtype: torch.dtype
    values: torch.Tensor
    scales: torch.Tensor
    counters: torch.Tensor

    @property
    def nbytes(self) -> int:
        """On the device, without the counters."""
        return self.values.nbytes + self.scales.nbytes


DevicePart = DensePart | BlockPart | Float8Part
"""Rows of a stacked weight that share a layout, hence one product."""


def pack(parts: Sequence[WeightPart], dtype: torch.dtype, device: torch.device) -> list[DevicePart]:
    """Lay out stacked weights: neighbours of one kind become one.

    Args:
        parts: [n, K] each, on whatever device; may be freed afterwards.
        dtype: the compute type.
        device: where the product runs.

    Returns:
        parts that share the columns of the product among them, in order.
    """
    packed: list[DevicePart] = []
    first = 0
    for kind, group in groupby(parts, key=_kind):
        members = list(group)
        if isinstance(members[0], BlockWeight):
            packed.append(_blocks(cast("list[BlockWeight]", members), first, kind[2], dtype, device))
        elif isinstance(members[0], Float8Weight):
            packed.append(_float8(cast("list[Float8Weight]", members), first, dtype, device))
        else:
            dense = [cast("torch.Tensor", part).to(device, dtype) for part in members]
            packed.append(DensePart(first, dense[0] if len(dense) == 1 else torch.cat(dense)))
        first += sum(part.shape[0] for part in members)
    return packed


def group_blocks(blocks: int) -> int:
    """How many of a row's ``blocks`` have their scales side by side (a group's blocks are also computed without a loop)."""
    return next(run for run in (4, 2, 1) if blocks % run == 0)


def _kind(part: WeightPart) -> tuple[str, int, int, bool, bool]:
    """What neighbours share that are stacked: (layout, bits, shift, one scale a row, minima)."""
    if isinstance(part, Float8Weight):
        return "float8", 8, 0, True, False
    if not isinstance(part, BlockWeight):
        return "dense", 0, 0, False, False
    shift = -part.zero if part.bits == 4 or part.values.dtype.kind == "i" else 128 - part.zero
    return "blocks", part.bits, shift, part.scales.dtype.itemsize == 4, part.minima is not None


def _counters(tiles: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(tiles * MOST_ROW_TILES, dtype=torch.int32, device=device)


def _blocks(members: list[BlockWeight], first: int, shift: int, dtype: torch.dtype, device: torch.device) -> BlockPart:
    rows, columns = sum(part.shape[0] for part in members), members[0].shape[1]
    blocks, tiles, bits = columns // QUANT_BLOCK, -(-rows // TILE_ROWS), members[0].bits
    values = torch.zeros((tiles, blocks, TILE_ROWS, QUANT_BLOCK * bits // 8), dtype=torch.uint8 if bits == 4 else torch.int8, device=device)
    minima: torch.Tensor | None = None
    if members[0].scales.dtype.itemsize == 4:
        scales = torch.zeros(tiles * TILE_ROWS, dtype=torch.float32, device=device)
    else:
        run = group_blocks(blocks)
        scales = torch.zeros((tiles, blocks // run, TILE_ROWS, run), dtype=torch.float16, device=device)
        minima = torch.zeros_like(scales) if members[0].minima is not None else None
    start = 0
    for part in members:
        stop = start + part.shape[0]
        stored = _on_device(part.values, device)
        if stored.dtype == torch.uint8 and bits == 8:
            stored = (stored ^ 128).view(torch.int8)
        _put_tiles(values, start, stored)
        if scales.ndim == 1:
            scales[start:stop] = _on_device(part.scales, device).view(-1)
        else:
            _put_tiles(scales, start, _on_device(part.scales, device).view(part.shape[0], *scales.shape[1::2]))
        if minima is not None and part.minima is not None:
            _put_tiles(minima, start, _on_device(part.minima, device).view(part.shape[0], *minima.shape[1::2]))
        start = stop
    return BlockPart(first, rows, columns, dtype, bits, shift, values, scales, minima, _counters(tiles, device))


def _put_tiles(tiled: torch.Tensor, start: int, rows: torch.Tensor) -> None:
    """Put rows [n, blocks, values] in their places of [tiles, blocks, 32, values], from row ``start`` on."""
    by_row = tiled.transpose(1, 2)  # [tiles, 32, blocks, values]
    done = 0
    while done < len(rows):
        tile, offset = divmod(start + done, TILE_ROWS)
        if offset == 0 and len(rows) - done >= TILE_ROWS:
            count = (len(rows) - done) // TILE_ROWS
            by_row[tile : tile + count] = rows[done : done + count * TILE_ROWS].view(count, TILE_ROWS, *rows.shape[1:])
            done += count * TILE_ROWS
        else:
            count = min(TILE_ROWS - offset, len(rows) - done)
            by_row[tile, offset : offset + count] = rows[done : done + count]
            done += count


def _on_device(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A contiguous copy of an array that may be a read-only view."""
    return torch.from_numpy(np.array(array, order="C")).to(device)


def _float8(members: list[Float8Weight], first: int, dtype: torch.dtype, device: torch.device) -> Float8Part:
    rows, columns = sum(part.shape[0] for part in members), members[0].shape[1]
    filled = -(-rows // TILE_ROWS) * TILE_ROWS
    values = torch.zeros((filled, -(-columns // _FLOAT8_ALIGNMENT) * _FLOAT8_ALIGNMENT), dtype=FLOAT8, device=device)
    scales = torch.zeros(filled, dtype=torch.float32, device=device)
    step = max(1, _QUANTISED_VALUES // max(1, columns))
    start = 0
    for part in members:
        weight = part.dense.to(device)
        for piece in torch.split(weight, step):
            stop = start + len(piece)
            wide = piece.float()
            scales[start:stop] = wide.abs().amax(1) / FLOAT8_LARGEST
            divisors = torch.where(scales[start:stop] == 0, 1.0, scales[start:stop])
            values[start:stop, :columns] = (wide / divisors[:, None]).clamp_(-FLOAT8_LARGEST, FLOAT8_LARGEST).to(FLOAT8)
            start = stop
    return Float8Part(first, rows, columns, dtype, values, scales, _counters(filled // TILE_ROWS, device))
