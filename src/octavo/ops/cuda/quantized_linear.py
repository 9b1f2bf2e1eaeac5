"""Products with a part of a stacked weight, however it is held (``weights.py``), and looking rows up in it.

A few rows meet numbers of 4 and 8 bits as they are (``block_product.py``). For many the weight is spelled out in the compute type, some of
its rows at a time, and cuBLAS multiplies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from octavo.ops.cuda.block_product import block_product
from octavo.ops.cuda.block_rows import dequantize, look_up
from octavo.ops.cuda.dense_linear import multiply_into
from octavo.ops.cuda.float8_linear import float8_linear
from octavo.ops.cuda.split_sums import MOST_ROWS
from octavo.ops.cuda.weights import TILE_ROWS, BlockPart, DensePart, DevicePart, Float8Part
from octavo.ops.workspace import CUDA_SPELLED_OUT_BYTES

FUSED_ROWS = 128
"""Most rows that are multiplied without spelling the weight out: beyond, each tile's own unpacking costs more than one for all."""

assert FUSED_ROWS <= MOST_ROWS


def linear(x: torch.Tensor, part: DevicePart, out: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """x times a weight transposed, plus the bias, into ``out``.

    Args:
        x: [M, K] in the compute type, columns adjacent.
        out: [M, N] in the compute type or float32, columns adjacent, rows perhaps further apart; all is overwritten.
        bias: [N] in the compute type.
    """
    if not len(x):
        return
    if isinstance(part, DensePart):
        multiply_into(x, part.weight, out, bias)
    elif isinstance(part, Float8Part):
        float8_linear(x, part, out, bias)
    elif len(x) > FUSED_ROWS:
        _spelled_out(x, part, out, bias)
    else:
        block_product(x, part, out, bias)


def gather_rows(table: DevicePart, ids: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Rows of a table [V, H], dense or in blocks, times ``scale``.

    Args:
        ids: int64 [T].

    Returns:
        float32 [T, H]; a dense table's products are rounded to its type.
    """
    if isinstance(table, DensePart):
        rows = F.embedding(ids, table.weight)
        return (rows if scale == 1.0 else rows.mul_(scale)).float()
    if isinstance(table, Float8Part):
        raise TypeError("token tables are not held as float8 numbers")
    return look_up(table, ids, scale)


def _spelled_out(x: torch.Tensor, part: BlockPart, out: torch.Tensor, bias: torch.Tensor | None) -> None:
    columns = x.shape[1]
    step = max(1, CUDA_SPELLED_OUT_BYTES // (TILE_ROWS * part.in_features * part.dtype.itemsize)) * TILE_ROWS
    for start in range(0, part.out_features, step):
        stop = min(start + step, part.out_features)
        dense = dequantize(part, start, stop)
        multiply_into(x, dense[:, :columns], out[:, start:stop], None if bias is None else bias[start:stop])
