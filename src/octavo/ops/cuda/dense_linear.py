"""Products with a dense weight: our own kernel for few rows, cuBLAS for more."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from octavo.ops.cuda.activation import gated
from octavo.ops.cuda.skinny_linear import skinny_linear, takes


def dense_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, activation: str | None = None
) -> torch.Tensor:
    """x [T, K] times the weight [N, K] transposed, plus the bias [N].

    Args:
        dtype: of the result: that of x, or float32, to which nothing is rounded before.
        activation: None, or for a gated weight [2 I, K] silu or gelu_tanh: the result is act(gate) * up.

    Returns:
        [T, N], or [T, I].
    """
    if takes(x, weight):
        return skinny_linear(x, weight, bias, dtype, activation)
    if dtype == x.dtype:
        product = F.linear(x, weight, bias)
    elif x.is_cuda:
        product = torch.mm(x, weight.t(), out_dtype=dtype)
        product = product if bias is None else product.add_(bias)
    else:
        product = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return product if activation is None else gated(product, activation)


def multiply_into(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None) -> None:
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
