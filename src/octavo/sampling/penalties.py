"""Presence, frequency and repetition penalties, applied to the few tokens they concern.

A token ``t`` that occurred, with logit x, output count c, gets

    x / r if x > 0 else x * r     where it is in the prompt or the output    (repetition penalty r; Keskar et al. 2019, CTRL)
    - f * c - p                   where it is in the output, c > 0           (frequency f and presence p, as OpenAI defines them)

in this order, computed in float64 and rounded once. All other tokens are untouched, so the cost grows with the distinct tokens
of the history, not with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from octavo.sampling.growing import GrowingArray
from octavo.sampling_params import SamplingParams

IntArray = npt.NDArray[np.int64]


class TokenCounts:
    """The distinct tokens of a history and how often each is in the output.

    Args:
        prompt: int64; its tokens count as seen, with an output count of 0.
        output: int64.
    """

    __slots__ = ("_counts", "_ids", "_places")

    def __init__(self, prompt: IntArray, output: IntArray) -> None:
        ids, places = np.unique(np.concatenate([prompt, output]), return_inverse=True)
        counts = np.bincount(places[len(prompt) :], minlength=len(ids)).astype(np.int64)
        self._ids = GrowingArray(ids)
        self._counts = GrowingArray(counts)
        self._places = {token: place for place, token in enumerate(ids.tolist())}

    def add(self, token_id: int) -> None:
        """Count one more output token."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids.view):
            self._ids.append(token_id)
            self._counts.append(1)
        else:
            self._counts.view[place] += 1

    @property
    def ids(self) -> IntArray:
        """Distinct token ids."""
        return self._ids.view

    @property
    def counts(self) -> IntArray:
        """How often each of ``ids`` is in the output."""
        return self._counts.view


def needs_counts(params: SamplingParams) -> bool:
    """Whether any penalty is on."""
    return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


def apply_penalties(logits: torch.Tensor, entries: Sequence[tuple[int, SamplingParams, TokenCounts]]) -> None:
    """Penalise in place.

    A logit that a penalty would carry past float32's range stays at its end; one that is infinite stays so.

    Args:
        logits: float32 [R, V], contiguous.
        entries: (row, parameters, counts), at most one a row. A prompt token id of V or more has no logit and is passed over.
    """
    indices, divisors, subtrahends = [], [], []
    width = logits.shape[1]
    for row, params, tokens in entries:
        counts = tokens.counts
        indices.append(tokens.ids + row * width)
        divisors.append(np.full(len(counts), params.repetition_penalty))
        subtrahends.append(params.frequency_penalty * counts + params.presence_penalty * (counts > 0))
    where = torch.from_numpy(np.concatenate(indices)).to(logits.device)
    divisor = torch.from_numpy(np.concatenate(divisors)).to(logits.device)
    subtrahend = torch.from_numpy(np.concatenate(subtrahends)).to(logits.device)
    flat = logits.view(-1)
    old = flat[where].double()
    limit = torch.finfo(torch.float32).max
    new = (torch.where(old > 0, old / divisor, old * divisor) - subtrahend).clamp_(-limit, limit)
    flat[where] = torch.where(torch.isinf(old), old, new).float()
