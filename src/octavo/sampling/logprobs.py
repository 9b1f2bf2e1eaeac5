"""Log probabilities of the model's own distribution: before bias, penalties, temperature and filters.

Ranks and lists follow one order: falling logits, equal ones by rising token id. So the n-th entry of a list has rank n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from octavo.batch import TokenLogprobs
from octavo.errors import InvalidLogitsError
from octavo.sampling.ranking import LANE, top_tokens
from octavo.sampling.rows import row_chunks, take_rows


def prompt_logprobs(logits: torch.Tensor, next_token_ids: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Log probabilities of the tokens that follow in a prompt.

    Args:
        logits: float32 [R, V]: those computed at R adjacent positions. Left as they are.
        next_token_ids: the R tokens at the positions after them.
        count: how many of the most likely tokens to list (0: none; -1: all).

    Raises:
        InvalidLogitsError: a row holds NaN or +inf, or nothing but -inf.
    """
    return token_logprobs(logits, list(enumerate(next_token_ids)), count)


def token_logprobs(
    logits: torch.Tensor, chosen: Sequence[tuple[int, int]], count: int, originals: Mapping[int, torch.Tensor] | None = None
) -> list[TokenLogprobs]:
    """Log probabilities of chosen tokens, each followed by those of the most likely ones.

    The chosen token stands first even where it is also in the list after it.

    Args:
        logits: float32 [R, V]. Left as they are.
        chosen: (row, token id) each.
        count: how many of the most likely tokens to list (0: none; -1: all).
        originals: rows [V] to be used instead of those in ``logits``.

    Raises:
        InvalidLogitsError: a row holds NaN or +inf, or nothing but -inf.
    """
    originals = originals or {}
    found: list[TokenLogprobs] = []
    for numbers in row_chunks(range(len(chosen)), logits):
        rows = [chosen[number][0] for number in numbers]
        if any(row in originals for row in rows):
            values = torch.stack([originals.get(row, logits[row]) for row in rows])
        else:
            values = take_rows(logits, rows, 1)
        found.extend(_chunk(values, rows, [chosen[number][1] for number in numbers], count))
    return found


def _chunk(logits: torch.Tensor, rows: list[int], chosen: list[int], count: int) -> list[TokenLogprobs]:
    """``token_logprobs`` of all rows of ``logits`` [len(rows), V]."""
    width = logits.shape[1]
    token = torch.tensor(chosen, device=logits.device).unsqueeze(1)
    logprobs = torch.log_softmax(logits, dim=1)
    chosen_logprobs = logprobs.gather(1, token)
    if torch.isnan(logprobs[:, 0]).any():
        wrong = torch.isnan(logprobs[:, 0]).tolist()
        raise InvalidLogitsError([row for row, bad in zip(rows, wrong, strict=True) if bad])
    ranks = _ranks(logits, chosen)
    ids, values = token, chosen_logprobs
    if wanted := min(width if count < 0 else count, width):
        best = top_tokens(take_rows(logits, range(len(rows)), LANE), wanted)
        ids = torch.cat([token, best], dim=1)
        values = torch.cat([chosen_logprobs, logprobs.gather(1, best)], dim=1)
    return [TokenLogprobs(*entry) for entry in zip(ids.tolist(), values.tolist(), ranks, strict=True)]


def _ranks(logits: torch.Tensor, chosen: list[int]) -> list[int]:
    """1 + how many tokens stand before each row's chosen one in ``logits`` [len(chosen), V]."""
    if logits.is_cpu:  # numpy counts with vector instructions, ten times as fast as torch
        return [
            1 + int(np.count_nonzero(row[:token] >= row[token]) + np.count_nonzero(row[token + 1 :] > row[token]))
            for row, token in zip(logits.numpy(), chosen, strict=True)
        ]
    token = torch.tensor(chosen, device=logits.device).unsqueeze(1)
    own = logits.gather(1, token)
    before = (logits > own) | ((logits == own) & (torch.arange(logits.shape[1], device=logits.device) < token))
    ranks: list[int] = (before.sum(dim=1) + 1).tolist()
    return ranks
