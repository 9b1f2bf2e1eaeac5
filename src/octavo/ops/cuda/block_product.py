"""Products of a few rows (decoding) with weights in blocks of 4- or 8-bit numbers (``weights.BlockPart``).

Numbers become the compute type in registers, where tensor cores take them from. The weight is the left operand, so that a tile of it is as
many rows as there are, and x's rows, 8 at the least, are the right one.

    runs of 32 or 64 weight rows, tiles of x's rows, splits of K: a program each
        groups of the split, blocks of a group (4, unrolled)
            values [32, 16] bytes -> low and high halves [32, 16] each, of 8 bits [32, 32]: exact integers in the compute type
            x [16, ROWS] each (or [32, ROWS]) -> product [32, ROWS] in float32, times the block's scales -> sums
            minima: times the sums of x's blocks, which a product with ones gives
        sums of all splits (``split_sums.py``) -> out [M, N] + bias

Each row's products are the same whatever lies beside it. The integers stay exact; only float32 sums round.
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from octavo.ops.base import QUANT_BLOCK
from octavo.ops.cuda.launch import early_launch
from octavo.ops.cuda.split_sums import add_partials, is_last, keep_partials, prefetch, row_tile, split_groups
from octavo.ops.cuda.variants import Variant
from octavo.ops.cuda.weights import TILE_ROWS, BlockPart, group_blocks

_WARPS = 2
_STAGES = 4


def block_product(x: torch.Tensor, part: BlockPart, out: torch.Tensor, bias: torch.Tensor | None) -> None:
    """x times the weight transposed, plus the bias, into ``out``.

    Args:
        x: [M, K] in the compute type, 1 to ``MOST_ROWS`` rows, columns adjacent.
        out: [M, N] in the compute type or float32, columns adjacent.
        bias: [N] in the compute type.
    """
    rows = len(x)
    tile = row_tile(rows)
    weight_tiles, run = len(part.values), group_blocks(part.blocks)
    pair = 2 if weight_tiles % 2 == 0 else 1
    row_tiles, programs, groups = triton.cdiv(rows, tile), weight_tiles // pair, part.blocks // run
    splits, length = split_groups(programs, groups, run * QUANT_BLOCK)
    partials = out
    if splits > 1:
        partials = torch.empty(splits * row_tiles * weight_tiles * TILE_ROWS * tile, dtype=torch.float32, device=x.device)
    scales, minima = part.scales_from(0)
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
    2^7 - shift is exact. Converting integers instead takes thrice the instructions. Ampere and Ada can multiply and add in bfloat16, but
    not add: so one times it, less that.

    Args:
        shift: -15 .. 0.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return ""
    kind, base, one = ("bf16x2", 0x4300, 0x3F80) if dtype == torch.bfloat16 else ("f16x2", 0x6400, 0x3C00)
    less = base - shift | 0x8000
    return f"""{{
        .reg .b32 a, b, base, one, less;
        prmt.b32 a, $4, 0, 0x4140;
        prmt.b32 b, $4, 0, 0x4342;
        mov.b32 base, 0x{base:04X}{base:04X};
        mov.b32 one, 0x{one:04X}{one:04X};
        mov.b32 less, 0x{less:04X}{less:04X};
        lop3.b32 $0, a, 0x000F000F, base, 0xEA;
        lop3.b32 $1, b, 0x000F000F, base, 0xEA;
        shr.u32 a, a, 4;
        shr.u32 b, b, 4;
        lop3.b32 $2, a, 0x000F000F, base, 0xEA;
        lop3.b32 $3, b, 0x000F000F, base, 0xEA;
        fma.rn.{kind} $0, $0, one, less;
        fma.rn.{kind} $1, $1, one, less;
        fma.rn.{kind} $2, $2, one, less;
        fma.rn.{kind} $3, $3, one, less;
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
