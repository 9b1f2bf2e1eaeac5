"""Gated activation: act(gate) * up of a product that has gate and up beside each other.

rows t, runs of BLOCK columns: a program each
    x [T, 2 I]: gate at columns 0 .. I - 1, up at I .. 2 I - 1 -> out [T, I]
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

_BLOCK = 1024


def gated(x: torch.Tensor, kind: str) -> torch.Tensor:
    """[T, 2 I], contiguous, to [T, I] in the same type, computed in float32.

    Args:
        kind: silu or gelu_tanh.
    """
    if kind not in ("silu", "gelu_tanh"):
        raise ValueError(f"activation {kind!r} is not one of silu, gelu_tanh")
    width = x.shape[1] // 2
    out = torch.empty((len(x), width), dtype=x.dtype, device=x.device)
    if len(x):
        _gated_kernel[(len(x), triton.cdiv(width, _BLOCK))](
            x, out, WIDTH=width, BLOCK=_BLOCK, SILU=kind == "silu", EARLY=early_launch(len(x)), num_warps=4, launch_pdl=early_launch(len(x))
        )
    return out


@triton.jit
def _gated_kernel(x_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    gate = tl.load(x_ptr + row * 2 * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * WIDTH + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        active = gate * tl.sigmoid(gate)
    else:
        # gelu_tanh(x) = x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)): tanh(y) = 2 sigmoid(2 y) - 1.
        active = gate * tl.sigmoid(2.0 * 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate))
    tl.store(out_ptr + row * WIDTH + columns, (active * up).to(out_ptr.dtype.element_ty), mask=mask)


def variants() -> Iterator[Variant]:
    """The forms of Llama 3 and Gemma 2."""
    for name, width, kind, silu in (("silu", 14336, "bf16", True), ("gelu", 9216, "bf16", False), ("float32", 1536, "fp32", True)):
        yield Variant(
            f"gated_{name}",
            _gated_kernel,
            {"x_ptr": f"*{kind}", "out_ptr": f"*{kind}"},
            {"WIDTH": width, "BLOCK": _BLOCK, "SILU": silu, "EARLY": True},
            aligned=("x_ptr", "out_ptr"),
        )
