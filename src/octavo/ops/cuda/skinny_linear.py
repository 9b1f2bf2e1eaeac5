"""Products of few rows with a dense weight, as decoding has them: all the time goes into reading the weight once.

    runs of COLUMNS of the N columns: a program each (with a gated weight: of gate and of up, columns I apart)
        first FIRST of a column's K values into registers, before the kernel that makes x has ended
        steps of DEPTH of the others:
            w [COLUMNS, DEPTH], x [16, DEPTH] -> acc [16, COLUMNS]: a tensor-core product, 16 rows whatever their number
        out [T, N], or act(gate) * up [T, I]

    x [T, K]; weight [N, K], row-major

The weight does not depend on the kernels before, so its first values are asked for while those still run (``launch.py``): the time
between two products is not lost. Rows are always 16, K is summed in one order: a row's bits do not depend on the rows beside it.
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.cuda.launch import early_launch
from octavo.ops.cuda.variants import Variant

MOST_ROWS = 16
"""Rows that the kernel takes: of the smallest tensor-core tile."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How the kernel is cut.

    Attributes:
        columns: of a program. depth: values of K at a time. first: those asked for early.
        warps, stages: of a program, and steps under way from memory.
    """

    columns: int
    depth: int
    first: int
    warps: int
    stages: int


def skinny_launch(columns: int, gated: bool) -> Launch:
    """For a weight of so many columns; measured on an H100 for the products of Llama 3 8B."""
    if gated:
        return Launch(32, 128, 512, 4, 5)
    # Up to two programs a multiprocessor: each needs more under way than where there are more of them.
    return Launch(16, 256, 256, 4, 6) if columns <= 16 * 2 * 132 else Launch(16, 256, 256, 2, 4)


def takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``skinny_linear`` multiplies these: few rows, 16 bits, and K in whole steps."""
    return x.shape[0] <= MOST_ROWS and x.element_size() == 2 and weight.shape[1] % 256 == 0 and weight.shape[1] >= 512


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    activation: str | None = None,
    launch: Launch | None = None,
) -> torch.Tensor:
    """x times the weight transposed, plus the bias.

    Args:
        x: [T, K], T up to ``MOST_ROWS``, contiguous in K.
        weight: [N, K], contiguous; see ``takes``.
        bias: [N] or None.
        dtype: of the result.
        activation: None, or for a gated weight [2 I, K] silu or gelu_tanh: the result is act(gate) * up.

    Returns:
        [T, N], or [T, I].
    """
    if activation not in (None, "silu", "gelu_tanh"):
        raise ValueError(f"activation {activation!r} is not one of silu, gelu_tanh")
    rows, depth = x.shape
    columns = weight.shape[0] // (1 if activation is None else 2)
    launch = launch or skinny_launch(columns, activation is not None)
    out = torch.empty((rows, columns), dtype=dtype, device=x.device)
    if rows:
        _skinny_kernel[(triton.cdiv(columns, launch.columns),)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            rows,
            x.stride(0),
            WIDTH=columns,
            LENGTH=depth,
            ROWS=MOST_ROWS,
            COLUMNS=launch.columns,
            DEPTH=launch.depth,
            FIRST=launch.first,
            BIAS=bias is not None,
            GATED=activation is not None,
            SILU=activation == "silu",
            EARLY=early_launch(rows),
            num_warps=launch.warps,
            num_stages=launch.stages,
            launch_pdl=early_launch(rows),
        )
    return out


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    x_stride,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    FIRST: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    SILU: tl.constexpr,
    EARLY: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    members = tl.arange(0, ROWS)
    inside = columns < WIDTH
    # Columns past the end read the last one: loads without a mask are what the compiler moves ahead best.
    sources = tl.minimum(columns, WIDTH - 1).to(tl.int64) * LENGTH
    early = tl.arange(0, FIRST)
    first = tl.load(weight_ptr + sources[:, None] + early[None, :])
    if GATED:
        up_ptr = weight_ptr + tl.cast(WIDTH, tl.int64) * LENGTH
        first_up = tl.load(up_ptr + sources[:, None] + early[None, :])
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    live = (members < rows)[:, None]
    first_x = tl.load(x_ptr + members[:, None] * x_stride + early[None, :], mask=live, other=0.0)
    acc = tl.dot(first_x, tl.trans(first))
    if GATED:
        acc_up = tl.dot(first_x, tl.trans(first_up))
    steps = tl.arange(0, DEPTH)
    for start in range(FIRST, LENGTH, DEPTH):
        x = tl.load(x_ptr + members[:, None] * x_stride + start + steps[None, :], mask=live, other=0.0)
        w = tl.load(weight_ptr + sources[:, None] + start + steps[None, :])
        acc = tl.dot(x, tl.trans(w), acc)
        if GATED:
            w_up = tl.load(up_ptr + sources[:, None] + start + steps[None, :])
            acc_up = tl.dot(x, tl.trans(w_up), acc_up)
    if BIAS:
        acc += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if BIAS:
            acc_up += tl.load(bias_ptr + WIDTH + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        # Rounded where a product on its own would be.
        gate = acc.to(x_ptr.dtype.element_ty).to(tl.float32)
        up = acc_up.to(x_ptr.dtype.element_ty).to(tl.float32)
        if SILU:
            acc = gate * tl.sigmoid(gate) * up
        else:
            acc = gate * tl.sigmoid(2.0 * 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)) * up
    out_ptrs = out_ptr + members[:, None] * WIDTH + columns[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=live & inside[None, :])


def variants() -> Iterator[Variant]:
    """The forms of Llama 3 8B."""
    for name, columns, depth, kind, out, activation in (
        ("qkv", 6144, 4096, "bf16", "bf16", None),
        ("down", 4096, 14336, "bf16", "bf16", None),
        ("gate_up", 14336, 4096, "bf16", "bf16", "silu"),
        ("head", 128256, 4096, "bf16", "fp32", None),
        ("head_fp16", 128256, 4096, "fp16", "fp32", None),
    ):
        launch = skinny_launch(columns, activation is not None)
        yield Variant(
            f"skinny_{name}",
            _skinny_kernel,
            {"x_ptr": f"*{kind}", "weight_ptr": f"*{kind}", "bias_ptr": f"*{kind}", "out_ptr": f"*{out}", "rows": "i32", "x_stride": "i32"},
            {
                "WIDTH": columns,
                "LENGTH": depth,
                "ROWS": MOST_ROWS,
                "COLUMNS": launch.columns,
                "DEPTH": launch.depth,
                "FIRST": launch.first,
                "BIAS": False,
                "GATED": activation is not None,
                "SILU": activation == "silu",
                "EARLY": True,
            },
            launch.warps,
            launch.stages,
            ("x_ptr", "weight_ptr", "bias_ptr", "out_ptr", "x_stride"),
        )
