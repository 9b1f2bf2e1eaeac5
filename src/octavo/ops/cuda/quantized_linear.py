"""Products with weights in blocks of 4- or 8-bit numbers (``weights.BlockPart``), and looking rows up in them.

A few rows (decoding): numbers become the compute type in registers, where tensor cores take them from. The weight is the left operand,
so that a tile of it is as many rows as there are, and x's rows, 8 at the least, are the right one.

    runs of 32 or 64 weight rows, tiles of x's rows, splits of K: a program each
        groups of the split, blocks of a group (4, unrolled)
            values [32, 16] bytes -> low and high halves [32, 16] each, of 8 bits [32, 32]: exact integers in the compute type
            x [16, ROWS] each (or [32, ROWS]) -> product [32, ROWS] in float32, times the block's scales -> sums
            minima: times the sums of x's blocks, which a product with ones gives
        sums of all splits (``split_sums.py``) -> out [M, N] + bias

Each row's products are the same whatever lies beside it. The integers stay exact; only float32 sums round.

Many rows: the weight is spelled out in the compute type, some rows of it at a time, and cuBLAS multiplies.
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from octavo.ops.base import QUANT_BLOCK
from octavo.ops.cuda.float8_linear import float8_linear
from octavo.ops.cuda.launch import early_launch
from octavo.ops.cuda.split_sums import MOST_ROWS, add_partials, is_last, keep_partials, prefetch, row_tile, split_groups
from octavo.ops.cuda.variants import Variant
from octavo.ops.cuda.weights import TILE_ROWS, BlockPart, DensePart, DevicePart, Float8Part, group_blocks
from octavo.ops.workspace import CUDA_SPELLED_OUT_BYTES

FUSED_ROWS = 128
"""Most rows that are multiplied without spelling the weight out: beyond, each tile's own unpacking costs more than one for all."""

_WARPS = 2
_STAGES = 4

assert FUSED_ROWS <= MOST_ROWS


def linear(x: torch.Tensor, part: DevicePart, out: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """x times a weight transposed, plus the bias, into ``out``.

    Args:
        x: [M, K] in the compute type, columns adjacent.
        out: [M, N] in the compute type or float32, columns adjacent, rows perhaps further apart; all is overwritten.
        bias: [N] in the compute type.
    """
    if not len(x):
        return
    if isinstance(part, DensePart):
        _multiply(x, part.weight, out, bias)
    elif isinstance(part, Float8Part):
        float8_linear(x, part, out, bias)
    elif len(x) > FUSED_ROWS:
        _spelled_out(x, part, out, bias)
    else:
        _fused(x, part, out, bias)


def gather_rows(table: DevicePart, ids: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Rows of a table [V, H], dense or in blocks, times ``scale``.

    Args:
        ids: int64 [T].

    Returns:
        float32 [T, H]; a dense table's products are rounded to its type.
    """
    if isinstance(table, DensePart):
        rows = F.embedding(ids, table.weight)
        return (rows if scale == 1.0 else rows.mul_(scale)).float()
    if isinstance(table, Float8Part):
        raise TypeError("token tables are not held as float8 numbers")
    return _gather(table, ids, scale)


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
        *_scale_pointers(part, tile),
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


def _gather(part: BlockPart, ids: torch.Tensor, scale: float) -> torch.Tensor:
    out = torch.empty((len(ids), part.in_features), dtype=torch.float32, device=ids.device)
    width = min(64, triton.next_power_of_2(part.blocks))
    if len(ids):
        _gather_kernel[(len(ids), triton.cdiv(part.blocks, width))](
            ids,
            part.values,
            *_scale_pointers(part, 0),
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


def _scale_pointers(part: BlockPart, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minima from a tile on; scales where there are no minima."""
    scales = part.scales[tile * TILE_ROWS :] if part.row_scales else part.scales[tile:]
    return scales, scales if part.minima is None else part.minima[tile:]


def _spelled_out(x: torch.Tensor, part: BlockPart, out: torch.Tensor, bias: torch.Tensor | None) -> None:
    columns = x.shape[1]
    step = max(1, CUDA_SPELLED_OUT_BYTES // (TILE_ROWS * part.in_features * part.dtype.itemsize)) * TILE_ROWS
    for start in range(0, part.out_features, step):
        stop = min(start + step, part.out_features)
        dense = dequantize(part, start, stop)
        _multiply(x, dense[:, :columns], out[:, start:stop], None if bias is None else bias[start:stop])


def _multiply(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None) -> None:
    """x [M, K] times a dense weight [N, K] transposed, plus the bias [N], into ``out`` [M, N] in their type or float32."""
    if out.dtype == x.dtype:
        if bias is None:
            torch.mm(x, weight.t(), out=out)
        else:
            torch.addmm(bias, x, weight.t(), out=out)
        return
    if x.is_cuda:
        torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)
    else:
        torch.mm(x.float(), weight.float().t(), out=out)
    if bias is not None:
        out.add_(bias)


def _fused(x: torch.Tensor, part: BlockPart, out: torch.Tensor, bias: torch.Tensor | None) -> None:
    rows = len(x)
    tile = row_tile(rows)
    weight_tiles, run = len(part.values), group_blocks(part.blocks)
    pair = 2 if weight_tiles % 2 == 0 else 1
    row_tiles, programs, groups = triton.cdiv(rows, tile), weight_tiles // pair, part.blocks // run
    splits, length = split_groups(programs, groups, run * QUANT_BLOCK)
    partials = out
    if splits > 1:
        partials = torch.empty(splits * row_tiles * weight_tiles * TILE_ROWS * tile, dtype=torch.float32, device=x.device)
    scales, minima = _scale_pointers(part, 0)
    if not part.row_scales:
        packed = {1: torch.int16, 2: torch.int32, 4: torch.int64}[run]
        scales, minima = scales.view(packed), minima.view(packed)
    _fused_kernel[(row_tiles * programs, splits)](
        x,
        part.values,
        scales,
        minima,
        out if bias is None else bias,
        out,
        partials,
        part.counters,
        rows,
        x.shape[1],
        x.stride(0),
        out.stride(0),
        part.out_features,
        groups,
        length,
        splits,
        row_tiles,
        BITS=part.bits,
        SHIFT=part.shift,
        MINIMA=part.minima is not None,
        ROW_SCALES=part.row_scales,
        BIAS=bias is not None,
        EVEN=x.shape[1] == part.in_features,
        SPLIT=splits > 1,
        ROWS=tile,
        RUN=run,
        PAIR=pair,
        UNPACK=unpack_assembly(x.dtype, part.shift) if part.bits == 4 and x.is_cuda else "",
        ONES=ones_assembly(x.dtype) if part.minima is not None and x.is_cuda else "",
        EARLY=early_launch(rows),
        num_warps=_WARPS,
        num_stages=_STAGES,
        launch_pdl=early_launch(rows),
    )


def unpack_assembly(dtype: torch.dtype, shift: int) -> str:
    """PTX that turns four bytes into their low and high halves, plus ``shift``, in the compute type; empty where there is none.

    A float's lowest mantissa bits are replaced by the number: 2^7 + q in bfloat16, 2^10 + q in float16, two at a time. Subtracting
    2^7 - shift is exact. Converting integers instead takes thrice the instructions.

    Args:
        shift: -15 .. 0.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return ""
    kind, one = ("bf16x2", 0x4300) if dtype == torch.bfloat16 else ("f16x2", 0x6400)
    base, less = f"0x{one:04X}{one:04X}", f"0x{one - shift:04X}{one - shift:04X}"
    return f"""{{
        .reg .b32 a, b, less;
        prmt.b32 a, $4, 0, 0x4140;
        prmt.b32 b, $4, 0, 0x4342;
        mov.b32 less, {less};
        lop3.b32 $0, a, 0x000F000F, {base}, 0xEA;
        lop3.b32 $1, b, 0x000F000F, {base}, 0xEA;
        shr.u32 a, a, 4;
        shr.u32 b, b, 4;
        lop3.b32 $2, a, 0x000F000F, {base}, 0xEA;
        lop3.b32 $3, b, 0x000F000F, {base}, 0xEA;
        sub.{kind} $0, $0, less;
        sub.{kind} $1, $1, less;
        sub.{kind} $2, $2, less;
        sub.{kind} $3, $3, less;
    }}"""


@triton.jit
def _halves(packed, SHIFT: tl.constexpr, UNPACK: tl.constexpr, dtype: tl.constexpr):
    """Low and high halves of bytes, plus the shift, as exact integers in a type."""
    if UNPACK == "":
        low = ((packed & 15).to(tl.int32) + SHIFT).to(dtype)
        high = ((packed >> 4).to(tl.int32) + SHIFT).to(dtype)
    elif dtype == tl.bfloat16:
        low, high = tl.inline_asm_elementwise(UNPACK, "=r,=r,=r,=r,r", [packed], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4)
    else:
        low, high = tl.inline_asm_elementwise(UNPACK, "=r,=r,=r,=r,r", [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4)
    return low, high


def ones_assembly(dtype: torch.dtype) -> str:
    """PTX that makes ones of four bytes, in the compute type; empty where there is none.

    Ones made of what is loaded lie in registers as the numbers do, so that one copy of x in shared memory serves products with both.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return ""
    one = "0x3F803F80" if dtype == torch.bfloat16 else "0x3C003C00"
    return f"mov.b32 $0, {one}; mov.b32 $1, {one};"


@triton.jit
def _ones_like(stored, ONES: tl.constexpr, dtype: tl.constexpr):
    if ONES == "":
        ones = tl.full(stored.shape, 1.0, dtype)
    elif dtype == tl.bfloat16:
        ones = tl.inline_asm_elementwise(ONES, "=r,=r,r", [stored], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        ones = tl.inline_asm_elementwise(ONES, "=r,=r,r", [stored], dtype=tl.float16, is_pure=True, pack=4)
    return ones


@triton.jit
def _half_float(packed, index: tl.constexpr, RUN: tl.constexpr):
    """The ``index``-th of the float16 numbers that an integer holds, as float32."""
    if RUN == 1:
        bits = packed
    else:
        bits = (packed >> (16 * index)).to(tl.int16)
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _add_block(
    sums,
    stored,
    scales,
    minima,
    x_low,
    x_high,
    x_sums,
    index: tl.constexpr,
    BITS: tl.constexpr,
    SHIFT: tl.constexpr,
    MINIMA: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    RUN: tl.constexpr,
    UNPACK: tl.constexpr,
):
    """Add a block's product [32, ROWS] to the sums."""
    if BITS == 4:
        low, high = _halves(stored, SHIFT, UNPACK, x_low.dtype)
        product = tl.dot(low, x_low, input_precision="ieee")
        product = tl.dot(high, x_high, product, input_precision="ieee")
    else:
        numbers = stored.to(x_low.dtype)
        if SHIFT != 0:
            numbers += SHIFT
        if ROW_SCALES:
            product = tl.dot(numbers, x_low, sums, input_precision="ieee")
        else:
            product = tl.dot(numbers, x_low, input_precision="ieee")
    if ROW_SCALES:
        sums = product
    else:
        sums += product * _half_float(scales, index, RUN)[:, None]
    if MINIMA:
        sums += x_sums * _half_float(minima, index, RUN)[:, None]
    return sums


@triton.jit
def _put(out_ptr, bias_ptr, scales_ptr, sums, first, row, rows, out_stride, out_features, BIAS: tl.constexpr, ROW_SCALES: tl.constexpr):
    """Store results [32, ROWS] from weight row ``first`` and x's ``row`` on."""
    n = first + tl.arange(0, 32)
    m = row + tl.arange(0, sums.shape[1])
    inside = n < out_features
    if ROW_SCALES:
        sums *= tl.load(scales_ptr + n)[:, None]
    if BIAS:
        sums += tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)[:, None]
    place = out_ptr + m[None, :].to(tl.int64) * out_stride + n[:, None]
    tl.store(place, sums.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (m < rows)[None, :])


@triton.jit(do_not_specialize=["rows", "out_features", "groups", "length", "splits", "row_tiles"])
def _fused_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    minima_ptr,
    bias_ptr,
    out_ptr,
    partials_ptr,
    counters_ptr,
    rows,
    columns,
    x_stride,
    out_stride,
    out_features,
    groups,
    length,
    splits,
    row_tiles,
    BITS: tl.constexpr,
    SHIFT: tl.constexpr,
    MINIMA: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    RUN: tl.constexpr,
    PAIR: tl.constexpr,
    UNPACK: tl.constexpr,
    ONES: tl.constexpr,
    EARLY: tl.constexpr,
):
    BYTES: tl.constexpr = 4 * BITS
    TILE_BYTES: tl.constexpr = 32 * BYTES
    HALF: tl.constexpr = 16 if BITS == 4 else 32  # columns that one of x's tiles has

    # Programs that share a weight tile follow each other: the second finds it in the cache.
    program = tl.program_id(0)
    row_tile = program % row_tiles
    tile = program // row_tiles * PAIR
    tiles = tl.num_programs(0) // row_tiles * PAIR
    split = tl.program_id(1)
    first = split * length
    last = tl.minimum(first + length, groups)

    n = tl.arange(0, 32)
    m = row_tile * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, HALF)
    one = tile.to(tl.int64) * groups
    values_one = values_ptr + (one + first) * (RUN * TILE_BYTES) + n[:, None] * BYTES + tl.arange(0, BYTES)[None, :]
    values_two = values_one + groups.to(tl.int64) * (RUN * TILE_BYTES)
    scales_one = scales_ptr + one * 32 + n
    scales_two = scales_one + groups * 32
    minima_one = minima_ptr + one * 32 + n
    minima_two = minima_one + groups * 32
    x_place = x_ptr + m[None, :].to(tl.int64) * x_stride + first * (RUN * 32) + k[:, None]
    x_mask = (m < rows)[None, :]
    sums_one = tl.zeros((32, ROWS), tl.float32)
    sums_two = sums_one
    scale_one, scale_two, minimum_one, minimum_two = 0, 0, 0, 0
    if not ROW_SCALES:  # those of the next group are read while one is computed
        scale_one = tl.load(scales_one + first * 32)
        if PAIR == 2:
            scale_two = tl.load(scales_two + first * 32)
    if MINIMA:
        minimum_one = tl.load(minima_one + first * 32)
        if PAIR == 2:
            minimum_two = tl.load(minima_two + first * 32)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        prefetch(values_ptr + (one + first) * (RUN * TILE_BYTES), (last - first) * (RUN * TILE_BYTES))
        if PAIR == 2:
            prefetch(values_ptr + (one + groups + first) * (RUN * TILE_BYTES), (last - first) * (RUN * TILE_BYTES))
        tl.extra.cuda.gdc_wait()
    for group in range(first, last):
        following = tl.minimum(group + 1, last - 1) * 32
        next_scale_one, next_scale_two, next_minimum_one, next_minimum_two = 0, 0, 0, 0
        if not ROW_SCALES:
            next_scale_one = tl.load(scales_one + following)
            if PAIR == 2:
                next_scale_two = tl.load(scales_two + following)
        if MINIMA:
            next_minimum_one = tl.load(minima_one + following)
            if PAIR == 2:
                next_minimum_two = tl.load(minima_two + following)
        for index in tl.static_range(RUN):
            if EVEN:
                x_low = tl.load(x_place + index * 32, mask=x_mask, other=0.0)
                x_high = tl.load(x_place + index * 32 + 16, mask=x_mask, other=0.0) if BITS == 4 else x_low
            else:
                left = columns - (group * RUN + index) * 32
                x_low = tl.load(x_place + index * 32, mask=x_mask & (k < left)[:, None], other=0.0)
                x_high = tl.load(x_place + index * 32 + 16, mask=x_mask & (k + 16 < left)[:, None], other=0.0) if BITS == 4 else x_low
            stored_one = tl.load(values_one + index * TILE_BYTES)
            x_sums = 0.0
            if MINIMA:
                ones = _ones_like(stored_one, ONES, x_low.dtype)
                x_sums = tl.dot(ones, x_low, input_precision="ieee")
                if BITS == 4:
                    x_sums = tl.dot(ones, x_high, x_sums, input_precision="ieee")
            sums_one = _add_block(
                sums_one,
                stored_one,
                scale_one,
                minimum_one,
                x_low,
                x_high,
                x_sums,
                index,
                BITS,
                SHIFT,
                MINIMA,
                ROW_SCALES,
                RUN,
                UNPACK,
            )
            if PAIR == 2:
                sums_two = _add_block(
                    sums_two,
                    tl.load(values_two + index * TILE_BYTES),
                    scale_two,
                    minimum_two,
                    x_low,
                    x_high,
                    x_sums,
                    index,
                    BITS,
                    SHIFT,
                    MINIMA,
                    ROW_SCALES,
                    RUN,
                    UNPACK,
                )
        values_one += RUN * TILE_BYTES
        values_two += RUN * TILE_BYTES
        x_place += RUN * 32
        scale_one, scale_two, minimum_one, minimum_two = next_scale_one, next_scale_two, next_minimum_one, next_minimum_two

    row = row_tile * ROWS
    if not SPLIT:
        _put(out_ptr, bias_ptr, scales_ptr, sums_one, tile * 32, row, rows, out_stride, out_features, BIAS, ROW_SCALES)
        if PAIR == 2:
            _put(out_ptr, bias_ptr, scales_ptr, sums_two, tile * 32 + 32, row, rows, out_stride, out_features, BIAS, ROW_SCALES)
    else:
        slot = row_tile * tiles + tile
        slots = row_tiles * tiles
        place_one = keep_partials(partials_ptr, sums_one, split, slot, slots)
        place_two = place_one
        if PAIR == 2:
            place_two = keep_partials(partials_ptr, sums_two, split, slot + 1, slots)
        if is_last(counters_ptr, program, splits):
            sums_one = add_partials(place_one, splits, slots)
            _put(out_ptr, bias_ptr, scales_ptr, sums_one, tile * 32, row, rows, out_stride, out_features, BIAS, ROW_SCALES)
            if PAIR == 2:
                sums_two = add_partials(place_two, splits, slots)
                _put(out_ptr, bias_ptr, scales_ptr, sums_two, tile * 32 + 32, row, rows, out_stride, out_features, BIAS, ROW_SCALES)


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
    """Llama 3's shapes in each format and number of rows, and a small float32 model's."""
    for name, bits, shift, minima, row_scales, kind, rows in _FORMS:
        types = {"x_ptr": f"*{kind}", "values_ptr": "*u8" if bits == 4 else "*i8", "out_ptr": f"*{kind}", "bias_ptr": f"*{kind}"}
        types |= dict.fromkeys(("scales_ptr", "minima_ptr"), "*fp32" if row_scales else "*i64")
        types |= {"partials_ptr": "*fp32", "counters_ptr": "*i32"}
        types |= dict.fromkeys(("rows", "columns", "x_stride", "out_stride", "out_features", "groups", "length"), "i32")
        types |= {"splits": "i32", "row_tiles": "i32"}
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind]
        constants = {
            "BITS": bits,
            "SHIFT": shift,
            "MINIMA": minima,
            "ROW_SCALES": row_scales,
            "BIAS": False,
            "EVEN": True,
            "SPLIT": True,
            "ROWS": rows,
            "RUN": 4,
            "PAIR": 2,
            "UNPACK": unpack_assembly(dtype, shift) if bits == 4 else "",
            "ONES": ones_assembly(dtype) if minima else "",
            "EARLY": True,
        }
        aligned = (*(key for key, value in types.items() if value.startswith("*")), "columns", "x_stride", "out_stride")
        yield Variant(f"fused_{name}_{kind}_{rows}", _fused_kernel, types, constants, _WARPS, _STAGES, aligned)
    for name, bits, shift, minima, row_scales, kind, _ in _FORMS[:4]:
        types = {"values_ptr": "*u8" if bits == 4 else "*i8", "out_ptr": f"*{kind}", "rows": "i32", "blocks": "i32"}
        types |= dict.fromkeys(("scales_ptr", "minima_ptr"), "*fp32" if row_scales else "*fp16")
        aligned = ("values_ptr", "scales_ptr", "minima_ptr", "out_ptr")
        constants = {"BITS": bits, "SHIFT": shift, "MINIMA": minima, "ROW_SCALES": row_scales, "RUN": 4}
        yield Variant(f"dequantize_{name}", _dequantize_kernel, types, constants, aligned=(*aligned, "blocks"))
        types = {key: value for key, value in types.items() if key != "rows"} | {"ids_ptr": "*i64", "out_ptr": "*fp32", "scale": "fp32"}
        yield Variant(
            f"gather_{name}", _gather_kernel, types, constants | {"WIDTH": 64, "EARLY": True}, aligned=(*aligned, "ids_ptr", "blocks")
        )


_FORMS = (
    ("4bit", 4, -8, False, False, "bf16", 8),
    ("4bit_minima", 4, 0, True, False, "bf16", 8),
    ("8bit", 8, 0, False, False, "bf16", 8),
    ("8bit_row", 8, 0, False, True, "bf16", 8),
    ("8bit_minima", 8, 128, True, False, "bf16", 8),
    *(
        (name, bits, shift, minima, row_scales, "bf16", rows)
        for rows in (16, 32)
        for name, bits, shift, minima, row_scales in (
            ("4bit", 4, -8, False, False),
            ("4bit_minima", 4, 0, True, False),
            ("8bit", 8, 0, False, False),
            ("8bit_row", 8, 0, False, True),
        )
    ),
    ("4bit", 4, -8, False, False, "fp16", 16),
    ("8bit_row", 8, 0, False, True, "fp16", 16),
    ("4bit", 4, -8, False, False, "fp32", 8),
)
"""Format, bits, shift, minima, one scale a row, compute type, x's rows in a program."""

assert TILE_ROWS == 32 and QUANT_BLOCK == 32
