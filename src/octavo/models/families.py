"""What sets one family of decoders apart from the next, whatever file its checkpoint is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """The facts of a family that its checkpoints do not state.

    Attributes:
        architecture: Hugging Face's class name; model_type: its short name.
        gguf: the name llama.cpp gives it (it files Mistral under llama).
        gemma: norms multiply by 1 + weight, embeddings are scaled by sqrt(hidden size), the activation is gelu_tanh, attention is
            scaled by ``query_pre_attn_scalar``, and each block has four norms.
        qkv_bias: queries, keys and values have a bias, always. bias_fields: ``attention_bias`` and ``mlp_bias`` say so instead.
        qk_norm: RMSNorm on each head's queries and keys.
        merged: queries, keys and values are one tensor, and so are gate and up.
        window_period: of this many layers all but the last have a sliding window (None: a family without such a pattern).
        theta: base of the rotary frequencies where the file has none; local_theta: of the sliding-window layers.
        defaults: values of fields that files of this family are known to leave out (they are written as differences from these).
    """

    architecture: str
    model_type: str
    gguf: str
    gemma: bool = False
    qkv_bias: bool = False
    bias_fields: tuple[str, ...] = ()
    qk_norm: bool = False
    merged: bool = False
    window_period: int | None = None
    theta: float = 10000.0
    local_theta: float | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

FAMILIES = (
    Family("LlamaForCausalLM", "llama", "llama", bias_fields=("attention_bias", "mlp_bias")),
    Family("MistralForCausalLM", "mistral", "llama", defaults={"sliding_window": 4096, "num_key_value_heads": 8}),
    Family("Qwen2ForCausalLM", "qwen2", "qwen2", qkv_bias=True, defaults={"max_window_layers": 28, "sliding_window": 4096}),
    Family(
        "Qwen3ForCausalLM",
        "qwen3",
        "qwen3",
        bias_fields=("attention_bias",),
        qk_norm=True,
        defaults={"head_dim": 128, "max_window_layers": 28, "sliding_window": 4096},
    ),
    Family(
        "Gemma2ForCausalLM",
        "gemma2",
        "gemma2",
        gemma=True,
        bias_fields=("attention_bias",),
        window_period=2,
        defaults=_GEMMA_DEFAULTS
        | {
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        "gemma3",
        gemma=True,
        bias_fields=("attention_bias",),
        qk_norm=True,
        window_period=6,
        theta=1_000_000.0,
        local_theta=10_000.0,
        defaults=_GEMMA_DEFAULTS | {"vocab_size": 262208, "max_position_embeddings": 131072},
    ),
    Family("Phi3ForCausalLM", "phi3", "phi3", merged=True, defaults={"rms_norm_eps": 1e-5}),
)
BY_ARCHITECTURE: dict[str, Family] = {family.architecture: family for family in FAMILIES}
BY_MODEL_TYPE: dict[str, Family] = {family.model_type: family for family in FAMILIES}
BY_GGUF: dict[str, Family] = {family.gguf: family for family in reversed(FAMILIES)}
"""By llama.cpp's name; a ``llama`` file is read as LlamaForCausalLM."""


def without_wide_windows(windows: tuple[int | None, ...], context: int) -> tuple[int | None, ...]:
    """The layers' windows without those that no context outgrows: such a layer attends to everything, and is cheaper to run so.

    Only for models whose sliding-window layers differ in nothing else.
    """
    return tuple(None if window is not None and window >= context else window for window in windows)
