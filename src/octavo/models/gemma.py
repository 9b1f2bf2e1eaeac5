"""The layer of Gemma 2 and Gemma 3: a norm before and after attention, a norm before and after the feed-forward network.

Softcaps (Gemma 2), head norms and a second rotary table for sliding windows (Gemma 3) are in ``ModelConfig``.
"""

from __future__ import annotations

import torch

from octavo.models.config import ModelConfig
from octavo.models.decoder import Block, layer_attention, layer_mlp, layer_norm
from octavo.ops.base import AttentionBatch, KVLayer, Ops
from octavo.quantization.base import WeightSource


class GemmaBlock(Block):
    """residual += norm(attention(norm(residual))); residual += norm(mlp(norm(residual)))."""

    def __init__(self, config: ModelConfig, weights: WeightSource, ops: Ops, index: int, cos_sin: torch.Tensor) -> None:
        self.input_norm = layer_norm(config, weights, ops, index, "input_layernorm")
        self.attention = layer_attention(config, weights, ops, index, cos_sin, ("q_proj", "k_proj", "v_proj"))
        self.attention_norm = layer_norm(config, weights, ops, index, "post_attention_layernorm")
        self.mlp_norm = layer_norm(config, weights, ops, index, "pre_feedforward_layernorm")
        self.mlp = layer_mlp(config, weights, ops, index, ("gate_proj", "up_proj"))
        self.output_norm = layer_norm(config, weights, ops, index, "post_feedforward_layernorm")

    def __call__(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, batch: AttentionBatch, kv: KVLayer
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = hidden
            hidden = self.input_norm(hidden)
        else:
            hidden, residual = self.input_norm.add(hidden, residual)
        hidden = self.attention_norm(self.attention(hidden, batch, kv))
        hidden, residual = self.mlp_norm.add(hidden, residual)
        return self.output_norm(self.mlp(hidden)), residual
