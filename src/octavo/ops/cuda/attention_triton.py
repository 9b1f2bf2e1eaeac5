"""Attention by Octavo's own kernels: decoding rows with their keys in splits, chunks in tiles (``attention_work.py`` says which).

A row's bits depend on its sequence alone. In a graph the splits are padded to a power of two, so that one graph serves many steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from octavo.ops.base import AttentionBatch, AttentionSpec
from octavo.ops.cuda.attention import Attention, GraphWork
from octavo.ops.cuda.attention_decode import decode_attention
from octavo.ops.cuda.attention_plan import DecodeWork, decode_work
from octavo.ops.cuda.attention_prefill import prefill_attention
from octavo.ops.cuda.attention_work import AttentionWork, attention_work, most_items, new_items, work_key
from octavo.ops.cuda.kv import CudaKVLayer

_LEAST_ITEMS = 8
_STEP_WORKS = "cuda decode works"
"""Where ``AttentionBatch.plans`` has a decoding step's splits, for all kinds of layers."""


class TritonAttention(Attention):
    """``attention_decode.py`` and ``attention_prefill.py``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def _attend(self, q: torch.Tensor, batch: AttentionBatch, kv: CudaKVLayer, spec: AttentionSpec) -> torch.Tensor:
        work = attention_work(batch, spec, self._dtype)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        geometry = (batch.query_starts, batch.context_lens, batch.block_tables)
        for items in work.decode:
            decode_attention(q, kv.keys, kv.values, out, *geometry, items, spec.scale, spec.window, spec.softcap)
        if work.prefill is not None:
            prefill_attention(q, kv.keys, kv.values, out, *geometry, work.prefill, spec.scale, spec.window, spec.softcap)
        return out

    def graph_key(self, batch: AttentionBatch) -> tuple[int, ...] | None:
        """Numbers of splits, padded; none where their partial results would not fit."""
        items = tuple(max(_LEAST_ITEMS, 1 << (len(work.owners) - 1).bit_length()) for work in self._step_works(batch))
        fits = all(number <= most_items(spec) for number, spec in zip(items, self.specs, strict=True))
        return items if fits else None

    def graph_work(self, step: AttentionBatch, key: tuple[int, ...]) -> GraphWork:
        size, device = len(step.positions), step.positions.device
        lengths = [length for number in key for length in (size + 1, number, number)]
        packed = torch.zeros(sum(lengths), dtype=torch.int32, device=device)
        parts = iter(torch.split(packed, lengths))
        sequences = step.query_starts[:size]  # sequence d is row d
        plans: dict[Any, Any] = {}
        for spec in self.specs:
            plans[work_key(spec)] = AttentionWork([new_items(sequences, next(parts), next(parts), next(parts), spec)], None)

        def fill(batch: AttentionBatch) -> None:
            values = _pack(self._step_works(batch), size, key)
            packed.copy_(values.pin_memory() if device.type == "cuda" else values, non_blocking=True)

        return GraphWork(plans, fill)

    def _step_works(self, batch: AttentionBatch) -> list[DecodeWork]:
        """The splits of a step in which all sequences decode, for each kind of layer."""
        if _STEP_WORKS not in batch.plans:
            contexts = np.asarray(batch.context_lens_host, np.int64)
            sequences = np.arange(len(contexts), dtype=np.int32)
            batch.plans[_STEP_WORKS] = [decode_work(sequences, contexts, spec.window) for spec in self.specs]
        works: list[DecodeWork] = batch.plans[_STEP_WORKS]
        return works


def _pack(works: list[DecodeWork], size: int, items: tuple[int, ...]) -> torch.Tensor:
    """The layers' work in one int32 array, padded: for each kind of layer size + 1 starts, then owners and splits of its items."""
    arrays = []
    for work, number in zip(works, items, strict=True):
        padding = number - len(work.owners)
        arrays += [
            np.pad(work.starts, (0, size + 1 - len(work.starts)), mode="edge"),
            np.pad(work.owners, (0, padding), constant_values=-1),
            np.pad(work.splits, (0, padding)),
        ]
    return torch.from_numpy(np.concatenate(arrays))
