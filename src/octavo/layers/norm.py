"""Root-mean-square normalisation."""

from __future__ import annotations

import torch

from octavo.ops.base import Ops
from octavo.quantization.base import WeightSource


class RMSNorm:
    """x / rms(x) * weight over the last dimension, in float32 (Zhang and Sennrich, 2019).

    The weight is kept in float32, so that a backend multiplies without converting it in every call.

    Args:
        name: the tensor without its ``.weight``.
        plus_one: multiply by 1 + weight (Gemma).
    """

    def __init__(self, ops: Ops, weights: WeightSource, name: str, eps: float, plus_one: bool = False) -> None:
        self.ops = ops
        self.weight = weights[f"{name}.weight"].dense(torch.float32).to(ops.device)
        self.eps = eps
        self.plus_one = plus_one

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape [..., size of the weight] to the same shape."""
        return self.ops.rms_norm(x, self.weight, self.eps, self.plus_one)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x + residual`` normalised, and the sum itself; ``residual`` may be overwritten."""
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps, self.plus_one)
