"""The worker's memory between steps: which sequences it knows, their tokens and block tables, and the tensors of a step.

A step's plan comes as differences (``octavo.batch``); this file applies them to persistent host arrays, one row a sequence, and
lays out the flat token tensors that the model reads. Everything here is numpy on the host; only ``prepare`` makes tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from octavo.batch import Batch, ScheduledSequence
from octavo.ops.base import AttentionBatch
from octavo.sampling.grammar import Grammars
from octavo.sampling.state import SequenceState


@dataclass(slots=True)
class StepInputs:
    """One step as the model reads it.

    Attributes:
        token_ids: int64 [T] on the device.
        attention: the step's geometry.
        sample_rows: rows of [T] whose logits are sampled, in batch order.
        states: the sampling states of those rows' sequences.
    """

    token_ids: torch.Tensor
    attention: AttentionBatch
    sample_rows: list[int]
    states: list[SequenceState]


class InputBatch:
    """Persistent per-sequence state of a worker.

    Args:
        max_num_seqs: most sequences known at once.
        max_model_len: longest context in tokens.
        block_size: token slots in a block.
        vocab_size: V.
        device: where a step's tensors go.
        cores_free: whether there are cores beside those that the model keeps busy.

    Attributes:
        grammars: the forms that sequences are held to.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, vocab_size: int, device: torch.device, cores_free: bool = True
    ) -> None:
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.device = device
        self.grammars = Grammars(cores_free=cores_free)
        self.states: dict[int, SequenceState] = {}
        self._row_of: dict[int, int] = {}
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)

    def apply(self, batch: Batch) -> None:
        """Take in what changed: forget dropped sequences, learn new ones, update block tables."""
        for seq_id in batch.dropped:
            if self.states.pop(seq_id, None) is not None:
                self._free_rows.append(self._row_of.pop(seq_id))
        for new in batch.new:
            self.states[new.seq_id] = SequenceState(new, self.vocab_size, self.grammars)
            self._row_of[new.seq_id] = self._free_rows.pop()
        for entry in batch.scheduled:
            if entry.block_ids:
                row = self._tables[self._row_of[entry.seq_id]]
                row[entry.table_start : entry.table_start + len(entry.block_ids)] = entry.block_ids

    def prepare(self, scheduled: list[ScheduledSequence]) -> StepInputs:
        """Lay out one step's tensors; sequences stay in batch order."""
        count = len(scheduled)
        starts = np.fromiter((entry.num_computed for entry in scheduled), np.int64, count)
        lens = np.fromiter((entry.num_tokens for entry in scheduled), np.int64, count)
        rows = np.fromiter((self._row_of[entry.seq_id] for entry in scheduled), np.int64, count)
        contexts = starts + lens
        query_starts = np.zeros(count + 1, dtype=np.int32)
        np.cumsum(lens, out=query_starts[1:])
        total = int(query_starts[-1])
        # Token t belongs to sequence owner[t]; its position is its offset in the chunk plus what was computed before.
        owner = np.repeat(np.arange(count), lens)
        positions = np.arange(total) - query_starts[:-1][owner] + starts[owner]
        blocks = self._tables[rows[owner], positions // self.block_size].astype(np.int64)
        slots = blocks * self.block_size + positions % self.block_size
        token_ids = np.empty(total, dtype=np.int64)
        for entry, begin in zip(scheduled, query_starts, strict=False):
            tokens = self.states[entry.seq_id].token_ids
            token_ids[begin : begin + entry.num_tokens] = tokens[entry.num_computed : entry.num_computed + entry.num_tokens]
        widest = -(-int(contexts.max()) // self.block_size)
        sampled = [index for index, entry in enumerate(scheduled) if entry.samples]
        attention = AttentionBatch(
            positions=self._to_device(positions),
            slots=self._to_device(slots),
            query_starts=self._to_device(query_starts),
            context_lens=self._to_device(contexts.astype(np.int32)),
            block_tables=self._to_device(self._tables[rows, :widest]),
            query_lens=lens.tolist(),
            context_lens_host=contexts.tolist(),
            block_size=self.block_size,
        )
        return StepInputs(
            token_ids=self._to_device(token_ids),
            attention=attention,
            sample_rows=[int(query_starts[index + 1]) - 1 for index in sampled],
            states=[self.states[scheduled[index].seq_id] for index in sampled],
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor if self.device.type == "cpu" else tensor.to(self.device, non_blocking=True)
