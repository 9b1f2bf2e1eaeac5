"""The gated feed-forward network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.layers.linear import GatedLinear, Linear
from octavo.ops.base import Ops
from octavo.quantization.base import WeightSource


class GatedMLP:
    """down(act(gate x) * up x); gate and up are one product.

    The ranks of ``ops.group`` each have some of the columns between, and sum what they put out.

    Args:
        prefix: of the tensor names, such as ``model.layers.0.mlp``.
        gate_up: the names of gate and up, or the one name of a tensor that holds both.
        activation: ``silu`` or ``gelu_tanh``.
    """

    def __init__(
        self,
        ops: Ops,
        weights: WeightSource,
        prefix: str,
        gate_up: Sequence[str],
        activation: str,
        bias: bool,
    ) -> None:
        self.ops = ops
        self.gate_up = GatedLinear(ops, weights, [f"{prefix}.{name}" for name in gate_up], activation, bias)
        self.down = Linear(ops, weights, [f"{prefix}.down_proj"], bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H] to [T, H]."""
        return self.ops.all_reduce(self.down(self.gate_up(x)))
