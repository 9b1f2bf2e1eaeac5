"""Tokens that the device samples: they stay there for the next step to read, and the host hears of them later.

Each known sequence has a row, as everywhere in the worker. A *simple* sequence's row is sampled on the device; its token goes into
``DeviceTokens``' buffer, from which the next step takes it as input where the host does not know it yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from octavo.ops.base import SampleRows
from octavo.sampling.state import SequenceState


def is_simple(state: SequenceState) -> bool:
    """Whether a token depends on its logits, temperature, filters and seed alone, and is all that is asked for.

    The scheduler asks a request the same (``Request.simple``).
    """
    alone = state.constraints is None and state.counts is None and state.params.structured_outputs is None
    return alone and state.params.logprobs is None and state.params.prompt_logprobs is None


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """The R rows of a step that the device samples.

    Attributes:
        states: their sequences, in batch order.
        hidden_rows: int64 [R] on the device, rows of the step's T tokens.
        rows: int64 [R] on the device, the sequences' rows in the worker.
        params: how each is sampled, on the host.
    """

    states: list[SequenceState]
    hidden_rows: torch.Tensor
    rows: torch.Tensor
    params: SampleRows

    def chunks(self, size: int) -> Iterator[DrawnRows]:
        """The rows, at most ``size`` at a time."""
        for begin in range(0, len(self.states), size):
            part, all_rows = slice(begin, begin + size), self.params
            params = SampleRows(
                temperatures=all_rows.temperatures[part],
                top_ks=all_rows.top_ks[part],
                top_ps=all_rows.top_ps[part],
                min_ps=all_rows.min_ps[part],
                seeds=all_rows.seeds[part],
                positions=all_rows.positions[part],
            )
            yield DrawnRows(self.states[part], self.hidden_rows[part], self.rows[part], params)


class DeviceTokens:
    """What sampling on the device needs of each row of the worker.

    Args:
        num_rows: rows of the worker.
        vocab_size: V.
        device: where tokens are sampled.
        samples: whether it samples at all; if not, no row is simple and none is ever pending.

    Attributes:
        simple: bool [rows], which ones the device samples.
        pending: int64 [rows], how many tokens of a row the device has been told to sample and the host does not know yet.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device, samples: bool) -> None:
        self._samples = samples
        self.simple = np.zeros(num_rows, dtype=bool)
        self.pending = np.zeros(num_rows, dtype=np.int64)
        self._vocab_size = vocab_size
        self._temperatures = np.zeros(num_rows, dtype=np.float32)
        self._top_ks = np.zeros(num_rows, dtype=np.int32)
        self._top_ps = np.ones(num_rows, dtype=np.float32)
        self._min_ps = np.zeros(num_rows, dtype=np.float32)
        self._seeds = np.zeros(num_rows, dtype=np.int64)
        self._last = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def learn(self, row: int, state: SequenceState) -> None:
        """Give a row to a sequence."""
        if not self._samples:
            return
        params = state.params
        self.simple[row] = is_simple(state)
        self.pending[row] = 0
        self._temperatures[row] = 0.0 if state.greedy else params.temperature
        self._top_ks[row] = params.top_k if 0 < params.top_k < self._vocab_size else 0
        self._top_ps[row] = params.top_p
        self._min_ps[row] = params.min_p
        self._seeds[row] = np.uint64(state.seed % 2**64).astype(np.int64)

    def params(self, rows: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> SampleRows:
        """How rows [R] are sampled at ``positions`` [R]."""
        return SampleRows(
            temperatures=self._temperatures[rows],
            top_ks=self._top_ks[rows],
            top_ps=self._top_ps[rows],
            min_ps=self._min_ps[rows],
            seeds=self._seeds[rows],
            positions=positions,
        )

    def fill(self, token_ids: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> None:
        """Put the last tokens of ``rows`` int64 [P] at ``places`` int64 [P] of ``token_ids`` int64 [T], all on the device, in place."""
        token_ids.index_copy_(0, places, self._last.index_select(0, rows))

    def keep(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """Take in the tokens int64 [R] just sampled for ``rows`` int64 [R]; in the place of one that is invalid (-1) stands token 0.

        A sequence with an invalid row has failed, but the next step may be on its way with it: it must read some token.
        """
        self._last.index_copy_(0, rows, tokens.clamp(min=0))
