"""Products with a stacked weight: one of its parts after another, each into its own columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.ops.cuda.activation import gated
from octavo.ops.cuda.dense_linear import dense_linear
from octavo.ops.cuda.quantized_linear import linear
from octavo.ops.cuda.weights import DensePart, DevicePart


@dataclass(frozen=True, slots=True)
class StackedWeight:
    """A weight [N, K] on the device, and its bias.

    Attributes:
        parts: which share the N columns of the product among them, in order.
        bias: [N] in the compute type, or None.
    """

    parts: list[DevicePart]
    bias: torch.Tensor | None

    @property
    def out_features(self) -> int:
        """N."""
        return sum(part.out_features for part in self.parts)


def stacked_linear(x: torch.Tensor, weight: StackedWeight, dtype: torch.dtype, activation: str | None = None) -> torch.Tensor:
    """x [T, K] times the weight transposed, plus the bias.

    Args:
        x: in the compute type, columns adjacent.
        dtype: of the result: that of x, or float32, to which nothing is rounded before.
        activation: None, or for a gated weight [2 I, K] silu or gelu_tanh: the result is act(gate) * up.

    Returns:
        [T, N], or [T, I].
    """
    first = weight.parts[0]
    if len(weight.parts) == 1 and isinstance(first, DensePart):
        return dense_linear(x, first.weight, weight.bias, dtype, activation)
    out = torch.empty((len(x), weight.out_features), dtype=dtype, device=x.device)
    for part in weight.parts:
        columns = slice(part.first, part.first + part.out_features)
        linear(x, part, out[:, columns], None if weight.bias is None else weight.bias[columns])
    return out if activation is None else gated(out, activation)
