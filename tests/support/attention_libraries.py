"""Stand-ins for the libraries that may attend in place of Octavo's kernels, which need a GPU to import or to run.

Each has the signatures that Octavo calls (FlashAttention 3 of its main branch, FlashInfer 0.7) and computes in double precision. What the
real one would misread without a word is an error here.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import attention_cases
import pytest
import torch

from octavo.ops.base import AttentionBatch, AttentionSpec

WORKSPACE_BYTES = 128 * 2**20


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both importable."""
    fa3, flashinfer = ModuleType("flash_attn_interface"), ModuleType("flashinfer")
    fa3.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    flashinfer.BatchPrefillWithPagedKVCacheWrapper = BatchPrefillWithPagedKVCacheWrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fa3)
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer)


def _attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    starts: list[int],
    contexts: list[int],
    scale: float,
    window: int | None,
    softcap: float,
) -> torch.Tensor:
    """Rows [T, Hq, D] of sequences with one row or more; those of a sequence without keys are zero."""
    assert q.stride(-1) == keys.stride(-1) == values.stride(-1) == 1 and keys.stride() == values.stride()
    assert len(q) == starts[-1] and keys.shape[2:] == values.shape[2:] and q.shape[2] == keys.shape[3]
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    spec = AttentionSpec(q.shape[1], keys.shape[2], q.shape[2], scale, window, softcap or None)
    nothing = torch.empty(0)
    for sequence, context in enumerate(contexts):
        first, last = starts[sequence], starts[sequence + 1]
        assert last > first
        if context:
            table = tables[sequence : sequence + 1]
            one = AttentionBatch(nothing, nothing, nothing, nothing, table, [last - first], [context], keys.shape[1])
            out[first:last] = attention_cases.naive(q[first:last], one, keys, values, spec).to(q)
    return out


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    cache_seqlens: torch.Tensor,
    page_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> torch.Tensor:
    """FlashAttention 3's: q [T, Hq, D]; caches [pages, page size, Hk, D]; sequences that see ``window_size[0]`` keys before their own."""
    assert q.dtype == k_cache.dtype == v_cache.dtype and q.element_size() == 2
    assert {tensor.dtype for tensor in (cache_seqlens, page_table, cu_seqlens_q)} == {torch.int32} and page_table.stride(1) == 1
    assert causal and window_size[1] in (-1, 0) and cu_seqlens_q.is_contiguous() and cache_seqlens.is_contiguous()
    assert len(cache_seqlens) == len(page_table) == len(cu_seqlens_q) - 1
    starts = cu_seqlens_q.tolist()
    assert max_seqlen_q == max(last - first for first, last in pairwise(starts))
    window = None if window_size[0] == -1 else window_size[0] + 1
    return _attend(q, k_cache, v_cache, page_table, starts, cache_seqlens.tolist(), softmax_scale, window, softcap)


class BatchPrefillWithPagedKVCacheWrapper:
    """FlashInfer's. In a graph it reads its buffers as they are then; the plan itself lies in the workspace, which the latest plan owns."""

    owners: dict[int, object] = {}

    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str,
        use_cuda_graph: bool = False,
        qo_indptr_buf: torch.Tensor | None = None,
        paged_kv_indptr_buf: torch.Tensor | None = None,
        paged_kv_indices_buf: torch.Tensor | None = None,
        paged_kv_last_page_len_buf: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        assert kv_layout == "NHD" and float_workspace_buffer.nbytes >= WORKSPACE_BYTES and backend in ("auto", "fa2")
        given = (qo_indptr_buf, paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf)
        assert all((buffer is not None) is use_cuda_graph for buffer in given)
        self._fixed = use_cuda_graph
        self._buffers: list[torch.Tensor] = [buffer for buffer in given if buffer is not None]
        self._integers = torch.empty(0)
        self._plan: dict[str, Any] = {}

    def reset_workspace_buffer(self, float_workspace_buffer: torch.Tensor, int_workspace_buffer: torch.Tensor) -> None:
        assert int_workspace_buffer.nbytes == 8 * 2**20
        self._integers = int_workspace_buffer

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool,
        sm_scale: float,
        window_left: int,
        logits_soft_cap: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        arrays = [qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len]
        assert causal and {array.dtype for array in arrays} == {torch.int32}
        assert qo_indptr.device.type == paged_kv_indptr.device.type == paged_kv_last_page_len.device.type == "cpu"  # else it waits
        assert paged_kv_indptr[-1] == len(paged_kv_indices)
        assert bool(((paged_kv_last_page_len >= 1) & (paged_kv_last_page_len <= page_size)).all())
        assert bool((qo_indptr.diff() >= 1).all() and (paged_kv_indptr.diff() >= 1).all())
        if self._fixed:
            assert all(len(buffer) == len(array) for buffer, array in zip(self._buffers[:2], arrays, strict=False))
            for buffer, array in zip(self._buffers, arrays, strict=True):
                buffer[: len(array)].copy_(array)
        else:
            self._buffers = [array.clone() for array in arrays]
        self._plan = {"heads": (num_qo_heads, num_kv_heads, head_dim_qk), "page": page_size, "types": (q_data_type, kv_data_type)}
        self._plan |= {"scale": sm_scale, "window": window_left, "softcap": logits_soft_cap}
        self.owners[self._integers.data_ptr()] = self

    def run(self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        assert self.owners[self._integers.data_ptr()] is self, "another wrapper's plan lies in the workspace"
        keys, values = paged_kv_cache
        starts, page_starts, indices, last = (buffer.tolist() for buffer in self._buffers)
        assert self._plan["heads"] == (q.shape[1], keys.shape[2], q.shape[2]) and self._plan["page"] == keys.shape[1]
        assert self._plan["types"] == (q.dtype, keys.dtype)
        counts = [end - begin for begin, end in pairwise(page_starts)]
        pages = [indices[begin : begin + count] for begin, count in zip(page_starts, counts, strict=False)]
        tables = torch.tensor([row + [0] * (max(counts) - len(row)) for row in pages], dtype=torch.int32)
        contexts = [(count - 1) * keys.shape[1] + rest for count, rest in zip(counts, last, strict=True)]
        window = None if self._plan["window"] == -1 else self._plan["window"] + 1
        return _attend(q, keys, values, tables, starts, contexts, self._plan["scale"], window, self._plan["softcap"])
