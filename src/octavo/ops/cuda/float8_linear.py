"""Products of float8 weights (``weights.Float8Part``) with rows that become float8 numbers too, each row with a scale of its own.

    rows of x: a program each
        x [K] -> largest magnitude / 448 -> x8 float8_e4m3fn [K, filled up with zeros], scale
    a few rows: runs of 32 or 64 weight rows, tiles of x8's rows, splits of K: a program each
        weights [32, 128] and x8 [128, ROWS] as float16, which is exact -> sums float32 [32, ROWS]
        sums of all splits (``split_sums.py``) * row's scale * weight row's scale -> out [M, N] + bias
    many rows: cuBLAS or CUTLASS by ``torch._scaled_mm``, which rounds to bfloat16

GPUs without float8 numbers (before Ada) are refused (``runner.memory_plan``); where kernels are interpreted many rows are spelled out.
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from octavo.ops.cuda.launch import early_launch
from octavo.ops.cuda.split_sums import MOST_ROWS, add_partials, is_last, keep_partials, row_tile, split_groups
from octavo.ops.cuda.variants import Variant
from octavo.ops.cuda.weights import FLOAT8, FLOAT8_LARGEST, TILE_ROWS, Float8Part

FUSED_ROWS = 64
"""Most rows whose product is our own kernel's: it reads weights at the memory's rate where the library's tiles are too few."""

_COLUMNS = 128
_WARPS = 2
_STAGES = 4

assert FUSED_ROWS <= MOST_ROWS


def float8_linear(x: torch.Tensor, part: Float8Part, out: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """x times the weight transposed, plus the bias, into ``out``.

    Args:
        x: [M, K] in the compute type, columns adjacent; M is not 0.
        out: [M, N] in the compute type or float32, columns adjacent; all is overwritten.
        bias: [N].
    """
    x8, scales = float8_rows(x, part.values.shape[1])
    if len(x) <= FUSED_ROWS:
        _fused(x8, scales, part, out, bias)
    elif x.is_cuda:
        _library(x8, scales, part, out, bias)
    else:
        _spelled_out(x8, scales, part, out, bias)


def _library(x8: torch.Tensor, scales: torch.Tensor, part: Float8Part, out: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Straight into ``out`` where that is all of a bfloat16 tensor as wide as the weight is filled."""
    fits = out.dtype == torch.bfloat16 and out.is_contiguous() and out.shape[1] == len(part.values)
    product = out if fits else torch.empty((len(x8), len(part.values)), dtype=torch.bfloat16, device=x8.device)
    torch._scaled_mm(x8, part.values.t(), scales[:, None], part.scales[None, :], out_dtype=torch.bfloat16, out=product)
    if bias is not None:
        torch.add(product[:, : part.out_features], bias, out=out)
    elif not fits:
        out.copy_(product[:, : part.out_features])


def float8_rows(x: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [M, K] as float8_e4m3fn [M, width], filled up with zeros, and their scales, float32 [M]."""
    x8 = torch.empty((len(x), width), dtype=FLOAT8, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _float8_kernel[(len(x),)](
        x,
        x8,
        scales,
        x.stride(0),
        x.shape[1],
        width,
        LARGEST=FLOAT8_LARGEST,
        BLOCK=block,
        EARLY=early_launch(len(x)),
        num_warps=_row_warps(block),
        launch_pdl=early_launch(len(x)),
    )
    return x8, scales


def _row_warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


def _spelled_out(x8: torch.Tensor, scales: torch.Tensor, part: Float8Part, out: torch.Tensor, bias: torch.Tensor | None) -> None:
    columns = min(x8.shape[1], part.in_features)
    product = x8[:, :columns].float() @ part.values[: part.out_features, :columns].float().t()
    product *= scales[:, None]
    product *= part.scales[None, : part.out_features]
    out.copy_(product if bias is None else product.add_(bias))


def _fused(x8: torch.Tensor, scales: torch.Tensor, part: Float8Part, out: torch.Tensor, bias: torch.Tensor | None) -> None:
    rows, columns = x8.shape
    tile = row_tile(rows)
    weight_tiles = len(part.values) // TILE_ROWS
    pair = 2 if weight_tiles % 2 == 0 else 1
    row_tiles, programs, groups = triton.cdiv(rows, tile), weight_tiles // pair, triton.cdiv(columns, _COLUMNS)
    splits, length = split_groups(programs, groups, _COLUMNS)
    partials = out
    if splits > 1:
        partials = torch.empty(splits * row_tiles * weight_tiles * TILE_ROWS * tile, dtype=torch.float32, device=x8.device)
    _fused_kernel[(row_tiles * programs, splits)](
        x8,
        scales,
        part.values,
        part.scales,
        out if bias is None else bias,
        out,
        partials,
        part.counters,
        rows,
        columns,
        out.stride(0),
        part.out_features,
        groups,
        length,
        splits,
        row_tiles,
        BIAS=bias is not None,
        EVEN=columns % _COLUMNS == 0,
        SPLIT=splits > 1,
        ROWS=tile,
        COLUMNS=_COLUMNS,
        PAIR=pair,
        EARLY=early_launch(rows),
        num_warps=_WARPS,
        num_stages=_STAGES,
        launch_pdl=early_launch(rows),
    )


@triton.jit
def _float8_kernel(x_ptr, x8_ptr, scales_ptr, x_stride, columns, width, LARGEST: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + k, mask=k < columns, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(x), 0) / LARGEST
    tl.store(scales_ptr + row, scale)
    scaled = x / tl.where(scale == 0.0, 1.0, scale)
    scaled = tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST)
    tl.store(x8_ptr + row * width + k, scaled.to(x8_ptr.dtype.element_ty), mask=k < width)


@triton.jit
def _put(out_ptr, bias_ptr, x_scales_ptr, scales_ptr, sums, first, row, rows, out_stride, out_features, BIAS: tl.constexpr):
    """Store results [32, ROWS] from weight row ``first`` and x's ``row`` on."""
    n = first + tl.arange(0, 32)
    m = row + tl.arange(0, sums.shape[1])
    inside = n < out_features
    sums *= tl.load(x_scales_ptr + m, mask=m < rows, other=0.0)[None, :]
    sums *= tl.load(scales_ptr + n)[:, None]
    if BIAS:
        sums += tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)[:, None]
    place = out_ptr + m[None, :].to(tl.int64) * out_stride + n[:, None]
    tl.store(place, sums.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (m < rows)[None, :])


@triton.jit(do_not_specialize=["rows", "out_features", "groups", "length", "splits", "row_tiles"])
def _fused_kernel(
    x8_ptr,
    x_scales_ptr,
    values_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    partials_ptr,
    counters_ptr,
    rows,
    columns,
    out_stride,
    out_features,
    groups,
    length,
    splits,
    row_tiles,
    BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIR: tl.constexpr,
    EARLY: tl.constexpr,
):
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
    k = tl.arange(0, COLUMNS)
    values_one = values_ptr + (tile * 32 + n)[:, None].to(tl.int64) * columns + first * COLUMNS + k[None, :]
    values_two = values_one + columns.to(tl.int64) * 32
    x_place = x8_ptr + m[None, :].to(tl.int64) * columns + first * COLUMNS + k[:, None]
    x_mask = (m < rows)[None, :]
    sums_one = tl.zeros((32, ROWS), tl.float32)
    sums_two = sums_one
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for group in range(first, last):
        if EVEN:
            x = tl.load(x_place, mask=x_mask, other=0.0)
            one = tl.load(values_one)
        else:
            left = columns - group * COLUMNS
            x = tl.load(x_place, mask=x_mask & (k < left)[:, None], other=0.0)
            one = tl.load(values_one, mask=(k < left)[None, :], other=0.0)
        half = x.to(tl.float16)
        sums_one = tl.dot(one.to(tl.float16), half, sums_one)
        if PAIR == 2:
            if EVEN:
                two = tl.load(values_two)
            else:
                two = tl.load(values_two, mask=(k < columns - group * COLUMNS)[None, :], other=0.0)
            sums_two = tl.dot(two.to(tl.float16), half, sums_two)
        values_one += COLUMNS
        values_two += COLUMNS
        x_place += COLUMNS

    row = row_tile * ROWS
    if not SPLIT:
        _put(out_ptr, bias_ptr, x_scales_ptr, scales_ptr, sums_one, tile * 32, row, rows, out_stride, out_features, BIAS)
        if PAIR == 2:
            _put(out_ptr, bias_ptr, x_scales_ptr, scales_ptr, sums_two, tile * 32 + 32, row, rows, out_stride, out_features, BIAS)
    else:
        slot = row_tile * tiles + tile
        slots = row_tiles * tiles
        place_one = keep_partials(partials_ptr, sums_one, split, slot, slots)
        place_two = place_one
        if PAIR == 2:
            place_two = keep_partials(partials_ptr, sums_two, split, slot + 1, slots)
        if is_last(counters_ptr, program, splits):
            sums_one = add_partials(place_one, splits, slots)
            _put(out_ptr, bias_ptr, x_scales_ptr, scales_ptr, sums_one, tile * 32, row, rows, out_stride, out_features, BIAS)
            if PAIR == 2:
                sums_two = add_partials(place_two, splits, slots)
                _put(out_ptr, bias_ptr, x_scales_ptr, scales_ptr, sums_two, tile * 32 + 32, row, rows, out_stride, out_features, BIAS)


def variants() -> Iterator[Variant]:
    """Llama 3's widths."""
    for kind, width in (("bf16", 4096), ("bf16", 14336), ("fp16", 4096)):
        types = {"x_ptr": f"*{kind}", "x8_ptr": "*fp8e4nv", "scales_ptr": "*fp32", "x_stride": "i32", "columns": "i32", "width": "i32"}
        block = triton.next_power_of_2(width)
        constants = {"LARGEST": FLOAT8_LARGEST, "BLOCK": block, "EARLY": True}
        yield Variant(f"float8_rows_{kind}_{width}", _float8_kernel, types, constants, _row_warps(block), aligned=tuple(types))
    for rows in (8, 16, 32):
        types = {"x8_ptr": "*fp8e4nv", "values_ptr": "*fp8e4nv", "bias_ptr": "*bf16", "out_ptr": "*bf16", "counters_ptr": "*i32"}
        types |= dict.fromkeys(("x_scales_ptr", "scales_ptr", "partials_ptr"), "*fp32")
        aligned = (*types, "columns", "out_stride")
        types |= dict.fromkeys(("rows", "columns", "out_stride", "out_features", "groups", "length", "splits", "row_tiles"), "i32")
        constants = {"BIAS": False, "EVEN": True, "SPLIT": True, "ROWS": rows, "COLUMNS": _COLUMNS, "PAIR": 2, "EARLY": True}
        yield Variant(f"float8_fused_{rows}", _fused_kernel, types, constants, _WARPS, _STAGES, aligned)
