"""Steps and kinds of attention that every backend's tests run, and a slow answer to each in double precision."""

from __future__ import annotations

import random

import torch
from paged_steps import attention_batch

from octavo.ops.base import AttentionBatch, AttentionSpec

HEADS, KV_HEADS, DIM, BLOCK, NUM_BLOCKS = 6, 2, 16, 8, 200

# Cached tokens and query rows of each sequence of a step.
STEPS = {
    "one decoding": ([36], [1]),
    "first token": ([0], [1]),
    "decoding, alike": ([15, 15, 15], [1, 1, 1]),
    "decoding, ragged": ([0, 70, 3, 31, 32], [1, 1, 1, 1, 1]),
    "prompt": ([0], [45]),
    "prompts": ([0, 0, 0], [9, 40, 2]),
    "chunk": ([37], [30]),
    "chunk after one": ([1], [2]),
    "mixed": ([50, 0, 3, 19, 64], [1, 33, 1, 21, 1]),
}

KINDS = {
    "full": AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3),
    "window": AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3, window=11),
    "window of one": AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3, window=1),
    "wide window": AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3, window=1000),
    "softcap": AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3, softcap=1.5),
    "softcap and window": AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3, window=11, softcap=1.5),
    "head for head": AttentionSpec(KV_HEADS, KV_HEADS, DIM, scale=0.3),
    "one key head": AttentionSpec(HEADS, 1, DIM, scale=0.3),
}


def step(cached: list[int], counts: list[int]) -> AttentionBatch:
    """The geometry of a step, over scattered blocks."""
    free = list(range(NUM_BLOCKS))
    random.Random(9).shuffle(free)
    tables = [[free.pop() for _ in range(-(-(begin + count) // BLOCK))] for begin, count in zip(cached, counts, strict=True)]
    return attention_batch(tables, cached, counts, BLOCK)


def filled_pool(batch: AttentionBatch, kv_heads: int, dtype: torch.dtype, window: int | None = None, dim: int = DIM) -> torch.Tensor:
    """A pool [blocks, layers, 2, block size, Hk, D] of three layers, of which the middle one has values where the step's rows look,
    and all else is NaN."""
    generator = torch.Generator().manual_seed(4)
    pool = torch.full((NUM_BLOCKS, 3, 2, BLOCK, kv_heads, dim), torch.nan, dtype=dtype)
    for table, context, count in zip(batch.block_tables.tolist(), batch.context_lens_host, batch.query_lens, strict=True):
        for position in range(0 if window is None else max(0, context - count + 1 - window), context):
            pool[table[position // BLOCK], 1, :, position % BLOCK] = torch.randn(2, kv_heads, dim, generator=generator).to(dtype)
    return pool


def naive(q: torch.Tensor, batch: AttentionBatch, keys: torch.Tensor, values: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Attention of rows q [T, Hq, D] over keys and values [blocks, block size, Hk, D], a row and a head at a time: float64 [T, Hq, D]."""
    result, row = torch.zeros(q.shape, dtype=torch.float64), 0
    for sequence, (count, context) in enumerate(zip(batch.query_lens, batch.context_lens_host, strict=True)):
        positions = torch.arange(context)
        blocks = batch.block_tables[sequence].cpu().long()[positions // batch.block_size]
        seen_keys = keys.cpu()[blocks, positions % batch.block_size].double()
        seen_values = values.cpu()[blocks, positions % batch.block_size].double()
        for position in range(context - count, context):
            first = 0 if spec.window is None else max(0, position - spec.window + 1)
            for head in range(spec.num_heads):
                shared = head * spec.num_kv_heads // spec.num_heads
                scores = seen_keys[first : position + 1, shared] @ q[row, head].cpu().double() * spec.scale
                if spec.softcap is not None:
                    scores = spec.softcap * (scores / spec.softcap).tanh()
                result[row, head] = scores.softmax(0) @ seen_values[first : position + 1, shared]
            row += 1
    return result
