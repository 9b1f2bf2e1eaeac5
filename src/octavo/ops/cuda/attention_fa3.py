"""Attention by FlashAttention 3 (its package ``flash_attn_interface``, which is built from source for Hopper).

One call takes decoding rows and chunks alike, over the page table as it is. It splits the keys of few sequences by their number, so a row's
bits depend on the batch.
"""

from __future__ import annotations

from types import ModuleType

import torch

from octavo.ops.base import AttentionBatch, AttentionSpec
from octavo.ops.cuda.attention import Attention, GraphWork
from octavo.ops.cuda.attention_library import library
from octavo.ops.cuda.kv import CudaKVLayer


class FlashAttention3(Attention):
    """Raises:
    ConfigError: the package is not installed, or the GPU is no Hopper.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._library: ModuleType = library("fa3", "flash_attn_interface", device, oldest=9, newest=9)

    def _attend(self, q: torch.Tensor, batch: AttentionBatch, kv: CudaKVLayer, spec: AttentionSpec) -> torch.Tensor:
        out: torch.Tensor = self._library.flash_attn_with_kvcache(
            q=q,
            k_cache=kv.keys,
            v_cache=kv.values,
            cache_seqlens=batch.context_lens,
            page_table=batch.block_tables,
            cu_seqlens_q=batch.query_starts,
            max_seqlen_q=max(batch.query_lens),
            softmax_scale=spec.scale,
            causal=True,
            window_size=(-1, -1) if spec.window is None else (spec.window - 1, 0),
            softcap=spec.softcap or 0.0,
        )
        return out

    def graph_key(self, batch: AttentionBatch) -> tuple[int, ...]:
        return ()

    def graph_work(self, step: AttentionBatch, key: tuple[int, ...]) -> GraphWork:
        """All that it reads is the geometry, which lies in the graphs' buffers already."""
        return GraphWork({}, lambda batch: None)
