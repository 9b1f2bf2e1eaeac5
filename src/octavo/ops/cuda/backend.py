"""The GPU kernels behind the ``Ops`` interface.

Rows between operations have the compute type, the residual stream is float32, vocabulary scores keep float32's precision. Products of
many rows are cuBLAS's, all else is Triton's. Nothing waits for the GPU and nothing is read back from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch

from octavo.ops.base import (
    AttentionBatch,
    AttentionSpec,
    Forward,
    Group,
    HeadNorms,
    KVLayer,
    KVShape,
    Ops,
    PackedLinear,
    SampleRows,
    StepLimits,
    WeightPart,
    part_embedding,
)
from octavo.ops.cuda.attention import Attention
from octavo.ops.cuda.attention_fa3 import FlashAttention3
from octavo.ops.cuda.attention_flashinfer import FlashInfer
from octavo.ops.cuda.attention_triton import TritonAttention
from octavo.ops.cuda.graphs import DecodeSteps, cuda_capture
from octavo.ops.cuda.kv import CudaKVLayer, cuda_kv_layers
from octavo.ops.cuda.linear import StackedWeight, stacked_linear
from octavo.ops.cuda.norm import add_rms_norm, rms_norm
from octavo.ops.cuda.quantized_linear import gather_rows
from octavo.ops.cuda.rotary_cache import rotary_and_cache
from octavo.ops.cuda.sampling import sample
from octavo.ops.cuda.weights import DevicePart, pack


class CudaOps(Ops):
    """Triton kernels and cuBLAS.

    Args:
        device: a CUDA device; a CPU where Triton interprets its kernels (tests).
        dtype: float32, bfloat16 or float16.
        graphs: whether decoding steps are captured as CUDA graphs and replayed.
        group: the ranks that share each layer.
        attention: who attends: ``triton``, Octavo's own kernels; ``fa3`` or ``flashinfer``, a library.

    Raises:
        ConfigError: the library is not installed, or not for this GPU.
    """

    name = "cuda"
    runs_blocks = True
    samples = True

    def __init__(
        self, device: torch.device, dtype: torch.dtype, graphs: bool = True, group: Group | None = None, attention: str = "triton"
    ) -> None:
        super().__init__(device, dtype, group)
        self._graphs = graphs
        self._attention = _attention(attention, device, dtype)

    # ---- weights -----------------------------------------------------------------------------------------------------

    def pack_linear(self, parts: Sequence[WeightPart], bias: torch.Tensor | None = None, gated: bool = False) -> PackedLinear:
        packed = StackedWeight(pack(parts, self.dtype, self.device), None if bias is None else bias.to(self.device, self.dtype))
        return PackedLinear(packed, parts[0].shape[1], packed.out_features)

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        return stacked_linear(x, cast("StackedWeight", weight.data), self.dtype)

    def gated_linear(self, x: torch.Tensor, weight: PackedLinear, kind: str) -> torch.Tensor:
        return stacked_linear(x, cast("StackedWeight", weight.data), self.dtype, kind)

    def pack_embedding(self, table: WeightPart, head: PackedLinear | None) -> object:
        parts = pack([table], self.dtype, self.device) if head is None else cast("StackedWeight", head.data).parts
        return parts[0]

    def embedding(self, token_ids: torch.Tensor, table: object, scale: float = 1.0, part: tuple[int, int] | None = None) -> torch.Tensor:
        if part is not None:
            return part_embedding(lambda ids: self.embedding(ids, table, scale), token_ids, part)
        return gather_rows(cast("DevicePart", table), token_ids, torch.tensor(scale, dtype=self.dtype).item())

    def logits(self, x: torch.Tensor, weight: PackedLinear, softcap: float | None = None) -> torch.Tensor:
        scores = stacked_linear(x, cast("StackedWeight", weight.data), torch.float32)
        return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)

    def sample(self, logits: torch.Tensor, rows: SampleRows) -> torch.Tensor:
        return sample(logits, rows)

    # ---- element-wise ------------------------------------------------------------------------------------------------

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False) -> torch.Tensor:
        return rms_norm(x, weight, eps, plus_one, self.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return add_rms_norm(x, residual, weight, eps, plus_one), residual

    # ---- attention ---------------------------------------------------------------------------------------------------

    def rotary_and_cache(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos_sin: torch.Tensor,
        batch: AttentionBatch,
        kv: KVLayer,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        assert isinstance(kv, CudaKVLayer)
        if norms is not None and cos_sin.shape[1] < q.shape[2]:  # no family has both
            (q, k), norms = self._norm_heads(q, k, norms), None
        rotary_and_cache(q, k, v, cos_sin, batch.positions, batch.slots, kv.keys, kv.values, norms)
        return q

    def paged_attention(self, q: torch.Tensor, batch: AttentionBatch, kv: KVLayer, spec: AttentionSpec) -> torch.Tensor:
        assert isinstance(kv, CudaKVLayer)
        return self._attention(q, batch, kv, spec)

    # ---- pool --------------------------------------------------------------------------------------------------------

    def kv_layers(self, pool: torch.Tensor, shape: KVShape) -> list[KVLayer]:
        return cuda_kv_layers(pool, shape)

    def copy_blocks(self, pool: torch.Tensor, copies: list[tuple[int, int]]) -> None:
        if copies:
            source, destination = torch.tensor(copies).to(pool.device, non_blocking=True).unbind(1)
            pool.index_copy_(0, destination, pool.index_select(0, source))

    # ---- the whole pass ----------------------------------------------------------------------------------------------

    def prepare_forward(
        self, forward: Forward, kv: list[KVLayer], limits: StepLimits, stage_width: int | None = None
    ) -> Callable[[torch.Tensor, AttentionBatch], torch.Tensor]:
        """Decoding steps are padded, and CUDA graphs where these are wanted; see ``Ops.prepare_forward``."""
        capture = cuda_capture() if self._graphs else None
        return DecodeSteps(lambda start, batch: forward(start, batch, kv), self._attention, limits, self.device, capture, stage_width)


def _attention(name: str, device: torch.device, dtype: torch.dtype) -> Attention:
    if name == "fa3":
        return FlashAttention3(device)
    return FlashInfer(device, dtype) if name == "flashinfer" else TritonAttention(dtype)
