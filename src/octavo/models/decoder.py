"""The decoder that all families share: embedding, blocks, final norm, vocabulary scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from octavo.layers.attention import Attention
from octavo.layers.embedding import Embedding
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rotary import rotary_table
from octavo.models.config import ModelConfig
from octavo.models.sharding import Shard
from octavo.ops.base import AttentionBatch, AttentionSpec, KVLayer, Ops
from octavo.quantization.base import WeightSource


class Block(ABC):
    """One decoder layer. Constructing it reads and packs its weights.

    A block carries two tensors: ``hidden``, what the last part computed, and ``residual``, the sum of all before it. Adding the one
    to the other is left to the next norm, which is one fused operation.

    Args:
        index: of the layer.
        cos_sin: its rotary table.
    """

    @abstractmethod
    def __init__(self, config: ModelConfig, weights: WeightSource, ops: Ops, index: int, cos_sin: torch.Tensor) -> None: ...

    @abstractmethod
    def __call__(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, batch: AttentionBatch, kv: KVLayer
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the layer.

        Args:
            hidden: [T, H].
            residual: [T, H], may be overwritten; None in the first layer, whose hidden is the whole sum.

        Returns:
            hidden and residual for the next layer.
        """


class Model:
    """A decoder, built from a checkpoint: constructing it is loading it, layer by layer.

    Args:
        block: the family's layer.
        config: of the whole model, or of a rank's part (``Shard.local``).
        max_model_len: positions the rotary tables have.
        progress: told the fraction loaded after each layer.
        shard: the rank's part; None for the whole model.

    Attributes:
        ops: the kernels it runs on.

    Raises:
        ModelLoadError: a tensor is missing.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        ops: Ops,
        max_model_len: int,
        block: type[Block],
        progress: Callable[[float], None],
        shard: Shard | None = None,
    ) -> None:
        self.config = config
        self.ops = ops
        self.is_first, self.is_last = shard is None or shard.is_first, shard is None or shard.is_last
        ends = self.is_first, self.is_last, None if shard is None else shard.vocabularies
        self.embedding: Embedding | None = None
        if self.is_first or self.is_last:
            self.embedding = Embedding(ops, weights, config.tie_word_embeddings, config.embedding_scale, config.logit_softcap, *ends)
        weights.let_go()
        parts = config.num_layers + 1
        progress(1 / parts)
        table = rotary_table(config.rotary, config.max_position_embeddings, max_model_len).to(ops.device)
        local = table
        if config.rotary_local is not None and config.rotary_local != config.rotary:
            local = rotary_table(config.rotary_local, config.max_position_embeddings, max_model_len).to(ops.device)
        self.blocks: list[Block] = []
        for index, window in enumerate(config.windows):
            self.blocks.append(block(config, weights, ops, index, table if window is None else local))
            weights.let_go()
            progress((index + 2) / parts)
        self.norm = RMSNorm(ops, weights, "model.norm", config.norm_eps, config.norm_plus_one) if self.is_last else None

    def forward(self, start: torch.Tensor, batch: AttentionBatch, kv: list[KVLayer]) -> torch.Tensor:
        """Run one step and write its keys and values to the pool.

        Args:
            start: the tokens, int64 [T]; in all stages of a pipeline but the first, what the stage before returned.
            batch: the step's geometry.
            kv: the pool's views, one a layer.

        Returns:
            [T, H], the final norm applied; in all stages but the last, the residual stream for the next, float32 [T, H].
        """
        hidden = self.embedding(start) if self.is_first and self.embedding is not None else self.ops.stage_input(start)
        residual = None
        for block, layer in zip(self.blocks, kv, strict=True):
            hidden, residual = block(hidden, residual, batch, layer)
        assert residual is not None
        return self.ops.add(hidden, residual) if self.norm is None else self.norm.add(hidden, residual)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Vocabulary scores of rows [R, H] of the last stage's result: float32 [R, V] on its first rank, None on the others."""
        assert self.embedding is not None, "a stage that does not score the vocabulary was asked to"
        return self.embedding.logits(hidden)


def layer_norm(config: ModelConfig, weights: WeightSource, ops: Ops, index: int, name: str) -> RMSNorm:
    """A layer's norm over the hidden size."""
    return RMSNorm(ops, weights, f"model.layers.{index}.{name}", config.norm_eps, config.norm_plus_one)


def layer_attention(
    config: ModelConfig, weights: WeightSource, ops: Ops, index: int, cos_sin: torch.Tensor, names: Sequence[str]
) -> Attention:
    """A layer's attention as the configuration describes it; ``names`` are those of query, key and value."""
    prefix = f"model.layers.{index}.self_attn"
    norms = None
    if config.qk_norm:
        query, key = (RMSNorm(ops, weights, f"{prefix}.{name}", config.norm_eps, config.norm_plus_one) for name in ("q_norm", "k_norm"))
        norms = query, key
    spec = AttentionSpec(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        scale=config.attention_scale,
        window=config.windows[index],
        softcap=config.attention_softcap,
    )
    return Attention(ops, weights, prefix, names, spec, cos_sin, norms, config.qkv_bias, config.output_bias)


def layer_mlp(config: ModelConfig, weights: WeightSource, ops: Ops, index: int, names: Sequence[str]) -> GatedMLP:
    """A layer's feed-forward network; ``names`` are those of gate and up."""
    prefix = f"model.layers.{index}.mlp"
    return GatedMLP(ops, weights, prefix, names, config.activation, config.mlp_bias)
