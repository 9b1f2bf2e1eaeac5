"""RMSNorm of rows, alone or with the residual added first.

    rows: a program each
        x [N] (and residual [N], written back as their sum) -> mean of squares in float32 -> out [N]

A row of a three-dimensional x [T, heads, N] lies at token * token_stride + head * N.
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


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool, dtype: torch.dtype) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension.

    Args:
        x: [T, N] or [T, heads, N], of which only the first dimension may be strided.
        weight: float32 [N]; 1 is added where ``plus_one``.

    Returns:
        x's shape in ``dtype``, contiguous.
    """
    width, heads = x.shape[-1], x.shape[1] if x.ndim == 3 else 1
    if x.ndim == 3 and (x.stride(2) != 1 or (heads > 1 and x.stride(1) != width)):
        x = x.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    block = triton.next_power_of_2(width)
    if len(x):
        _norm_kernel[(len(x) * heads,)](
            x,
            x,
            weight,
            out,
            x.stride(0),
            eps,
            heads,
            WIDTH=width,
            BLOCK=block,
            PLUS_ONE=plus_one,
            ADD=False,
            EARLY=early_launch(len(x)),
            num_warps=_warps(block),
            launch_pdl=early_launch(len(x)),
        )
    return out


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool) -> torch.Tensor:
    """``residual`` float32 [T, N] += x [T, N], in place; then its norm in x's type."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    if len(x):
        _norm_kernel[(len(x),)](
            x,
            residual,
            weight,
            out,
            x.stride(0),
            eps,
            1,
            WIDTH=x.shape[1],
            BLOCK=block,
            PLUS_ONE=plus_one,
            ADD=True,
            EARLY=early_launch(len(x)),
            num_warps=_warps(block),
            launch_pdl=early_launch(len(x)),
        )
    return out


def _warps(block: int) -> int:
    """Of a program: sixteen values a thread, within reason."""
    return min(max(block // 512, 1), 16)


@triton.jit(do_not_specialize=["heads"])
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    token_stride,
    eps,
    heads,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    ADD: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    offset = (row // heads).to(tl.int64) * token_stride + (row % heads) * WIDTH
    x = tl.load(x_ptr + offset + columns, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    place = row.to(tl.int64) * WIDTH + columns
    if ADD:
        x += tl.load(residual_ptr + place, mask=mask, other=0.0)
        tl.store(residual_ptr + place, x, mask=mask)
    if PLUS_ONE:
        weight += 1.0
    inverse = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    tl.store(out_ptr + place, (x * inverse * weight).to(out_ptr.dtype.element_ty), mask=mask)


def variants() -> Iterator[Variant]:
    """The forms of Llama 3, of a head norm, and the widest."""
    for name, width, kind, out, add in (
        ("add_4096", 4096, "bf16", "bf16", True),
        ("first_4096", 4096, "fp32", "bf16", False),
        ("heads_128", 128, "bf16", "bf16", False),
        ("add_576", 576, "fp16", "fp16", True),
        ("add_16384", 16384, "bf16", "bf16", True),
    ):
        block = triton.next_power_of_2(width)
        yield Variant(
            f"norm_{name}",
            _norm_kernel,
            {"x_ptr": f"*{kind}", "residual_ptr": "*fp32", "weight_ptr": "*fp32", "out_ptr": f"*{out}"}
            | {"token_stride": "i32", "eps": "fp32", "heads": "i32"},
            {"WIDTH": width, "BLOCK": block, "PLUS_ONE": False, "ADD": add, "EARLY": True},
            _warps(block),
            aligned=("x_ptr", "residual_ptr", "weight_ptr", "out_ptr", "token_stride"),
        )
