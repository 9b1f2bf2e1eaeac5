"""Dense weights to small integers at load: 8 bits with a scale a row, 4 bits with a scale for each block of 32.

Symmetric, and round to nearest (even): what a weight becomes depends on its row (its block) alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from octavo.errors import ModelLoadError
from octavo.ops.base import QUANT_BLOCK, BlockWeight

INT4_ZERO = 8
_PIECE_VALUES = 2**19
"""Values quantised at a time (a row where that is longer): long enough for torch's threads, short enough for a cache."""
_LARGEST_HALF = 65504.0
_NO_SCALE = 2.0**-26
"""Below this a 4-bit block's scale is nearest to the half 0."""
_INT4_STRETCHES = (0.84, 0.92, 0.97, 1.03, 1.12)
"""Scales tried for a 4-bit block, as multiples of the one that makes its largest magnitude -8. More of them gain next to nothing: normal
weights lose 8.1 % of their RMS with these as with thirty, 8.6 % by Q4_0's rule, which is 1.0 alone."""


def quantize_int8(weight: torch.Tensor) -> BlockWeight:
    """Signed 8 bits with one scale a row: its largest magnitude over 127.

    Args:
        weight: float [N, K]; K is filled up with zeros to a multiple of 32.

    Returns:
        int8 values with float32 scales [N, 1].

    Raises:
        ModelLoadError: a value is not finite.
    """
    rows, blocks = len(weight), -(-weight.shape[1] // QUANT_BLOCK)
    values = np.zeros((rows, blocks, QUANT_BLOCK), np.int8)
    scales = np.empty((rows, 1), np.float32)
    flat, flat_scales = torch.from_numpy(values).view(rows, blocks * QUANT_BLOCK)[:, : weight.shape[1]], torch.from_numpy(scales)
    for piece in _pieces(weight):
        x = weight[piece].float()
        magnitudes = _magnitudes(x)
        torch.div(magnitudes, 127, out=flat_scales[piece])
        # A row of zeros has the scale 0, and so has one of numbers so small that this quotient is no float.
        divisors = torch.where(flat_scales[piece] == 0, 1.0, flat_scales[piece])
        flat[piece] = (x / divisors).round_().clamp_(-127, 127)
    return BlockWeight(8, values, 0, scales)


def quantize_int4(weight: torch.Tensor) -> BlockWeight:
    """4 bits in blocks of 32, counted from 8, with the half-precision scale that leaves the least squared error of some that are tried.

    Args:
        weight: float [N, K]; K is filled up with zeros to a multiple of 32.

    Raises:
        ModelLoadError: a value is not finite, or larger than half-precision scales reach.
    """
    rows, columns = weight.shape
    blocks = -(-columns // QUANT_BLOCK)
    values = np.empty((rows, blocks, QUANT_BLOCK // 2), np.uint8)
    scales = np.empty((rows, blocks), np.float16)
    out_values, out_scales = torch.from_numpy(values), torch.from_numpy(scales)
    for piece in _pieces(weight):
        x = torch.nn.functional.pad(weight[piece].float(), (0, blocks * QUANT_BLOCK - columns)).view(-1, QUANT_BLOCK)
        magnitudes = _magnitudes(x)
        if (magnitudes > 7 * _LARGEST_HALF).any():
            raise ModelLoadError("holds values too large for 4 bits with a half-precision scale")
        half = _int4_scales(x).half()
        q = _int4_values(x, half.float()).add_(INT4_ZERO).byte()
        out_values[piece] = (q[:, : QUANT_BLOCK // 2] | (q[:, QUANT_BLOCK // 2 :] << 4)).view(-1, blocks, QUANT_BLOCK // 2)
        out_scales[piece] = half.view(-1, blocks)
    return BlockWeight(4, values, INT4_ZERO, scales)


def _pieces(weight: torch.Tensor) -> Iterator[slice]:
    step = max(1, _PIECE_VALUES // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def _magnitudes(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each row: [n, 1].

    Raises:
        ModelLoadError: one is not finite.
    """
    magnitudes = x.abs().amax(1, keepdim=True)
    if not magnitudes.isfinite().all():
        raise ModelLoadError("holds values that are not finite")
    return magnitudes


def _int4_scales(x: torch.Tensor) -> torch.Tensor:
    """The best scale of each block of [n, 32]: float32 [n, 1].

    Each stretch rounds the block to integers q; for these the best scale is sum(x q) / sum(q q), and the squared error it leaves is
    sum(x x) - sum(x q)^2 / sum(q q), so the stretch with the largest last term wins (llama.cpp's ``make_qx_quants`` reasons so too).
    """
    first = x.gather(1, x.abs().argmax(1, keepdim=True)) / -8
    first.masked_fill_(first.abs() < _NO_SCALE, 0.0)
    best = torch.zeros_like(first)
    most = torch.zeros_like(first)
    for stretch in _INT4_STRETCHES:
        q = _int4_values(x, first * stretch)
        product, square = (x * q).sum(1, keepdim=True), q.square_().sum(1, keepdim=True).clamp_(min=1)
        scales = product / square
        gain = product * scales
        better = gain > most
        best, most = torch.where(better, scales, best), torch.where(better, gain, most)
    return best


def _int4_values(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[n, 32] over [n, 1], rounded to -8 .. 7; zeros where the scale is 0."""
    return (x * torch.where(scales == 0, 0.0, 1 / scales)).round_().clamp_(-8, 7)
