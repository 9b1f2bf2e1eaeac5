"""Linear products; several weights that read the same input are one product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.ops.base import Ops
from octavo.quantization.base import WeightSource


class Linear:
    """y = x Wᵀ + b, with W the rows of one or several checkpoint weights, packed as soon as they are read.

    Args:
        ops: the backend.
        weights: the checkpoint.
        names: tensors without their ``.weight`` or ``.bias``; their rows are stacked in this order.
        bias: whether each has a bias.

    Raises:
        ModelLoadError: a tensor is missing.
    """

    def __init__(self, ops: Ops, weights: WeightSource, names: Sequence[str], bias: bool = False) -> None:
        self.ops = ops
        self.packed = ops.pack_linear(
            _stacked(ops, weights, [f"{name}.weight" for name in names]),
            _stacked(ops, weights, [f"{name}.bias" for name in names]) if bias else None,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in features] to [T, out features of all weights together]."""
        return self.ops.linear(x, self.packed)


def _stacked(ops: Ops, weights: WeightSource, names: Sequence[str]) -> torch.Tensor:
    parts = [weights[name].dense(ops.dtype) for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
