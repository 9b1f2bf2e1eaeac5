"""The most likely tokens of a row in order, without sorting the vocabulary.

Order: by logit, falling; equal logits by token id, rising. Nothing here depends on how a sort treats equal keys: value and id
are packed into one integer, so that no two keys are equal.

Method: the vocabulary is cut into lanes of 16 tokens, lane ``j`` of ``L`` holding ids j, j + L, j + 2 L, ... (a layout whose maxima
are plain vector instructions). A token above the (n+1)-th largest lane maximum can only be in one of the n lanes before it, so
sorting those n lanes gives, down to that bar, exactly the order that sorting the whole row would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

LANE = 16
"""Tokens in a lane. Rows given to ``leaders`` are a multiple of it wide."""
LANES = (64, 1024)
"""How many lanes to try before the whole row is sorted."""
_ID_BITS = 32


@dataclass(slots=True)
class Leaders:
    """Each row's first tokens in order.

    Attributes:
        ids: int64 [R, C], candidates in order.
        exact: R numbers; the first so many candidates of a row are the whole row's first tokens.
        complete: R; whether all tokens after those have a logit of -inf.
    """

    ids: torch.Tensor
    exact: list[int]
    complete: list[bool]


def leaders(logits: torch.Tensor, lanes: int | None) -> Leaders:
    """Sort the ``lanes`` lanes with the largest maxima; None, or as many as there are, sorts everything.

    Args:
        logits: float32 [R, W], W a multiple of ``LANE``; without NaN.
    """
    rows, width = logits.shape
    total = width // LANE
    if lanes is None or lanes >= total:
        ids = _sorted_ids(logits, torch.arange(width, device=logits.device).expand(rows, width))
        return Leaders(ids, [width] * rows, [True] * rows)
    maxima, best = logits.view(rows, LANE, total).amax(dim=1).topk(lanes + 1, dim=1)
    bar = maxima[:, -1:]
    offsets = torch.arange(0, width, total, device=logits.device)
    candidates = (best[:, :-1].unsqueeze(1) + offsets.view(1, LANE, 1)).reshape(rows, lanes * LANE)
    values = logits.gather(1, candidates)
    return Leaders(
        _sorted_ids(values, candidates), (values > bar).sum(dim=1).tolist(), [value == -math.inf for value in bar.squeeze(1).tolist()]
    )


def top_tokens(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` most likely tokens of each row in order: int64 [R, count].

    Args:
        logits: float32 [R, W], W a multiple of ``LANE``; without NaN.
        count: at most W.
    """
    found = torch.empty(logits.shape[0], count, dtype=torch.int64, device=logits.device)
    pending = list(range(logits.shape[0]))
    for lanes in (*(n for n in LANES if n >= count), None):
        leading = leaders(logits if len(pending) == len(found) else logits[pending], lanes)
        done = [place for place, exact in enumerate(leading.exact) if exact >= count]
        found[[pending[place] for place in done]] = leading.ids[done, :count]
        pending = [row for row, exact in zip(pending, leading.exact, strict=True) if exact < count]
        if not pending:
            break
    return found


def _sorted_ids(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``ids`` [R, C] by falling float32 ``values`` [R, C], then by rising id.

    A float's bits order like a signed integer's once those of negative numbers are turned round; adding 0.0 makes -0.0 a 0.0.
    """
    bits = (values + 0.0).view(torch.int32)
    rising = bits ^ (bits >> 31 & 0x7FFFFFFF)
    keys = (~rising).to(torch.int64) << _ID_BITS | ids
    # numpy sorts 64-bit integers with vector instructions, several times as fast as torch does on a CPU.
    ordered = torch.from_numpy(np.sort(keys.numpy(), axis=1)) if keys.is_cpu else keys.sort(dim=1).values
    return ordered.bitwise_and_(2**_ID_BITS - 1)
