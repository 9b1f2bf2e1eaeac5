"""Self-attention over the page pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.layers.linear import Linear
from octavo.layers.norm import RMSNorm
from octavo.ops.base import AttentionBatch, AttentionSpec, HeadNorms, KVLayer, Ops
from octavo.quantization.base import WeightSource


class Attention:
    """Grouped-query attention with rotary positions; query, key and value are one product.

    The ranks of ``ops.group`` each have some of the heads, and sum what their heads put out.

    Args:
        prefix: of the tensor names, such as ``model.layers.0.self_attn``.
        qkv: the names of query, key and value, or the one name of a tensor that holds all three.
        spec: heads, scale, window and softcap.
        cos_sin: the layer's rotary table.
        norms: RMSNorm on each head of queries and of keys, or None.
        qkv_bias, output_bias: whether the products have a bias.
    """

    def __init__(
        self,
        ops: Ops,
        weights: WeightSource,
        prefix: str,
        qkv: Sequence[str],
        spec: AttentionSpec,
        cos_sin: torch.Tensor,
        norms: tuple[RMSNorm, RMSNorm] | None,
        qkv_bias: bool,
        output_bias: bool,
    ) -> None:
        self.ops = ops
        self.spec = spec
        self.cos_sin = cos_sin
        self.norms: HeadNorms | None = None
        if norms is not None:
            queries, keys = norms
            self.norms = HeadNorms(queries.weight, keys.weight, queries.eps, queries.plus_one)
        self.splits = [heads * spec.head_dim for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
        self.qkv = Linear(ops, weights, [f"{prefix}.{name}" for name in qkv], qkv_bias)
        self.output = Linear(ops, weights, [f"{prefix}.o_proj"], output_bias)

    def __call__(self, x: torch.Tensor, batch: AttentionBatch, kv: KVLayer) -> torch.Tensor:
        """[T, H] to [T, H]; keys and values of the rows are written to the pool."""
        q, k, v = (part.view(len(x), -1, self.spec.head_dim) for part in torch.split(self.qkv(x), self.splits, dim=1))
        q = self.ops.rotary_and_cache(q, k, v, self.cos_sin, batch, kv, self.norms)
        return self.ops.all_reduce(self.output(self.ops.paged_attention(q, batch, kv, self.spec).flatten(1)))
