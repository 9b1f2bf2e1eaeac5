"""Random weights in every block format that the GPU's kernels are given, and what they stand for."""

from __future__ import annotations

import numpy as np
import torch
from weight_blocks import spelled_out

from octavo.ops.base import BlockWeight

FORMATS = ("4_zero8", "4_minima", "8_signed", "8_zero16", "8_minima", "8_rows")


def drawn_blocks(name: str, rows: int, columns: int, seed: int = 0) -> BlockWeight:
    """A weight [rows, columns] of standard deviation about 0.05; its arrays are read-only, and views as those of a mapped file are.

    Args:
        name: one of ``FORMATS``.
        columns: a multiple of 32.
    """
    rng = np.random.default_rng(seed)
    bits, blocks = int(name[0]), columns // 32
    kind = np.int8 if name in ("8_signed", "8_rows") else np.uint8
    low, high = {"8_signed": (-128, 128), "8_rows": (-127, 128), "8_zero16": (0, 32)}.get(name, (0, 256))
    wide = rng.integers(low, high, (rows, blocks, 4 * bits + 2), dtype=kind)
    values = wide[:, :, 2:]
    deviation = {"4_zero8": 4.6, "4_minima": 4.6, "8_zero16": 9.2}.get(name, 74.0)
    zero = {"4_zero8": 8, "8_zero16": 16}.get(name, 0)
    shape = (rows, 1) if name == "8_rows" else (rows, blocks)
    scales = (rng.uniform(0.5, 1.5, shape) * 0.05 / deviation).astype(np.float32 if name == "8_rows" else np.float16)
    minima = -(scales * (2**bits / 2) * rng.uniform(0.8, 1.2, shape)).astype(np.float16) if name.endswith("minima") else None
    for array in (values, scales, minima):
        if array is not None:
            array.flags.writeable = False
    return BlockWeight(bits, values, zero, scales, minima)


def stands_for(weight: BlockWeight) -> torch.Tensor:
    """float32 [N, K]."""
    return torch.from_numpy(spelled_out(weight))
