"""Paged attention of the reference against a naive loop in double precision, over a pool that is NaN wherever nothing was written."""

from __future__ import annotations

import math
import random

import pytest
import torch
from paged_steps import attention_batch

from octavo.ops import reference_attention
from octavo.ops.base import AttentionBatch, AttentionSpec
from octavo.ops.reference import ReferenceOps
from octavo.ops.reference_attention import TorchKVLayer

HEADS, KV_HEADS, DIM, BLOCK, NUM_BLOCKS = 6, 2, 16, 8, 200
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
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


def filled_pool(batch: AttentionBatch, kv_heads: int, dtype: torch.dtype, window: int | None = None) -> TorchKVLayer:
    """A layer of a pool in which only the tokens that the step's rows see are written."""
    generator = torch.Generator().manual_seed(4)
    pool = torch.full((NUM_BLOCKS, 3, 2, BLOCK, kv_heads, DIM), torch.nan, dtype=dtype)
    for table, context, count in zip(batch.block_tables.tolist(), batch.context_lens_host, batch.query_lens, strict=True):
        for position in range(0 if window is None else max(0, context - count + 1 - window), context):
            pool[table[position // BLOCK], 1, :, position % BLOCK] = torch.randn(2, kv_heads, DIM, generator=generator).to(dtype)
    return TorchKVLayer(keys=pool[:, 1, 0], values=pool[:, 1, 1])


def step(cached: list[int], counts: list[int]) -> AttentionBatch:
    free = list(range(NUM_BLOCKS))
    random.Random(9).shuffle(free)
    tables = [[free.pop() for _ in range(-(-(begin + count) // BLOCK))] for begin, count in zip(cached, counts, strict=True)]
    return attention_batch(tables, cached, counts, BLOCK)


def naive(q: torch.Tensor, batch: AttentionBatch, kv: TorchKVLayer, spec: AttentionSpec) -> torch.Tensor:
    result, row = torch.zeros(q.shape, dtype=torch.float64), 0
    for sequence, (count, context) in enumerate(zip(batch.query_lens, batch.context_lens_host, strict=True)):
        table = batch.block_tables[sequence].tolist()
        keys = torch.stack([kv.keys[table[position // BLOCK], position % BLOCK] for position in range(context)]).double()
        values = torch.stack([kv.values[table[position // BLOCK], position % BLOCK] for position in range(context)]).double()
        for position in range(context - count, context):
            first = 0 if spec.window is None else max(0, position - spec.window + 1)
            for head in range(spec.num_heads):
                shared = head * spec.num_kv_heads // spec.num_heads
                scores = [float(q[row, head].double() @ keys[seen, shared]) * spec.scale for seen in range(first, position + 1)]
                if spec.softcap is not None:
                    scores = [spec.softcap * math.tanh(score / spec.softcap) for score in scores]
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                result[row, head] = weights @ values[first : position + 1, shared]
            row += 1
    return result


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", list(STEPS))
def test_paged_attention(dtype: torch.dtype, kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small runs, tiles and groups, so that short sequences meet all of their edges."""
    monkeypatch.setattr(reference_attention, "KEY_RUN", 16)
    monkeypatch.setattr(reference_attention, "_key_multiple", lambda dtype: 4)
    monkeypatch.setattr(reference_attention, "QUERY_TILE_ROWS", 7)
    monkeypatch.setattr(reference_attention, "FREE_PADDING", 20)
    spec, batch = KINDS[kind], step(*STEPS[name])
    kv = filled_pool(batch, spec.num_kv_heads, dtype, spec.window)
    q = torch.randn(sum(batch.query_lens), spec.num_heads, DIM, generator=torch.Generator().manual_seed(6)).to(dtype)
    actual = ReferenceOps(torch.device("cpu"), dtype).paged_attention(q, batch, kv, spec)
    assert actual.shape == q.shape
    assert actual.dtype == dtype
    assert (actual.double() - naive(q, batch, kv, spec)).abs().max().item() < TOLERANCES[dtype]


def test_a_cache_of_another_type_is_converted() -> None:
    spec, batch = KINDS["full"], step([20, 0], [1, 12])
    kv = filled_pool(batch, KV_HEADS, torch.float32)
    q = torch.randn(13, HEADS, DIM).to(torch.bfloat16)
    actual = ReferenceOps(torch.device("cpu"), torch.bfloat16).paged_attention(q, batch, kv, spec)
    assert (actual.double() - naive(q, batch, kv, spec)).abs().max().item() < TOLERANCES[torch.bfloat16]


def test_default_tiles_over_a_long_context() -> None:
    """More than one run of keys and several tiles, with the sizes that serve."""
    for window in (None, 300):
        spec = AttentionSpec(1, 1, DIM, scale=0.3, window=window)
        batch = step([420, 300, 430], [1, 70, 70])
        kv = filled_pool(batch, 1, torch.float32, window)
        q = torch.randn(141, 1, DIM, generator=torch.Generator().manual_seed(6))
        actual = ReferenceOps(torch.device("cpu"), torch.float32).paged_attention(q, batch, kv, spec)
        assert (actual.double() - naive(q, batch, kv, spec)).abs().max().item() < TOLERANCES[torch.float32]


needs_avx512 = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="torch's attention is known to be independent of the batch only in its AVX-512 build",
)


@needs_avx512
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 30])
def test_a_decoding_row_does_not_depend_on_the_batch(dtype: torch.dtype, window: int | None) -> None:
    """Bit for bit: alone, padded beside a longer sequence, beside a chunk."""
    spec, ops = AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3, window=window), ReferenceOps(torch.device("cpu"), dtype)
    batch = step([35, 90, 0], [1, 1, 20])
    kv = filled_pool(batch, KV_HEADS, dtype)
    q = torch.randn(22, HEADS, DIM, generator=torch.Generator().manual_seed(6)).to(dtype)
    tables = batch.block_tables.tolist()
    alone = ops.paged_attention(q[:1], attention_batch(tables[:1], [35], [1], BLOCK), kv, spec)
    padded = ops.paged_attention(q[:2], attention_batch(tables[:2], [35, 90], [1, 1], BLOCK), kv, spec)
    mixed = ops.paged_attention(q, batch, kv, spec)
    assert torch.equal(alone[0], padded[0])
    assert torch.equal(alone[0], mixed[0])


@needs_avx512
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 70])
def test_rows_do_not_depend_on_the_cut(dtype: torch.dtype, kv_heads: int, window: int | None) -> None:
    """Bit for bit: a prompt in one step, in uneven chunks, and one row at a time."""
    spec, ops = AttentionSpec(HEADS, kv_heads, DIM, scale=0.3, window=window), ReferenceOps(torch.device("cpu"), dtype)
    whole = step([0], [150])
    kv = filled_pool(whole, kv_heads, dtype)
    q = torch.randn(150, HEADS, DIM, generator=torch.Generator().manual_seed(6)).to(dtype)
    tables, expected = whole.block_tables.tolist(), ops.paged_attention(q, whole, kv, spec)
    begin = 0
    for size in (1, 2, 40, 33, 1, 5, 64, 4):
        rows = q[begin : begin + size]
        assert torch.equal(
            ops.paged_attention(rows, attention_batch(tables, [begin], [size], BLOCK), kv, spec), expected[begin : begin + size]
        )
        begin += size


def test_grouping_bounds_padding_and_workspace() -> None:
    def lengths(spans: list[int], most_tokens: int) -> list[list[int]]:
        entries = [reference_attention._Span(length, row, row, 0, 0, length) for row, length in enumerate(spans)]
        return [[span.length for span in group] for group in reference_attention._group_by_length(entries, most_tokens)]

    assert lengths([4000, 10, 3900, 12, 4100, 11, 9], 8200) == [[4100, 4000], [3900], [12, 11, 10, 9]]
    assert lengths([10], 1) == [[10]]
    assert lengths([], 100) == []
    assert lengths([3, 100, 50], 1000) == [[3, 100, 50]]
