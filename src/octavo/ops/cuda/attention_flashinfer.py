"""Attention by FlashInfer: its wrapper for paged keys takes decoding rows and chunks alike.

The library plans a step on the host for each kind of layer and copies the plan to the device, where the layers' launches read it. It wants
a wrapper for each size of recorded step; all of a kind share memory, since steps run one after the other. How it splits keys depends on the
batch, and with it a row's bits.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from octavo.ops.base import AttentionBatch, AttentionSpec
from octavo.ops.cuda.attention import Attention, GraphWork
from octavo.ops.cuda.attention_library import library
from octavo.ops.cuda.kv import CudaKVLayer
from octavo.ops.transfer import to_device
from octavo.ops.workspace import FLASHINFER_FLOAT_BYTES, FLASHINFER_INT_BYTES


class FlashInfer(Attention):
    """Raises:
    ConfigError: the package is not installed, or the GPU is older than Ampere.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self._library = library("flashinfer", "flashinfer", device, oldest=8)
        self._dtype = dtype
        self._floats = torch.empty(FLASHINFER_FLOAT_BYTES, dtype=torch.uint8, device=device)
        self._kinds: dict[AttentionSpec, _Kind] = {}

    def _attend(self, q: torch.Tensor, batch: AttentionBatch, kv: CudaKVLayer, spec: AttentionSpec) -> torch.Tensor:
        key = _plan_key(spec)
        if key not in batch.plans:
            if spec not in self._kinds:
                self._kinds[spec] = _Kind(self._library, self._floats, spec, self._dtype, kv.keys.dtype)
            planned = self._kinds[spec].eager
            planned.plan(batch, batch.block_tables, len(batch.query_lens))
            batch.plans[key] = planned.wrapper
        out: torch.Tensor = batch.plans[key].run(q, (kv.keys, kv.values))
        return out

    def graph_key(self, batch: AttentionBatch) -> tuple[int, ...]:
        return ()

    def graph_work(self, step: AttentionBatch, key: tuple[int, ...]) -> GraphWork:
        size = len(step.positions)
        recorded = {spec: kind.recorded(size, step.block_tables.shape[1]) for spec, kind in self._kinds.items()}

        def fill(batch: AttentionBatch) -> None:
            for planned in recorded.values():
                planned.plan(batch, step.block_tables, size)

        return GraphWork({_plan_key(spec): planned.wrapper for spec, planned in recorded.items()}, fill)


def _plan_key(spec: AttentionSpec) -> tuple[str, AttentionSpec]:
    """Where ``AttentionBatch.plans`` has the wrapper that has planned the step."""
    return "flashinfer", spec


class _Kind:
    """What layers of one kind share.

    Attributes:
        eager: for steps that are not recorded.
    """

    def __init__(
        self, flashinfer: ModuleType, floats: torch.Tensor, spec: AttentionSpec, dtype: torch.dtype, cache_dtype: torch.dtype
    ) -> None:
        self._wrapper: Callable[..., Any] = flashinfer.BatchPrefillWithPagedKVCacheWrapper
        self._floats, self._spec = floats, spec
        self._types = {"q_data_type": dtype, "kv_data_type": cache_dtype}
        self._integers = torch.empty(FLASHINFER_INT_BYTES, dtype=torch.uint8, device=floats.device)
        self._buffers: dict[str, torch.Tensor] = {}
        self.eager = self._planned(self._wrapper(floats, "NHD"))

    def recorded(self, size: int, blocks: int) -> _Planned:
        """For recorded steps of ``size`` sequences with up to ``blocks`` blocks each."""
        buffers = {
            "qo_indptr_buf": self._buffer("rows", size + 1),
            "paged_kv_indptr_buf": self._buffer("pages", size + 1),
            "paged_kv_indices_buf": self._buffer("indices", size * blocks),
            "paged_kv_last_page_len_buf": self._buffer("last", size),
        }
        # Its kernels for few rows are the ones that can be planned anew under a graph.
        return self._planned(self._wrapper(self._floats, "NHD", use_cuda_graph=True, backend="fa2", **buffers))

    def _planned(self, wrapper: Any) -> _Planned:
        wrapper.reset_workspace_buffer(self._floats, self._integers)
        return _Planned(wrapper, self._spec, self._types, self._floats.device)

    def _buffer(self, name: str, length: int) -> torch.Tensor:
        """Graphs of smaller sizes use the beginning of a larger one's, once there is one; all take no more than twice the largest."""
        if name not in self._buffers or len(self._buffers[name]) < length:
            self._buffers[name] = torch.zeros(1 << (length - 1).bit_length(), dtype=torch.int32, device=self._floats.device)
        return self._buffers[name][:length]


class _Planned:
    """A wrapper of the library's and how its steps are planned."""

    def __init__(self, wrapper: Any, spec: AttentionSpec, types: dict[str, torch.dtype], device: torch.device) -> None:
        self.wrapper = wrapper
        self._spec, self._types, self._device = spec, types, device
        self._copied: torch.cuda.Event | None = None

    def plan(self, batch: AttentionBatch, tables: torch.Tensor, size: int) -> None:
        """Plan a step.

        Args:
            tables: int32 [at least ``size``, W], the sequences' blocks, on the device.
            size: sequences after padding; the padded ones have one row, which sees one slot: they are decoding too, and nothing reads them.
        """
        padding = size - len(batch.query_lens)
        lens = np.asarray([*batch.query_lens, *[1] * padding], np.int64)
        contexts = np.maximum(np.asarray([*batch.context_lens_host, *[0] * padding], np.int64), 1)
        pages = -(-contexts // batch.block_size)
        page_starts = _starts(pages)
        owners = np.repeat(np.arange(size), pages)
        places = owners * tables.shape[1] + np.arange(len(owners)) - page_starts[owners]
        (places_there,) = to_device([places.astype(np.int32)], self._device)
        if self._copied is not None:
            self._copied.synchronize()  # the library's pinned memory still holds the plan before until it is over there
        self.wrapper.plan(
            torch.from_numpy(_starts(lens)),
            torch.from_numpy(page_starts),
            tables[:size].flatten().index_select(0, places_there),
            torch.from_numpy((contexts - (pages - 1) * batch.block_size).astype(np.int32)),
            self._spec.num_heads,
            self._spec.num_kv_heads,
            self._spec.head_dim,
            batch.block_size,
            causal=True,
            sm_scale=self._spec.scale,
            window_left=-1 if self._spec.window is None else self._spec.window - 1,
            logits_soft_cap=self._spec.softcap or 0.0,
            **self._types,
        )
        if self._device.type == "cuda":
            self._copied = self._copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()


def _starts(counts: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """int32 [n + 1]: where each begins, and the end."""
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
