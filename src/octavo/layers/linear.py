"""Linear products; several weights that read the same input are one product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.ops.base import Ops, WeightPart
from octavo.quantization.base import WeightSource
from octavo.quantization.formats import is_vocabulary, load_packed, resolve


class Linear:
    """y = x Wᵀ + b, with W the rows of one or several checkpoint weights, packed as soon as they are read.

    Args:
        ops: the backend.
        weights: the checkpoint.
        names: tensors without their ``.weight`` or ``.bias``; their rows are stacked in this order.
        bias: whether each has a bias.

    Raises:
        ModelLoadError: a tensor is missing, or cannot be quantised as asked.
    """

    gated = False

    def __init__(self, ops: Ops, weights: WeightSource, names: Sequence[str], bias: bool = False) -> None:
        self.ops = ops
        self.packed = ops.pack_linear(
            [weight_part(ops, weights, f"{name}.weight") for name in names],
            torch.cat([weights[f"{name}.bias"].dense(ops.dtype) for name in names]) if bias else None,
            self.gated,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in features] to [T, out features of all weights together]."""
        return self.ops.linear(x, self.packed)


class GatedLinear(Linear):
    """act(gate x) * up x, with gate and up stacked in this order; see ``Linear``.

    Args:
        activation: ``silu`` or ``gelu_tanh``.
    """

    gated = True

    def __init__(self, ops: Ops, weights: WeightSource, names: Sequence[str], activation: str, bias: bool = False) -> None:
        super().__init__(ops, weights, names, bias)
        self.activation = activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in features] to [T, half the out features of all weights together]."""
        return self.ops.gated_linear(x, self.packed, self.activation)


def weight_part(ops: Ops, weights: WeightSource, name: str) -> WeightPart:
    """A weight as the backend is to have it: quantised where it is or shall be and the backend multiplies such ones, else dense."""
    stored = weights[name]
    packed = load_packed(stored, resolve(stored.format, weights.quantization, is_vocabulary(name))) if ops.runs_blocks else None
    return stored.dense(ops.dtype) if packed is None else packed
