"""A model's shape from Hugging Face's config.json and generation_config.json. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.models.config import SUPPORTED_ARCHITECTURES, ModelConfig
from octavo.models.families import BY_ARCHITECTURE, BY_MODEL_TYPE, Family, without_wide_windows
from octavo.models.fields import Fields, read_json_object
from octavo.models.hf_rotary import longest_context, read_rotary

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_DTYPES = ("float32", "bfloat16", "float16")
# What a multimodal checkpoint states beside its text part.
_OUTER_FIELDS = ("eos_token_id", "bos_token_id", "pad_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
_MULTIMODAL = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}


def read_hf_config(directory: Path) -> ModelConfig:
    """The shape of the checkpoint in a directory.

    Raises:
        ModelLoadError: a file cannot be read, or a field is missing or senseless.
        UnsupportedModelError: an architecture, scaling or quantisation that Octavo does not run.
    """
    path = directory / "config.json"
    raw = read_json_object(path)
    family = _family(path, raw)
    config = Fields(path, dict(family.defaults) | _text_part(path, raw))
    _refuse_unsupported(config)
    hidden_size = config.integer("hidden_size", high=2**20)
    num_heads = config.integer("num_attention_heads", high=2**16)
    num_kv_heads = config.integer("num_key_value_heads", num_heads, high=2**16)
    if num_heads % num_kv_heads:
        raise config.error("num_key_value_heads", f"is {num_kv_heads}, which does not divide the {num_heads} attention heads")
    if "head_dim" not in config and hidden_size % num_heads:
        raise config.error("head_dim", f"is missing, and {num_heads} heads do not divide hidden_size {hidden_size}")
    head_dim = config.integer("head_dim", hidden_size // num_heads, high=2**16)
    max_position = config.integer("max_position_embeddings")
    rotary, rotary_local = read_rotary(config, family, head_dim, max_position)
    context = longest_context(rotary, max_position, family)
    windows = _windows(config, family)
    attention_bias = "attention_bias" in family.bias_fields and config.flag("attention_bias", False)
    return ModelConfig(
        architecture=family.architecture,
        model_type=family.model_type,
        vocab_size=config.integer("vocab_size", high=2**26),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size", high=2**22),
        num_layers=config.integer("num_hidden_layers", high=10_000),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        norm_eps=config.number("rms_norm_eps", 1e-6, high=1.0),
        rotary=rotary,
        rotary_local=rotary_local,
        windows=windows if rotary_local else without_wide_windows(windows, context),
        attention_scale=(config.number("query_pre_attn_scalar") if family.gemma else head_dim) ** -0.5,
        attention_softcap=config.optional_number("attn_logit_softcapping") if family.gemma else None,
        logit_softcap=config.optional_number("final_logit_softcapping") if family.gemma else None,
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias="mlp_bias" in family.bias_fields and config.flag("mlp_bias", False),
        qk_norm=family.qk_norm,
        norm_plus_one=family.gemma,
        embedding_scale=hidden_size**0.5 if family.gemma else 1.0,
        activation=_activation(config, family),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        dtype=_dtype(config),
        **_special_tokens(config, directory),
    )


def read_hf_generation_config(directory: Path) -> dict[str, Any]:
    """The sampling defaults in generation_config.json (none when there is no such file): those of temperature, top_p, top_k,
    min_p, repetition_penalty, max_new_tokens and eos_token_id (a list) that it states.

    Raises:
        ModelLoadError: the file cannot be read or a value is senseless.
    """
    path = directory / "generation_config.json"
    if not path.exists():
        return {}
    fields = Fields(path, read_json_object(path))
    found: dict[str, Any] = {
        "temperature": fields.optional_number("temperature", above=False),
        "top_p": fields.optional_number("top_p", high=1.0),
        "top_k": fields.optional_integer("top_k", low=-1),
        "min_p": fields.optional_number("min_p", above=False, high=1.0),
        "repetition_penalty": fields.optional_number("repetition_penalty"),
        "max_new_tokens": fields.optional_integer("max_new_tokens"),
        "eos_token_id": list(fields.token_ids("eos_token_id")) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _family(path: Path, raw: dict[str, Any]) -> Family:
    """The family, by ``architectures`` or, in files that lack it, by ``model_type``."""
    named: list[str] = raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise Fields(path, raw).error("architectures", f"must be a list of names, not {named!r:.100}")
    for name in named:
        if family := BY_ARCHITECTURE.get(_MULTIMODAL.get(name, name)):
            return family
    model_type = Fields(path, raw).text("model_type", "unknown")
    if not named and model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    supported = ", ".join((*SUPPORTED_ARCHITECTURES, *_MULTIMODAL))
    label = ", ".join(named) or f"of model type {model_type!r}"
    raise UnsupportedModelError(f"{path}: architecture {label} is not supported; these are: {supported}.")


def _text_part(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """The decoder's own fields, lifted out of a multimodal checkpoint's ``text_config``."""
    text = Fields(path, raw).object("text_config")
    if text is None:
        return raw
    return {name: raw[name] for name in _OUTER_FIELDS if raw.get(name) is not None} | dict(text.values)


def _refuse_unsupported(config: Fields) -> None:
    if (quantization := config.object("quantization_config")) is not None:
        method = quantization.text("quant_method", "of an unknown kind")
        raise UnsupportedModelError(f"{config.path}: quantisation {method!r} is not supported; unquantised safetensors and GGUF files are.")
    if config.flag("use_bidirectional_attention", False):
        raise UnsupportedModelError(f"{config.path}: use_bidirectional_attention makes this an encoder; only decoders are supported.")


def _windows(config: Fields, family: Family) -> tuple[int | None, ...]:
    """The sliding window of each layer."""
    num_layers = config.integer("num_hidden_layers", high=10_000)
    window = config.optional_integer("sliding_window")
    if family.model_type.startswith("qwen") and not config.flag("use_sliding_window", False):
        window = None
    if (kinds := config.values.get("layer_types")) is not None:
        return _windows_of_kinds(config, kinds, window, num_layers)
    if window is None or family.model_type == "llama":
        return (None,) * num_layers
    if family.window_period is not None:
        # Newer transformers writes the period under a private name.
        period = config.integer("sliding_window_pattern", config.integer("_sliding_window_pattern", family.window_period))
        return tuple(window if (layer + 1) % period else None for layer in range(num_layers))
    first = config.integer("max_window_layers", low=0) if family.model_type.startswith("qwen") else 0
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _windows_of_kinds(config: Fields, kinds: Any, window: int | None, num_layers: int) -> tuple[int | None, ...]:
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.error("layer_types", f"must list the {num_layers} layers' kinds, not {kinds!r:.100}")
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModelError(f"{config.path}: layers of type {kind!r:.100} are not supported; these are: {', '.join(known)}.")
    if window is None and "sliding_attention" in kinds:
        raise config.error("sliding_window", "is missing (or off), but layer_types names sliding_attention layers")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _activation(config: Fields, family: Family) -> str:
    name = config.text("hidden_activation") if family.gemma else config.text("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"{config.path}: activation {name!r} is not supported; these are: {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _dtype(config: Fields) -> str:
    """The checkpoint's type; like transformers, float32 where the file does not say."""
    name = config.text("dtype", config.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in _DTYPES:
        raise UnsupportedModelError(f"{config.path}: weights of type {name!r} are not supported; these are: {', '.join(_DTYPES)}.")
    return name


def _special_tokens(config: Fields, directory: Path) -> dict[str, Any]:
    """End-of-sequence ids are joined from both files: chat models often state the end of a turn only for generation."""
    ends = config.token_ids("eos_token_id") + tuple(read_hf_generation_config(directory).get("eos_token_id", ()))
    pad = config.optional_integer("pad_token_id", low=-1)
    return {
        "bos_token_id": config.optional_integer("bos_token_id", low=0),
        "eos_token_ids": tuple(dict.fromkeys(ends)),
        "pad_token_id": None if pad == -1 else pad,
    }
