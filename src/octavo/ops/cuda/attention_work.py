"""A step's attention work on the device: the host's plan (``attention_plan.py``), carried over in one copy, and room for partial results.

Worked out once a step and window and kept in ``AttentionBatch.plans``; a graph's steps find theirs there already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from octavo.ops.base import AttentionBatch, AttentionSpec
from octavo.ops.cuda.attention_decode import DecodeItems
from octavo.ops.cuda.attention_plan import DecodeWork, decode_work, prefill_work, split_batch
from octavo.ops.cuda.attention_prefill import PrefillTiles, prefill_launch
from octavo.ops.transfer import to_device
from octavo.ops.workspace import CUDA_PARTIAL_BYTES


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """Attributes:
    decode: work of the decoding sequences, in groups whose partial results fit their room; empty where there are none.
    prefill: tiles of the chunks; None where there are none.
    """

    decode: list[DecodeItems]
    prefill: PrefillTiles | None


def attention_work(batch: AttentionBatch, spec: AttentionSpec, dtype: torch.dtype) -> AttentionWork:
    """The step's work for layers of this window."""
    key = work_key(spec)
    if key not in batch.plans:
        batch.plans[key] = _plan(batch, spec, dtype)
    work: AttentionWork = batch.plans[key]
    return work


def work_key(spec: AttentionSpec) -> tuple[str, AttentionSpec]:
    """Where ``AttentionBatch.plans`` has it: layers that differ in their window do not share it."""
    return "cuda attention", spec


def most_items(spec: AttentionSpec) -> int:
    """Splits whose partial results fit the room there is for them."""
    return max(1, CUDA_PARTIAL_BYTES // (4 * spec.num_heads * (spec.head_dim + 2)))


def new_items(
    sequences: torch.Tensor, starts: torch.Tensor, owners: torch.Tensor, splits: torch.Tensor, spec: AttentionSpec
) -> DecodeItems:
    """Items with room for their partial results."""
    shape = (owners.shape[0], spec.num_heads)
    partials = torch.empty((*shape, spec.head_dim), dtype=torch.float32, device=owners.device)
    return DecodeItems(sequences, starts, owners, splits, partials, torch.empty((*shape, 2), dtype=torch.float32, device=owners.device))


def _plan(batch: AttentionBatch, spec: AttentionSpec, dtype: torch.dtype) -> AttentionWork:
    device = batch.positions.device
    decoding, chunks = split_batch(batch.query_lens)
    contexts, query_lens = np.asarray(batch.context_lens_host, np.int64), np.asarray(batch.query_lens, np.int64)
    groups = [] if len(decoding) == 0 else _groups(decode_work(decoding, contexts[decoding], spec.window), most_items(spec))
    arrays = [array for work in groups for array in (work.sequences, work.starts, work.owners, work.splits)]
    if len(chunks):
        rows = prefill_launch(spec.head_dim, dtype.itemsize).rows
        tiles = prefill_work(chunks, query_lens[chunks], contexts[chunks], rows)
        arrays += [tiles.sequences, tiles.rows]
    tensors = to_device(arrays, device)
    decode = [new_items(tensors[4 * i], tensors[4 * i + 1], tensors[4 * i + 2], tensors[4 * i + 3], spec) for i in range(len(groups))]
    return AttentionWork(decode, PrefillTiles(tensors[-2], tensors[-1]) if len(chunks) else None)


def _groups(work: DecodeWork, most: int) -> list[DecodeWork]:
    """Cut the work between sequences so that no group has more than ``most`` items, unless one sequence alone has."""
    if len(work.owners) <= most:
        return [work]
    groups = []
    begin = 0
    while begin < len(work.sequences):
        end = max(int(np.searchsorted(work.starts, work.starts[begin] + most, side="right")) - 1, begin + 1)
        first, last = work.starts[begin], work.starts[end]
        groups.append(
            DecodeWork(
                work.sequences[begin:end],
                work.starts[begin : end + 1] - first,
                work.owners[first:last] - np.int32(begin),
                work.splits[first:last],
            )
        )
        begin = end
    return groups
