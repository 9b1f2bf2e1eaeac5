"""The kernels in plain torch: they run on any device, and are the oracle of every other backend.

They also run what no other backend does (float16 on a CPU, a GPU), so each is written with the fewest torch calls and temporaries
that still read plainly. These choices were measured (2 cores with AMX):

- Products with bfloat16 and float32 weights use oneDNN's prepacked layout: at 1 to 32 rows it is 1.5 to 2 times as fast as
  ``F.linear`` on the same weight, which reorders it in every call. Given 512 rows at once the two are about equal, some shapes
  faster and some slower.
- The residual stream is float32 and vocabulary scores keep float32's precision whatever the compute type: rounding either to
  bfloat16 is what moves a small model's answers away from float32's.
- Mixed-type arithmetic (bfloat16 times float32) misses torch's vectorised loops: operands are converted first.
- A step's geometry (positions' cosines, pool rows, masks) is worked out once a step and kept in ``AttentionBatch.plans``.

A row's bits must not depend on the rows beside it, on the CPU in float32 and bfloat16. Element-wise operations and norms work row
by row. oneDNN splits the sums of a product by the number of rows it is given, which ``_exactly`` works round;
``reference_attention`` says how attention does it. It is held by tests where torch has its AVX-512 kernels, and not known elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F

from octavo.ops.base import (
    AttentionBatch,
    AttentionSpec,
    BlockWeight,
    Group,
    HeadNorms,
    KVLayer,
    KVShape,
    Ops,
    PackedLinear,
    WeightPart,
    part_embedding,
)
from octavo.ops.reference_attention import TorchKVLayer, paged_attention, pool_rows, row_view, rows_per_block

EXACT_ROWS = 32
"""Most rows a bfloat16 product is given at once. Up to here oneDNN sums every row alike (22 shapes tried, 1 and 2 threads); beyond,
single elements differ by a rounding. Long prompts pay for it: 512 rows at once would take two thirds of the time."""

LONE_ROW_SUMS = range(512, 8193)
"""Lengths of bfloat16 sums that oneDNN's kernel for a lone row forms as its kernel for several rows does (measured)."""


class ReferenceOps(Ops):
    """Plain torch.

    Args:
        device: where weights and activations live.
        dtype: of the activations: float32, bfloat16 or float16.
        group: the ranks that share each layer.
    """

    name = "reference"

    def __init__(self, device: torch.device, dtype: torch.dtype, group: Group | None = None) -> None:
        super().__init__(device, dtype, group)
        self._prepack = device.type == "cpu" and _onednn_packs(dtype)
        self._epsilons: dict[float, torch.Tensor] = {}

    # ---- weights -----------------------------------------------------------------------------------------------------

    def pack_linear(self, parts: Sequence[WeightPart], bias: torch.Tensor | None = None, gated: bool = False) -> PackedLinear:
        dense = [_dense(part, self.dtype) for part in parts]
        weight = (dense[0] if len(dense) == 1 else torch.cat(dense)).to(self.device, self.dtype)
        out_features, in_features = weight.shape
        if self._prepack:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, EXACT_ROWS)
        if bias is not None:
            bias = bias.to(self.device, self.dtype)
        return PackedLinear((weight, bias), in_features, out_features)

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        data, bias = cast("tuple[torch.Tensor, torch.Tensor | None]", weight.data)
        if not self._prepack:
            return F.linear(x, data, bias)
        return _exactly(lambda rows: _product(rows, data, bias), x)

    def gated_linear(self, x: torch.Tensor, weight: PackedLinear, kind: str) -> torch.Tensor:
        gate, up = self.linear(x, weight).chunk(2, dim=-1)
        if kind == "silu":
            return F.silu(gate).mul_(up)
        if kind == "gelu_tanh":
            return F.gelu(gate, approximate="tanh").mul_(up)
        raise ValueError(f"activation {kind!r} is not one of silu, gelu_tanh")

    def pack_embedding(self, table: WeightPart, head: PackedLinear | None) -> torch.Tensor:
        return _dense(table, self.dtype).to(self.device, self.dtype)

    def embedding(self, token_ids: torch.Tensor, table: object, scale: float = 1.0, part: tuple[int, int] | None = None) -> torch.Tensor:
        if part is not None:
            return part_embedding(lambda ids: self.embedding(ids, table, scale), token_ids, part)
        rows = F.embedding(token_ids, cast("torch.Tensor", table))
        if scale != 1.0:
            rows = rows.mul_(torch.tensor(scale, dtype=rows.dtype).item())
        return rows.float()

    def logits(self, x: torch.Tensor, weight: PackedLinear, softcap: float | None = None) -> torch.Tensor:
        data, bias = cast("tuple[torch.Tensor, torch.Tensor | None]", weight.data)
        scores = _exactly(lambda rows: _wide_product(rows, data, bias), x) if self._prepack else F.linear(x, data, bias).float()
        return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)

    # ---- element-wise ------------------------------------------------------------------------------------------------

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False) -> torch.Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.addcmul(self._epsilon(eps), length, length, value=1.0 / x.shape[-1]).rsqrt_()
        weight = weight.float()
        return (wide * inverse).mul_(weight + 1.0 if plus_one else weight).to(self.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual.add_(x.float())
        return self.rms_norm(residual, weight, eps, plus_one), residual

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
        assert isinstance(kv, TorchKVLayer)
        q, k = self._norm_heads(q, k, norms)
        rotated = _rotate(torch.cat((q, k), dim=1), *_cos_sin(batch, cos_sin))
        q, k = torch.split(rotated, [q.shape[1], k.shape[1]], dim=1)
        rows = _write_rows(batch, kv)
        row_view(kv.keys).index_copy_(0, rows, k.flatten(1).to(kv.keys.dtype))
        row_view(kv.values).index_copy_(0, rows, v.flatten(1).to(kv.values.dtype))
        return q

    def paged_attention(self, q: torch.Tensor, batch: AttentionBatch, kv: KVLayer, spec: AttentionSpec) -> torch.Tensor:
        assert isinstance(kv, TorchKVLayer)
        return paged_attention(q, batch, kv, spec)

    # ---- pool --------------------------------------------------------------------------------------------------------

    def kv_layers(self, pool: torch.Tensor, shape: KVShape) -> list[KVLayer]:
        """Views of the pool. A block holds [layers, keys and values, block_size, Hk, D]."""
        if shape.dtype == "int8":
            raise ValueError("the reference kernels have no int8 cache")
        dtype: torch.dtype = getattr(torch, shape.dtype)
        sizes = (shape.num_layers, 2, shape.block_size, shape.num_kv_heads, shape.head_dim)
        block_bytes = torch.Size(sizes).numel() * dtype.itemsize
        if pool.shape[1] != block_bytes:
            raise ValueError(f"the pool's blocks have {pool.shape[1]} bytes; {list(sizes)} values of {dtype} take {block_bytes}")
        blocks = pool.view(dtype).view(-1, *sizes)
        return [TorchKVLayer(keys=blocks[:, layer, 0], values=blocks[:, layer, 1]) for layer in range(shape.num_layers)]

    def copy_blocks(self, pool: torch.Tensor, copies: list[tuple[int, int]]) -> None:
        if copies:
            source, destination = torch.tensor(copies, device=pool.device).unbind(1)
            pool.index_copy_(0, destination, pool.index_select(0, source))

    def _epsilon(self, eps: float) -> torch.Tensor:
        """``eps`` as a tensor on the device, made once."""
        if eps not in self._epsilons:
            self._epsilons[eps] = torch.tensor(eps, device=self.device)
        return self._epsilons[eps]


def _dense(part: WeightPart, dtype: torch.dtype) -> torch.Tensor:
    """A weight part as a tensor; blocks are spelled out."""
    if not isinstance(part, BlockWeight):
        assert isinstance(part, torch.Tensor)
        return part
    values = torch.from_numpy(np.array(part.values))
    if part.bits == 4:
        values = torch.cat((values & 15, values >> 4), dim=-1)
    scales = torch.from_numpy(np.array(part.scales)).float()
    dense = (values.float() - part.zero) * scales.unsqueeze(-1)
    if part.minima is not None:
        dense += torch.from_numpy(np.array(part.minima)).float().unsqueeze(-1)
    return dense.flatten(1).to(dtype)


def _onednn_packs(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's prepacked product and this processor runs it in ``dtype``."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _exactly(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A prepacked product, each row summed alike whatever rows are given: a lone one as two, many in pieces."""
    rows, narrow = x.shape[0], x.dtype != torch.float32
    if rows == 1 and not (narrow and x.shape[1] in LONE_ROW_SUMS):
        return product(x.expand(2, -1).contiguous())[:1]
    if narrow and rows > EXACT_ROWS:
        return torch.cat([_exactly(product, piece) for piece in torch.split(x, EXACT_ROWS)])
    return product(x)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _wide_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The prepacked product in float32. oneDNN gives one only in its inputs' type; a second product, with the first subtracted
    inside it before it rounds, gives what the first rounded away."""
    rounded = _product(x, weight, bias)
    wide = rounded.float()
    if x.dtype == torch.float32:
        return wide
    return wide.add_(torch.ops.mkldnn._linear_pointwise.binary(x, rounded.neg_(), weight, bias, "add"))


def _cos_sin(batch: AttentionBatch, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of the step's positions, each float32 [T, 1, rotary dim]; gathered once a step and table."""
    key = ("rotary", table.data_ptr())
    if key not in batch.plans:
        cos, sin = table.index_select(0, batch.positions).unsqueeze(1).chunk(2, dim=-1)
        batch.plans[key] = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    result: tuple[torch.Tensor, torch.Tensor] = batch.plans[key]
    return result


def _rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first dimensions of each head of ``x`` [T, heads, D] in float32; ``x`` is overwritten where it is float32."""
    dim = cos.shape[-1]
    wide = x[..., :dim].float()
    first, second = wide.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    rotated = wide.mul_(cos).addcmul_(swapped, signed_sin).to(x.dtype)
    return rotated if dim == x.shape[-1] else torch.cat((rotated, x[..., dim:]), dim=-1)


def _write_rows(batch: AttentionBatch, kv: TorchKVLayer) -> torch.Tensor:
    """The pool rows of the step's slots, worked out once a step."""
    per_block = rows_per_block(kv.keys)
    key = ("write", per_block)
    if key not in batch.plans:
        batch.plans[key] = pool_rows(batch.slots, batch.block_size, per_block)
    result: torch.Tensor = batch.plans[key]
    return result
