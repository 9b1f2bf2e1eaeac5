"""A model's shape, normalised: whatever file it comes from, the rest of Octavo reads these fields and no others.

Imports no torch: the server process reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
)
"""What ``ModelConfig.architecture`` can be; the text part of Gemma3ForConditionalGeneration is a Gemma3ForCausalLM."""


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """Rotary position embedding.

    Attributes:
        dim: rotated dimensions of a head (the first ``dim``; all but for Phi-3's partial rotary factor).
        theta: base of the frequencies.
        kind: default, linear, dynamic, yarn, llama3 or longrope.
        params: the scaling's own parameters under Hugging Face's names (``factor``, ``low_freq_factor``, ``short_factor``, ...).
        original_max_position: the context the frequencies were trained for, where the scaling asks for it.
    """

    dim: int
    theta: float = 10000.0
    kind: str = "default"
    params: dict[str, Any] = field(default_factory=dict)
    original_max_position: int | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a decoder needs to be built, in every family.

    Attributes:
        architecture: Hugging Face's class name, such as ``LlamaForCausalLM``; picks the model.
        model_type: Hugging Face's short name, such as ``llama``.
        intermediate_size: width of the gated MLP.
        num_kv_heads: key/value heads (grouped-query attention).
        max_position_embeddings: the longest context the model is made for, scaling included.
        windows: for each layer, the sliding window in tokens (a query sees itself and ``window - 1`` tokens before), or None.
        rotary: for full-attention layers; ``rotary_local``: for sliding-window layers where they differ (Gemma 3).
        attention_scale: factor on query-key products.
        attention_softcap, logit_softcap: tanh caps (Gemma 2), or None.
        qkv_bias, output_bias, mlp_bias: whether those products have a bias.
        qk_norm: RMSNorm on each head's queries and keys (Qwen 3, Gemma 3).
        norm_plus_one: RMSNorm multiplies by 1 + weight (Gemma).
        embedding_scale: factor on embeddings (Gemma: sqrt(hidden_size)), 1 elsewhere.
        activation: ``silu`` or ``gelu_tanh``.
        dtype: the checkpoint's own: float32, bfloat16 or float16.
        bos_token_id, eos_token_ids, pad_token_id: from config and generation config.
    """

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    rotary: RotaryConfig
    windows: tuple[int | None, ...]
    attention_scale: float
    rotary_local: RotaryConfig | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_plus_one: bool = False
    embedding_scale: float = 1.0
    activation: str = "silu"
    tie_word_embeddings: bool = False
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def kv_values_per_token(self) -> int:
        """Cached values (keys and values) a token has in all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim
