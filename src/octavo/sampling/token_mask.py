"""Sets of tokens that may come next, a bit a token: small to hand between threads, and quick to put on a row of logits.

Token t is bit t % 8 of byte t // 8. Bits beyond the vocabulary are 0. Making ids of a mask costs more than everything else together
(100 microseconds for 50,000 tokens), so nothing on the way of a plain form does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch

Mask = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

_LIMITS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, np.inf, -np.inf).astype(
    np.float32
)
"""float32 [256, 8]: for each byte of a mask the most that its eight tokens' logits may be."""


def mask_of_bytes(packed: bytes, size: int) -> Mask:
    """The mask of ``size`` tokens that stands at the start of ``packed``."""
    mask = np.frombuffer(packed, dtype=np.uint8, count=-(-size // 8)).copy()
    if size % 8:
        mask[-1] &= (1 << size % 8) - 1
    return mask


def mask_of_ids(ids: Collection[int], size: int) -> Mask:
    """The mask that allows these ids; those of ``size`` or more do not count."""
    allowed = np.zeros(size, dtype=np.uint8)
    allowed[[token for token in ids if 0 <= token < size]] = 1
    return np.packbits(allowed, bitorder="little")


def ids_of_mask(mask: Mask) -> list[int]:
    """The ids that a mask allows, rising."""
    allowed: list[int] = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
    return allowed


def holds(mask: Mask, token: int) -> bool:
    """Whether a mask allows a token."""
    return 0 <= token < 8 * len(mask) and bool(mask[token // 8] >> token % 8 & 1)


def without(mask: Mask, banned: Collection[int]) -> Mask:
    """A mask less the ``banned`` ids; the mask itself where that would leave none."""
    left = mask.copy()
    for token in banned:
        if 0 <= token < 8 * len(left):
            left[token // 8] &= 0xFF ^ (1 << token % 8)
    return left if left.any() else mask


def within(mask: Mask, allowed: Sequence[int]) -> Mask:
    """What both a mask and ``allowed`` allow; the mask itself where that is nothing."""
    both = mask & mask_of_ids(allowed, 8 * len(mask))
    return both if both.any() else mask


def apply_masks(logits: torch.Tensor, masks: Sequence[tuple[int, Mask]]) -> None:
    """Forbid in place what masks do not allow, and all beyond them.

    Args:
        logits: float32 [R, V], contiguous.
        masks: (row, mask), all masks of one size.
    """
    if not masks:
        return
    # One buffer for all rows: a new one a row would be pages that the system has to clear first.
    limits = np.empty((len(masks[0][1]), 8), dtype=np.float32)
    flat = limits.reshape(-1)[: logits.shape[1]]
    for row, mask in masks:
        np.take(_LIMITS, mask, axis=0, out=limits, mode="clip")  # nothing to clip: this is numpy's way without a copy
        values = logits[row, : len(flat)]
        if logits.is_cpu:
            np.minimum(values.numpy(), flat, out=values.numpy())
        else:
            torch.minimum(values, torch.from_numpy(flat).to(logits.device), out=values)
    if len(flat) < logits.shape[1]:
        logits[[row for row, _ in masks], len(flat) :] = float("-inf")
