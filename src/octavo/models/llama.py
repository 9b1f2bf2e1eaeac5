"""The layer of Llama, Mistral, Qwen 2, Qwen 3 and Phi-3: a norm before attention, a norm before the feed-forward network.

What sets these families apart (biases, head norms, windows, rotary scaling) is in ``ModelConfig``; Phi-3 also stores query, key and
value as one tensor, and gate and up as one.
"""

from __future__ import annotations

import torch

from octavo.models.config import ModelConfig
from octavo.models.decoder import Block, layer_attention, layer_mlp, layer_norm
from octavo.ops.base import AttentionBatch, KVLayer, Ops
from octavo.quantization.base import WeightSource


class LlamaBlock(Block):
    """residual += attention(norm(residual)); residual += mlp(norm(residual)).

    Attributes:
        qkv_names, gate_up_names: what the family calls these tensors.
    """

    qkv_names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up_names: tuple[str, ...] = ("gate_proj", "up_proj")

    def __init__(self, config: ModelConfig, weights: WeightSource, ops: Ops, index: int, cos_sin: torch.Tensor) -> None:
        self.input_norm = layer_norm(config, weights, ops, index, "input_layernorm")
        self.attention = layer_attention(config, weights, ops, index, cos_sin, self.qkv_names)
        self.mlp_norm = layer_norm(config, weights, ops, index, "post_attention_layernorm")
        self.mlp = layer_mlp(config, weights, ops, index, self.gate_up_names)

    def __call__(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, batch: AttentionBatch, kv: KVLayer
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = hidden
            hidden = self.input_norm(hidden)
        else:
            hidden, residual = self.input_norm.add(hidden, residual)
        hidden = self.attention(hidden, batch, kv)
        hidden, residual = self.mlp_norm.add(hidden, residual)
        return self.mlp(hidden), residual


class Phi3Block(LlamaBlock):
    """Llama's layer under Phi-3's tensor names."""

    qkv_names = ("qkv_proj",)
    gate_up_names = ("gate_up_proj",)
