"""From logits to a drawn token: temperature, then min_p, top_k, top_p, then one draw.

Probabilities become whole numbers, ``floor(softmax * 2**52)``, held as floats. A row's weights sum to less than 2**53, so every sum of
them in float64 is exact, whatever its order: a row's token cannot depend on threads, on the rows around it, or on whether a
few candidates or the whole vocabulary were sorted. A token below 2**-52 has weight 0 and is never drawn.

The filters, in the order in which they apply:

- min_p keeps tokens with a probability of at least min_p times the largest (compared as logits: x - max >= T ln min_p).
- top_k keeps the k most likely of those; of equal logits, the lower ids.
- top_p keeps the fewest most likely of those whose weights sum to top_p of their sum or more; at least one.

The draw is the inverse of the cumulative weights at ``floor(u * total)``: in order of token ids for a row without top_k and
top_p, in order of falling logits for a row with one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from octavo.sampling.ranking import LANE, LANES, leaders
from octavo.sampling.rows import check_finite, row_chunks, take_rows

_WEIGHT_ONE = 2.0**52
_BLOCK = 128
"""Tokens whose weights are summed before a draw searches them; rows are padded to a multiple of it."""
_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

assert _BLOCK % LANE == 0


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row's token is drawn.

    Attributes:
        row: its row of the logits.
        uniform: the random number in [0, 1).
        temperature: > 0.
        top_k: 0 where off, else less than V. top_p: 1 where off. min_p: 0 where off.
    """

    row: int
    uniform: float
    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def ranked(self) -> bool:
        """Whether the filters need the order of the tokens."""
        return self.top_k > 0 or self.top_p < 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """How a row's token is drawn from all tokens, until one is allowed.

    Attributes:
        row: its row of the logits.
        uniform: the random number in [0, 1) of an attempt.
        temperature: > 0.
        allows: whether a token may be drawn.
    """

    row: int
    uniform: Callable[[int], float]
    temperature: float
    allows: Callable[[int], bool]


def draw_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token for each draw, from float32 logits [R, V], which are left as they are.

    Raises:
        InvalidLogitsError: a row holds NaN or +inf, or nothing but -inf.
    """
    tokens: dict[int, int] = {}
    for ranked, method in ((False, _draw_by_id), (True, _draw_by_rank)):
        draw_of = {draw.row: draw for draw in draws if draw.ranked is ranked}
        for rows in row_chunks(list(draw_of), logits):
            chunk = [draw_of[row] for row in rows]
            values = take_rows(logits, rows, _BLOCK)
            tokens.update(zip(rows, method(values, _weights(values, chunk), chunk), strict=True))
    return [tokens[draw.row] for draw in draws]


def draw_allowed(logits: torch.Tensor, trials: Sequence[Trial], tries: int) -> list[int | None]:
    """For each row the first of a few draws that is allowed; None where none is. The logits are left as they are.

    Such a token is distributed as a draw among the allowed ones is (rejection sampling), and so it is where a draw among those, with
    a number of its own, takes the place of None.

    Raises:
        InvalidLogitsError: a row holds NaN or +inf, or nothing but -inf.
    """
    trial_of = {trial.row: trial for trial in trials}
    tokens: dict[int, int | None] = {}
    for rows in row_chunks(list(trial_of), logits):
        chunk = [trial_of[row] for row in rows]
        weights = _weights(take_rows(logits, rows, _BLOCK), [Draw(trial.row, 0.0, trial.temperature) for trial in chunk])
        blocks = weights.view(len(rows), -1, _BLOCK)
        ends = _block_sums(weights).cumsum(dim=1).cpu().numpy()
        for place, trial in enumerate(chunk):
            tokens[trial.row] = _first_allowed(ends[place], blocks[place], trial, tries)
    return [tokens[trial.row] for trial in trials]


def _first_allowed(ends: npt.NDArray[np.float64], blocks: torch.Tensor, trial: Trial, tries: int) -> int | None:
    """The first of a row's draws that is allowed.

    Args:
        ends: float64 [B], cumulative sums of the row's blocks. blocks: float32 [B, _BLOCK], its weights.
    """
    for attempt in range(tries):
        target = math.floor(trial.uniform(attempt) * ends[-1])
        block = int(ends.searchsorted(target, "right"))
        token = _within_block(ends, block, blocks[block].cpu().numpy(), target)
        if trial.allows(token):
            return token
    return None


def _weights(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Whole-number weights, float32 [R, W], after temperature and min_p.

    ``softmax`` works on each row alone with the same vector code for every element, so that a row's bits do not depend on its place.
    """
    best = logits.amax(dim=1, keepdim=True)
    check_finite(best.squeeze(1), [draw.row for draw in draws])
    behind = logits - best
    for place, draw in enumerate(draws):
        if draw.min_p > 0.0:
            torch.threshold_(behind[place], _below(draw.temperature * math.log(draw.min_p)), float("-inf"))
    # Kept inside float32's normal numbers, so that 0 * factor is 0 and -inf * factor is -inf.
    factors = [min(max(1.0 / max(draw.temperature, _SMALLEST), _SMALLEST), _LARGEST) for draw in draws]
    scaled = behind.mul_(torch.tensor(factors, dtype=torch.float32, device=logits.device).unsqueeze(1))
    return torch.softmax(scaled, dim=1).mul_(_WEIGHT_ONE).floor_()


def _below(bar: float) -> float:
    """The float32 before ``bar``: to be above it is to be at least ``bar``, and ``threshold_`` keeps what is above."""
    return float(np.nextafter(np.float32(max(bar, -_LARGEST)), np.float32(-np.inf)))


def _draw_by_id(logits: torch.Tensor, weights: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw from all weights [R, W] in order of token ids. First the block is found, then the token in it."""
    blocks = weights.view(weights.shape[0], -1, _BLOCK)
    ends = _block_sums(weights).cumsum(dim=1).cpu().numpy()
    targets = [_target(draw, row[-1]) for draw, row in zip(draws, ends, strict=True)]
    found = [int(row.searchsorted(target, "right")) for row, target in zip(ends, targets, strict=True)]
    inside = blocks[torch.arange(len(found)), torch.tensor(found)].cpu().numpy()
    return [_within_block(ends[row], block, inside[row], targets[row]) for row, block in enumerate(found)]


def _within_block(ends: npt.NDArray[np.float64], block: int, weights: npt.NDArray[np.float32], target: int) -> int:
    """The token at which a row's cumulative weights exceed ``target``; its block is known, and the weights float32 [_BLOCK] in it."""
    start = ends[block - 1] if block else 0.0
    return block * _BLOCK + int((weights.cumsum(dtype=np.float64) + start).searchsorted(target, "right"))


def _draw_by_rank(logits: torch.Tensor, weights: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Filter by top_k and top_p and draw in order of falling logits.

    A few leading tokens nearly always hold all that the filters keep; rows where they do not get more, at last all.
    """
    totals = _block_sums(weights).sum(dim=1).tolist()
    tokens: dict[int, int] = {}
    pending = list(range(len(draws)))
    for lanes in (*LANES, None):
        leading = leaders(logits[pending] if tokens else logits, lanes)
        ranked = (weights[pending] if tokens else weights).gather(1, leading.ids).cpu().numpy()
        ids = leading.ids.cpu().numpy()
        for place, row in enumerate(pending):
            known = leading.exact[place]
            token = _draw_leading(ids[place, :known], ranked[place, :known], leading.complete[place], totals[row], draws[row])
            if token is not None:
                tokens[row] = token
        pending = [row for row in pending if row not in tokens]
        if not pending:
            break
    return [tokens[row] for row in range(len(draws))]


def _draw_leading(ids: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], complete: bool, total: float, draw: Draw) -> int | None:
    """Filter and draw from a row's leading tokens; None where they may not hold all that the filters keep.

    Args:
        ids: the row's first tokens in order. weights: theirs.
        complete: whether all others have weight 0.
        total: the sum of the whole row's weights.
    """
    ends = weights.cumsum(dtype=np.float64)
    kept = len(ids)
    if draw.top_k:
        if draw.top_k > kept and not complete:
            return None
        kept = min(kept, draw.top_k)
        total = ends[kept - 1]
    if draw.top_p < 1.0:
        enough = int(ends.searchsorted(draw.top_p * total, "left")) + 1
        if enough > len(ids):
            return None
        kept = min(kept, enough)
    return int(ids[ends.searchsorted(_target(draw, ends[kept - 1]), "right")])


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """Exact sums of blocks of adjacent weights [R, W]: float64 [R, W / _BLOCK]."""
    return weights.view(weights.shape[0], -1, _BLOCK).sum(dim=2, dtype=torch.float64)


def _target(draw: Draw, total: float) -> int:
    """The whole number in [0, total) that a draw looks up; the token is the first whose cumulative weight exceeds it.

    The rounded product stays below ``total``: the largest ``uniform``, 1 - 2**-53, takes off at least half the gap to the float before.
    """
    return math.floor(draw.uniform * total)
