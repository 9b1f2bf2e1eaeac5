"""Paged attention of the reference against a naive loop in double precision, over a pool that is NaN wherever nothing was written."""

from __future__ import annotations

import attention_cases
import pytest
import torch
from attention_cases import BLOCK, DIM, HEADS, KINDS, KV_HEADS, STEPS, step
from paged_steps import attention_batch

from octavo.ops import reference_attention
from octavo.ops.base import AttentionBatch, AttentionSpec
from octavo.ops.reference import ReferenceOps
from octavo.ops.reference_attention import TorchKVLayer

TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def filled_pool(batch: AttentionBatch, kv_heads: int, dtype: torch.dtype, window: int | None = None) -> TorchKVLayer:
    """A layer of a pool in which only the tokens that the step's rows see are written."""
    pool = attention_cases.filled_pool(batch, kv_heads, dtype, window)
    return TorchKVLayer(keys=pool[:, 1, 0], values=pool[:, 1, 1])


def naive(q: torch.Tensor, batch: AttentionBatch, kv: TorchKVLayer, spec: AttentionSpec) -> torch.Tensor:
    return attention_cases.naive(q, batch, kv.keys, kv.values, spec)


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
