"""The worker's memory between steps: which sequences it knows, their tokens and block tables, and the tensors of a step.

A step's plan comes as differences (``octavo.batch``); this file applies them to persistent host arrays, one row a sequence, and
lays out the flat token tensors that the model reads. Everything here is numpy on the host; only ``prepare`` makes tensors.

Where the device samples, a step may be prepared before the tokens of the one before are known here: they are read on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from octavo.batch import Batch, ScheduledSequence
from octavo.ops.base import AttentionBatch
from octavo.ops.transfer import to_device
from octavo.runner.device_tokens import DeviceTokens, DrawnRows
from octavo.sampling.grammar import Grammars
from octavo.sampling.state import SequenceState


@dataclass(slots=True)
class StepInputs:
    """One step as the model reads it.

    Attributes:
        token_ids: int64 [T] on the device; 0 where the host does not know a token yet.
        unknown: (places in ``token_ids``, the sequences' rows), int64 [P] on the device, of those tokens; None where all are known.
        attention: the step's geometry.
        sample_rows: rows of [T] whose logits the host samples, in batch order.
        states: the sampling states of those rows' sequences.
        drawn: the rows that the device samples; None where there are none.
    """

    token_ids: torch.Tensor
    unknown: tuple[torch.Tensor, torch.Tensor] | None
    attention: AttentionBatch
    sample_rows: list[int]
    states: list[SequenceState]
    drawn: DrawnRows | None


class InputBatch:
    """Persistent per-sequence state of a worker.

    Args:
        max_num_seqs: most sequences known at once.
        max_model_len: longest context in tokens.
        block_size: token slots in a block.
        vocab_size: V.
        device: where a step's tensors go.
        cores_free: whether there are cores beside those that the model keeps busy.
        device_samples: whether the device samples simple sequences.
        samples: whether this worker is the one that samples; others hear of the tokens.

    Attributes:
        grammars: the forms that sequences are held to.
        device_tokens: what sampling on the device needs.
        states: the known sequences' sampling states, by ``seq_id``.
        scored: those that ask for log probabilities of their prompts.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        vocab_size: int,
        device: torch.device,
        cores_free: bool = True,
        device_samples: bool = False,
        samples: bool = True,
    ) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.device = device
        self.grammars = Grammars(cores_free=cores_free)
        self.device_tokens = DeviceTokens(max_num_seqs, vocab_size, device, device_samples)
        self.states: dict[int, SequenceState] = {}
        self._samples = samples
        self.scored: set[int] = set()
        self._row_of: dict[int, int] = {}
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)

    def apply(self, batch: Batch) -> None:
        """Take in what changed: forget dropped sequences, learn new ones, update block tables."""
        for seq_id in batch.dropped:
            self.scored.discard(seq_id)
            if self.states.pop(seq_id, None) is not None:
                self._free_rows.append(self._row_of.pop(seq_id))
        for new in batch.new:
            state = self.states[new.seq_id] = SequenceState(new, self.vocab_size, self.grammars if self._samples else None)
            if new.params.prompt_logprobs is not None:
                self.scored.add(new.seq_id)
            row = self._row_of[new.seq_id] = self._free_rows.pop()
            self.device_tokens.learn(row, state)
        for entry in batch.scheduled:
            if entry.block_ids:
                row = self._tables[self._row_of[entry.seq_id]]
                row[entry.table_start : entry.table_start + len(entry.block_ids)] = entry.block_ids

    def hear(self, tokens: list[tuple[int, int]]) -> None:
        """Take in (sequence, token) that another worker sampled; comes before the step that reads them.

        Those that the device samples are known from there, and a sequence may be dropped by now.
        """
        if self._samples:
            return
        for seq_id, token in tokens:
            if (state := self.states.get(seq_id)) is not None and not self.device_tokens.simple[self._row_of[seq_id]]:
                state.append(token)

    def prepare(self, scheduled: list[ScheduledSequence]) -> StepInputs:
        """Lay out one step's tensors; sequences stay in batch order. Tokens that the device is to sample are pending from now on."""
        count = len(scheduled)
        starts = np.fromiter((entry.num_computed for entry in scheduled), np.int64, count)
        lens = np.fromiter((entry.num_tokens for entry in scheduled), np.int64, count)
        rows = np.fromiter((self._row_of[entry.seq_id] for entry in scheduled), np.int64, count)
        sampled = np.fromiter((entry.samples for entry in scheduled), bool, count)
        contexts = starts + lens
        query_starts = np.zeros(count + 1, dtype=np.int32)
        np.cumsum(lens, out=query_starts[1:])
        ends = query_starts[1:].astype(np.int64) - 1
        total = int(query_starts[-1])
        # Token t belongs to sequence owner[t]; its position is its offset in the chunk plus what was computed before.
        owner = np.repeat(np.arange(count), lens)
        positions = np.arange(total) - query_starts[:-1][owner] + starts[owner]
        blocks = self._tables[rows[owner], positions // self.block_size].astype(np.int64)
        slots = blocks * self.block_size + positions % self.block_size
        widest = -(-int(contexts.max()) // self.block_size)
        unknown = self.device_tokens.pending[rows] > 0  # such a sequence computes this token alone
        drawn = sampled & self.device_tokens.simple[rows]
        token_ids = np.zeros(total, dtype=np.int64)
        for index in np.flatnonzero(~unknown).tolist():
            entry, begin = scheduled[index], query_starts[index]
            tokens = self.states[entry.seq_id].token_ids
            token_ids[begin : begin + entry.num_tokens] = tokens[entry.num_computed : entry.num_computed + entry.num_tokens]
        arrays = [token_ids, positions, slots, query_starts, contexts.astype(np.int32), self._tables[rows, :widest]]
        arrays += [ends[unknown], rows[unknown], ends[drawn], rows[drawn]]
        moved = to_device(arrays, self.device)
        attention = AttentionBatch(
            positions=moved[1],
            slots=moved[2],
            query_starts=moved[3],
            context_lens=moved[4],
            block_tables=moved[5],
            query_lens=lens.tolist(),
            context_lens_host=contexts.tolist(),
            block_size=self.block_size,
        )
        by_host = np.flatnonzero(sampled & ~drawn).tolist()
        return StepInputs(
            token_ids=moved[0],
            unknown=(moved[6], moved[7]) if unknown.any() else None,
            attention=attention,
            sample_rows=ends[by_host].tolist(),
            states=[self.states[scheduled[index].seq_id] for index in by_host],
            drawn=self._drawn(scheduled, drawn, rows, contexts, moved[8], moved[9]) if drawn.any() else None,
        )

    def _drawn(
        self,
        scheduled: list[ScheduledSequence],
        drawn: npt.NDArray[np.bool_],
        rows: npt.NDArray[np.int64],
        contexts: npt.NDArray[np.int64],
        hidden_rows: torch.Tensor,
        device_rows: torch.Tensor,
    ) -> DrawnRows:
        self.device_tokens.pending[rows[drawn]] += 1
        params = self.device_tokens.params(rows[drawn], contexts[drawn])
        states = [self.states[scheduled[index].seq_id] for index in np.flatnonzero(drawn).tolist()]
        return DrawnRows(states, hidden_rows, device_rows, params)

    def settle(self, state: SequenceState, token: int) -> None:
        """Take in a token that the device sampled, -1 if it could not. The sequence may be dropped by now, and its row another's."""
        if self.states.get(state.seq_id) is state:
            self.device_tokens.pending[self._row_of[state.seq_id]] -= 1
        if token >= 0:
            state.append(token)
