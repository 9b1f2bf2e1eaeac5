"""The GPU's paged attention against a slow one in double precision, over a pool that is NaN wherever nothing was written."""

from __future__ import annotations

import attention_cases
import pytest
import torch
from attention_cases import DIM, HEADS, KINDS, KV_HEADS, STEPS, naive, step
from paged_steps import attention_batch, on_device

from octavo.ops.base import AttentionBatch, AttentionSpec
from octavo.ops.cuda import attention_decode, attention_plan, attention_work
from octavo.ops.cuda.attention_prefill import Launch
from octavo.ops.cuda.backend import CudaOps
from octavo.ops.cuda.kv import CudaKVLayer

TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small splits, joins and tiles, so that short sequences meet all of their edges."""
    for module in (attention_plan, attention_decode):
        monkeypatch.setattr(module, "SPLIT", 16)
    monkeypatch.setattr(attention_decode, "JOIN", 2)
    for module in (attention_work, "octavo.ops.cuda.attention_prefill"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.prefill_launch", lambda dim, itemsize: Launch(16, 16, 4, 1))


def pool_for(
    batch: AttentionBatch, spec: AttentionSpec, dtype: torch.dtype, device: torch.device, window: int | None = None
) -> CudaKVLayer:
    pool = attention_cases.filled_pool(batch, spec.num_kv_heads, dtype, window, spec.head_dim).to(device)
    return CudaKVLayer(keys=pool[:, 1, 0], values=pool[:, 1, 1])


def rows(count: int, spec: AttentionSpec, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Queries, a strided part of wider rows as in a product of queries, keys and values."""
    drawn = torch.randn(count, spec.num_heads + 2, spec.head_dim, generator=torch.Generator().manual_seed(6))
    return drawn.to(device, dtype)[:, : spec.num_heads]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is asked for comes full of NaN."""
    empty = torch.empty

    def poison(*args: object, **kwargs: object) -> torch.Tensor:
        made = empty(*args, **kwargs)  # type: ignore[call-overload]
        return made.fill_(torch.nan) if made.dtype.is_floating_point else made

    monkeypatch.setattr(torch, "empty", poison)


@pytest.mark.usefixtures("small", "poisoned")
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", list(STEPS))
def test_paged_attention(device: torch.device, dtype: torch.dtype, kind: str, name: str) -> None:
    spec, batch = KINDS[kind], step(*STEPS[name])
    kv = pool_for(batch, spec, dtype, device, spec.window)
    q = rows(sum(batch.query_lens), spec, dtype, device)
    actual = CudaOps(device, dtype).paged_attention(q, on_device(batch, device), kv, spec)
    assert actual.shape == q.shape
    assert actual.dtype == dtype
    assert (actual.cpu().double() - naive(q, batch, kv.keys, kv.values, spec)).abs().max().item() < TOLERANCES[dtype]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
def test_head_sizes_with_the_sizes_that_serve(device: torch.device, dtype: torch.dtype, dim: int) -> None:
    """More than one split and more than one tile of rows and keys."""
    for window in (None, 300):
        spec = AttentionSpec(3, 1, dim, scale=dim**-0.5, window=window)
        batch = step([520, 0, 130], [1, 150, 60])
        kv = pool_for(batch, spec, dtype, device, window)
        q = rows(211, spec, dtype, device)
        actual = CudaOps(device, dtype).paged_attention(q, on_device(batch, device), kv, spec)
        assert (actual.cpu().double() - naive(q, batch, kv.keys, kv.values, spec)).abs().max().item() < TOLERANCES[dtype]


@pytest.mark.usefixtures("small", "poisoned")
def test_work_that_does_not_fit_its_room_is_done_in_groups(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, batch = KINDS["full"], step([50, 0, 70, 3, 100, 30], [1, 4, 1, 1, 1, 1])
    monkeypatch.setattr(attention_work, "CUDA_PARTIAL_BYTES", 4 * HEADS * (DIM + 2) * 6)
    kv = pool_for(batch, spec, torch.float32, device)
    q = rows(9, spec, torch.float32, device)
    moved = on_device(batch, device)
    actual = CudaOps(device, torch.float32).paged_attention(q, moved, kv, spec)
    work: attention_work.AttentionWork = moved.plans[attention_work.work_key(spec)]
    assert [len(items.owners) for items in work.decode] == [4, 6, 7, 2]  # splits of 4, 5 and 1, 7, 2: a long one runs alone
    assert (actual.cpu().double() - naive(q, batch, kv.keys, kv.values, spec)).abs().max().item() < TOLERANCES[torch.float32]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("window", [None, 30])
def test_a_decoding_row_does_not_depend_on_the_batch(device: torch.device, dtype: torch.dtype, window: int | None) -> None:
    """Bit for bit: alone, beside a longer sequence, beside a chunk."""
    spec, ops = AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3, window=window), CudaOps(device, dtype)
    batch = step([35, 90, 0], [1, 1, 20])
    kv = pool_for(batch, spec, dtype, device)
    q = rows(22, spec, dtype, device)
    tables = batch.block_tables.tolist()
    alone = ops.paged_attention(q[:1], on_device(attention_batch(tables[:1], [35], [1], 8), device), kv, spec)
    padded = ops.paged_attention(q[:2], on_device(attention_batch(tables[:2], [35, 90], [1, 1], 8), device), kv, spec)
    mixed = ops.paged_attention(q, on_device(batch, device), kv, spec)
    assert torch.equal(alone[0], padded[0])
    assert torch.equal(alone[0], mixed[0])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("window", [None, 30])
def test_a_row_of_a_prompt_does_not_depend_on_the_cut(device: torch.device, dtype: torch.dtype, window: int | None) -> None:
    """Bit for bit: in one go, and in chunks of more than a row."""
    spec, ops = AttentionSpec(HEADS, KV_HEADS, DIM, scale=0.3, window=window), CudaOps(device, dtype)
    batch = step([0], [75])
    kv = pool_for(batch, spec, dtype, device)
    q = rows(75, spec, dtype, device)
    whole = ops.paged_attention(q, on_device(batch, device), kv, spec)
    table, begin = batch.block_tables.tolist(), 0
    for end in (9, 12, 50, 75):
        part = on_device(attention_batch(table, [begin], [end - begin], 8), device)
        assert torch.equal(ops.paged_attention(q[begin:end], part, kv, spec), whole[begin:end])
        begin = end


def test_the_plan_counts_splits_and_windows() -> None:
    sequences = torch.arange(3).int().numpy()
    contexts = torch.tensor([1, 256, 700]).numpy()
    work = attention_plan.decode_work(sequences, contexts, None)
    assert work.starts.tolist() == [0, 1, 2, 5]
    assert work.owners.tolist() == [0, 1, 2, 2, 2]
    assert work.splits.tolist() == [0, 0, 0, 1, 2]
    assert attention_plan.decode_work(sequences, contexts, 188).splits.tolist() == [0, 0, 2]
    assert attention_plan.decode_work(sequences, contexts, 189).splits.tolist() == [0, 0, 1, 2]


def test_the_tiles_that_see_most_come_first() -> None:
    sequences = torch.tensor([1, 4]).int().numpy()
    work = attention_plan.prefill_work(sequences, torch.tensor([130, 10]).numpy(), torch.tensor([130, 510]).numpy(), 64)
    assert work.sequences.tolist() == [4, 1, 1, 1]
    assert work.rows.tolist() == [0, 128, 64, 0]
