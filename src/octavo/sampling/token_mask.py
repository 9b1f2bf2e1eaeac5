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


def apply_mask(logits: torch.Tensor, mask: Mask) -> None:
    """Forbid in place what a mask does not allow, and all beyond it.

    Args:
        logits: float32 [V], one row.
    """
    limits = _LIMITS[mask].reshape(-1)
    size = min(len(limits), logits.shape[0])
    if logits.is_cpu:
        row = logits.numpy()
        np.minimum(row[:size], limits[:size], out=row[:size])
    else:
        torch.minimum(logits[:size], torch.from_numpy(limits[:size]).to(logits.device), out=logits[:size])
    logits[size:] = float("-inf")
