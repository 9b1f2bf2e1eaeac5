"""Weights in blocks of 4- or 8-bit numbers (``weights.BlockPart``) spelled out: runs of rows in the compute type, single ones in float32.

tiles of 32 rows, groups of blocks: a program each           looked-up rows, runs of blocks: a program each
    values [32, group's bytes] -> numbers * scale + minimum -> out, values side by side as the weight has them
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from octavo.ops.cuda.launch import early_launch
from octavo.ops.cuda.variants import Variant
from octavo.ops.cuda.weights import TILE_ROWS, BlockPart, group_blocks


def dequantize(part: BlockPart, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Rows of a weight in the compute type: [rows, K].

    Args:
        start: of the rows, a multiple of 32.
        stop: behind the last; the weight's rows when None.
    """
    rows = (part.out_features if stop is None else stop) - start
    out = torch.empty((rows, part.in_features), dtype=part.dtype, device=part.values.device)
    tile = start // TILE_ROWS
    run = group_blocks(part.blocks)
    _dequantize_kernel[(triton.cdiv(rows, TILE_ROWS), part.blocks // run)](
        part.values[tile:],
        *part.scales_from(tile),
        out,
        rows,
        part.blocks,
        BITS=part.bits,
        SHIFT=part.shift,
        MINIMA=part.minima is not None,
        ROW_SCALES=part.row_scales,
        RUN=run,
        num_warps=4,
    )
    return out


def look_up(part: BlockPart, ids: torch.Tensor, scale: float) -> torch.Tensor:
    """Rows of a table [V, H] times ``scale``: float32 [T, H] for int64 ``ids`` [T]."""
    out = torch.empty((len(ids), part.in_features), dtype=torch.float32, device=ids.device)
    width = min(64, triton.next_power_of_2(part.blocks))
    if len(ids):
        _gather_kernel[(len(ids), triton.cdiv(part.blocks, width))](
            ids,
            part.values,
            *part.scales_from(0),
            out,
            part.blocks,
            scale,
            BITS=part.bits,
            SHIFT=part.shift,
            MINIMA=part.minima is not None,
            ROW_SCALES=part.row_scales,
            RUN=group_blocks(part.blocks),
            WIDTH=width,
            EARLY=early_launch(len(ids)),
            num_warps=4,
            launch_pdl=early_launch(len(ids)),
        )
    return out


@triton.jit
def _spell_out(
    stored,
    scales_ptr,
    minima_ptr,
    place,
    row,
    SHIFT: tl.constexpr,
    MINIMA: tl.constexpr,
    ROW_SCALES: tl.constexpr,
):
    """Stored numbers as float32.

    Args:
        place: of their blocks' scales. row: of theirs, where a row has one.
    """
    numbers = (stored.to(tl.int32) + SHIFT).to(tl.float32)
    numbers *= tl.load(scales_ptr + row) if ROW_SCALES else tl.load(scales_ptr + place).to(tl.float32)
    if MINIMA:
        numbers += tl.load(minima_ptr + place).to(tl.float32)
    return numbers


@triton.jit(do_not_specialize=["rows"])
def _dequantize_kernel(
    values_ptr,
    scales_ptr,
    minima_ptr,
    out_ptr,
    rows,
    blocks,
    BITS: tl.constexpr,
    SHIFT: tl.constexpr,
    MINIMA: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    RUN: tl.constexpr,
):
    """A tile's rows and a group's blocks a program."""
    BYTES: tl.constexpr = 4 * BITS
    tile = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    row = tl.arange(0, 32)[:, None]
    byte = tl.arange(0, RUN * BYTES)[None, :]
    block = byte // BYTES
    stored = tl.load(values_ptr + ((tile * blocks + group * RUN + block) * 32 + row) * BYTES + byte % BYTES)
    place = (tile * (blocks // RUN) + group) * 32 * RUN + row * RUN + block
    number = tile * 32 + row
    out = out_ptr + number * (blocks * 32) + group * (RUN * 32) + block * 32 + byte % BYTES
    mask = number < rows
    if BITS == 4:
        low = _spell_out(stored & 15, scales_ptr, minima_ptr, place, number, SHIFT, MINIMA, ROW_SCALES)
        high = _spell_out(stored >> 4, scales_ptr, minima_ptr, place, number, SHIFT, MINIMA, ROW_SCALES)
        tl.store(out, low.to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(out + 16, high.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        numbers = _spell_out(stored, scales_ptr, minima_ptr, place, number, SHIFT, MINIMA, ROW_SCALES)
        tl.store(out, numbers.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gather_kernel(
    ids_ptr,
    values_ptr,
    scales_ptr,
    minima_ptr,
    out_ptr,
    blocks,
    scale,
    BITS: tl.constexpr,
    SHIFT: tl.constexpr,
    MINIMA: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    RUN: tl.constexpr,
    WIDTH: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A looked-up row and WIDTH of its blocks a program."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    BYTES: tl.constexpr = 4 * BITS
    index = tl.program_id(0).to(tl.int64)
    number = tl.load(ids_ptr + index)
    tile, row = number // 32, number % 32
    block = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[:, None]
    byte = tl.arange(0, BYTES)[None, :]
    mask = block < blocks
    block = tl.minimum(block, blocks - 1)
    stored = tl.load(values_ptr + ((tile * blocks + block) * 32 + row) * BYTES + byte)
    place = ((tile * (blocks // RUN) + block // RUN) * 32 + row) * RUN + block % RUN
    out = out_ptr + index * (blocks * 32) + block * 32 + byte
    if BITS == 4:
        low = _spell_out(stored & 15, scales_ptr, minima_ptr, place, number, SHIFT, MINIMA, ROW_SCALES)
        high = _spell_out(stored >> 4, scales_ptr, minima_ptr, place, number, SHIFT, MINIMA, ROW_SCALES)
        tl.store(out, low * scale, mask=mask)
        tl.store(out + 16, high * scale, mask=mask)
    else:
        numbers = _spell_out(stored, scales_ptr, minima_ptr, place, number, SHIFT, MINIMA, ROW_SCALES)
        tl.store(out, numbers * scale, mask=mask)


def variants() -> Iterator[Variant]:
    """Each way that a number is stored."""
    for name, bits, shift, minima, row_scales in _FORMS:
        types = {"values_ptr": "*u8" if bits == 4 else "*i8", "out_ptr": "*bf16", "rows": "i32", "blocks": "i32"}
        types |= dict.fromkeys(("scales_ptr", "minima_ptr"), "*fp32" if row_scales else "*fp16")
        aligned = ("values_ptr", "scales_ptr", "minima_ptr", "out_ptr")
        constants = {"BITS": bits, "SHIFT": shift, "MINIMA": minima, "ROW_SCALES": row_scales, "RUN": 4}
        yield Variant(f"dequantize_{name}", _dequantize_kernel, types, constants, aligned=(*aligned, "blocks"))
        types = {key: value for key, value in types.items() if key != "rows"} | {"ids_ptr": "*i64", "out_ptr": "*fp32", "scale": "fp32"}
        yield Variant(
            f"gather_{name}", _gather_kernel, types, constants | {"WIDTH": 64, "EARLY": True}, aligned=(*aligned, "ids_ptr", "blocks")
        )


_FORMS = (
    ("4bit", 4, -8, False, False),
    ("4bit_minima", 4, 0, True, False),
    ("8bit", 8, 0, False, False),
    ("8bit_row", 8, 0, False, True),
)
"""Format, bits, shift, minima, one scale a row."""
