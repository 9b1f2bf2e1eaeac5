"""A model's shape from the metadata of a GGUF file. Imports no torch.

Keys are llama.cpp's (github.com/ggml-org/ggml/blob/master/docs/gguf.md, and gguf-py's ``constants.py``). What its converters leave
out and its loader knows by heart (Gemma's window pattern and query scale) is stated here too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.config import ModelConfig, RotaryConfig
from octavo.models.families import BY_GGUF, Family, without_wide_windows
from octavo.models.fields import Fields
from octavo.quantization.gguf import GGUFFile

_DTYPES = {"F32": "float32", "F16": "float16"}
# The largest Gemmas scale queries by hidden size / heads instead of the head size; their files do not say so, llama.cpp
# goes by the number of layers.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
# Marks that end a turn: chat models stop at them, but many files name only the end of text.
_TURN_ENDS = frozenset({"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"})
_CONTROL_TOKENS = (3, 4)  # token types "control" and "user defined"


def read_gguf_config(file: GGUFFile) -> ModelConfig:
    """The shape of the model in a GGUF file.

    Raises:
        ModelLoadError: a key is missing or senseless.
        UnsupportedModelError: an architecture or variant that Octavo does not run.
    """
    family = _family(file)
    keys = Fields(file.path, {key: _plain(value) for key, value in file.metadata.items()})
    arch = family.gguf
    _refuse_unsupported(keys, arch)
    hidden_size = keys.integer(f"{arch}.embedding_length", high=2**20)
    num_layers = keys.integer(f"{arch}.block_count", high=10_000)
    num_heads = keys.integer(f"{arch}.attention.head_count", high=2**16)
    num_kv_heads = keys.integer(f"{arch}.attention.head_count_kv", num_heads, high=2**16)
    if num_heads % num_kv_heads:
        raise keys.error(f"{arch}.attention.head_count_kv", f"is {num_kv_heads}, which does not divide the {num_heads} heads")
    head_dim = keys.integer(f"{arch}.attention.key_length", hidden_size // num_heads, high=2**16)
    if keys.integer(f"{arch}.attention.value_length", head_dim, high=2**16) != head_dim:
        raise UnsupportedModelError(f"{file.path}: values of another size than keys are not supported.")
    context = keys.integer(f"{arch}.context_length")
    rotary = _rotary(file, keys, family, head_dim, context)
    if rotary.kind == "yarn":
        context = max(context, int((rotary.original_max_position or context) * rotary.params["factor"]))
    local = None
    if family.local_theta is not None:
        local = RotaryConfig(rotary.dim, keys.number(f"{arch}.rope.freq_base_swa", family.local_theta))
    windows = _windows(keys, family, num_layers)
    query_scalar = hidden_size // num_heads if _GEMMA_27B_LAYERS.get(arch) == num_layers else head_dim
    return ModelConfig(
        architecture=family.architecture,
        model_type=family.model_type,
        vocab_size=_rows(file, "token_embd.weight"),
        hidden_size=hidden_size,
        intermediate_size=keys.integer(f"{arch}.feed_forward_length", high=2**22),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        norm_eps=keys.number(f"{arch}.attention.layer_norm_rms_epsilon", high=1.0),
        rotary=rotary,
        rotary_local=local,
        windows=windows if local else without_wide_windows(windows, context),
        attention_scale=query_scalar**-0.5,
        attention_softcap=keys.number(f"{arch}.attn_logit_softcapping", 50.0) if arch == "gemma2" else None,
        logit_softcap=_logit_softcap(keys, arch),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm=family.qk_norm,
        norm_plus_one=family.gemma,
        embedding_scale=hidden_size**0.5 if family.gemma else 1.0,
        activation="gelu_tanh" if family.gemma else "silu",
        tie_word_embeddings="output.weight" not in file.tensors,
        dtype=_dtype(file),
        bos_token_id=keys.optional_integer("tokenizer.ggml.bos_token_id", low=0),
        eos_token_ids=_ends(file, keys),
        pad_token_id=keys.optional_integer("tokenizer.ggml.padding_token_id", low=0),
    )


def read_gguf_generation_config(file: GGUFFile) -> dict[str, Any]:
    """The sampling defaults a GGUF file recommends, under Hugging Face's names, and its ``eos_token_id`` (a list)."""
    keys = Fields(file.path, {key: _plain(value) for key, value in file.metadata.items() if key.startswith("general.sampling.")})
    found: dict[str, Any] = {
        "temperature": keys.optional_number("general.sampling.temp", above=False),
        "top_p": keys.optional_number("general.sampling.top_p", high=1.0),
        "top_k": keys.optional_integer("general.sampling.top_k", low=-1),
        "min_p": keys.optional_number("general.sampling.min_p", above=False, high=1.0),
        "repetition_penalty": keys.optional_number("general.sampling.penalty_repeat"),
        "eos_token_id": list(_ends(file, Fields(file.path, file.metadata))) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _family(file: GGUFFile) -> Family:
    arch = Fields(file.path, file.metadata).text("general.architecture")
    if arch not in BY_GGUF:
        raise UnsupportedModelError(f"{file.path}: architecture {arch!r} is not supported; these are: {', '.join(sorted(BY_GGUF))}.")
    return BY_GGUF[arch]


def _plain(value: Any) -> Any:
    """A value as Fields reads it: an array that repeats one number (heads of each layer) is that number."""
    if isinstance(value, np.ndarray):
        return value[0].item() if value.size and (value == value[0]).all() else value.tolist() if value.size < 2**14 else value
    return value


def _refuse_unsupported(keys: Fields, arch: str) -> None:
    if (parts := keys.integer("split.count", 1, low=0, high=2**16)) > 1:
        part = keys.integer("split.no", 0, low=0, high=2**16) + 1
        raise UnsupportedModelError(f"{keys.path}: is part {part} of {parts}; join the parts with `llama-gguf-split --merge` first.")
    if keys.integer(f"{arch}.expert_count", 0, low=0):
        raise UnsupportedModelError(f"{keys.path}: mixtures of experts are not supported.")


def _rows(file: GGUFFile, name: str) -> int:
    if name not in file.tensors:
        raise ModelLoadError(f"{file.path}: the file has no tensor {name!r}.")
    return file.tensors[name].shape[0]


def _rotary(file: GGUFFile, keys: Fields, family: Family, head_dim: int, context: int) -> RotaryConfig:
    rope = f"{family.gguf}.rope"
    dim = keys.integer(f"{rope}.dimension_count", head_dim, low=2, high=head_dim)
    if dim % 2:
        raise keys.error(f"{rope}.dimension_count", f"is {dim}; an even number is needed")
    theta = keys.number(f"{rope}.freq_base", 10000.0)
    original = keys.integer(f"{rope}.scaling.original_context_length", context)
    if "rope_factors_long.weight" in file.tensors:
        return RotaryConfig(dim, theta, "longrope", _longrope(file, keys, rope, dim, context / original), original)
    if "rope_freqs.weight" in file.tensors:
        # Llama 3's scaling, worked out by the converter: one divisor a frequency, at every position. LongRoPE with equal
        # factors and no attention factor is just that.
        divisors = _factors(file, "rope_freqs.weight", dim)
        parameters = {"short_factor": divisors, "long_factor": divisors, "factor": 1.0, "attention_factor": 1.0}
        return RotaryConfig(dim, theta, "longrope", parameters, context)
    factor = keys.number(f"{rope}.scaling.factor", keys.number(f"{rope}.scale_linear", 1.0))
    kind = keys.text(f"{rope}.scaling.type", "linear")
    if kind == "none" or factor == 1.0:
        return RotaryConfig(dim, theta)
    if kind == "linear":
        return RotaryConfig(dim, theta, "linear", {"factor": factor})
    if kind == "yarn":
        return RotaryConfig(dim, theta, "yarn", _yarn(keys, rope, factor), original)
    raise UnsupportedModelError(f"{keys.path}: rotary scaling {kind!r} is not supported; these are: none, linear, yarn, longrope.")


def _longrope(file: GGUFFile, keys: Fields, rope: str, dim: int, factor: float) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "short_factor": _factors(file, "rope_factors_short.weight", dim),
        "long_factor": _factors(file, "rope_factors_long.weight", dim),
        "factor": factor,
    }
    if (attention_factor := keys.optional_number(f"{rope}.scaling.attn_factor")) is not None:
        parameters["attention_factor"] = attention_factor
    return parameters


def _yarn(keys: Fields, rope: str, factor: float) -> dict[str, Any]:
    """YaRN's parameters. llama.cpp multiplies the usual attention factor by the file's, Hugging Face replaces it."""
    if keys.number(f"{rope}.scaling.yarn_ext_factor", 1.0, low=-2.0) not in (1.0, -1.0):
        raise keys.error(f"{rope}.scaling.yarn_ext_factor", "other than 1 is not supported")
    parameters: dict[str, Any] = {"factor": factor, "truncate": True}
    extra = keys.number(f"{rope}.scaling.yarn_attn_factor", keys.number(f"{rope}.scaling.attn_factor", 1.0))
    parameters["attention_factor"] = extra * (1.0 + 0.1 * math.log(factor)) if factor > 1.0 else extra
    for name in ("beta_fast", "beta_slow"):
        if (value := keys.optional_number(f"{rope}.scaling.yarn_{name}")) is not None:
            parameters[name] = value
    return parameters


def _factors(file: GGUFFile, name: str, dim: int) -> list[float]:
    """One positive divisor for each of ``dim`` / 2 frequencies, from a float32 tensor."""
    tensor = file.tensors.get(name)
    if tensor is None or tensor.format != "F32" or tensor.shape != (dim // 2,):
        raise ModelLoadError(f"{file.path}: tensor {name!r} must hold {dim // 2} float32 values.")
    factors = file.data(name).view("<f4")
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelLoadError(f"{file.path}: tensor {name!r} must hold positive numbers.")
    return [float(factor) for factor in factors]


def _windows(keys: Fields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer; a file without one, or with 0 (Phi 4), has none."""
    window = keys.integer(f"{family.gguf}.attention.sliding_window", 0, low=0)
    if not window:
        return (None,) * num_layers
    name = f"{family.gguf}.attention.sliding_window_pattern"
    pattern = keys.values.get(name)
    if isinstance(pattern, list):
        if len(pattern) != num_layers or not all(isinstance(slides, bool) for slides in pattern):
            raise keys.error(name, f"must say for each of {num_layers} layers whether it slides, not {pattern!r:.100}")
        return tuple(window if slides else None for slides in pattern)
    if isinstance(pattern, bool):
        return (window if pattern else None,) * num_layers
    if family.window_period is None:
        return (window,) * num_layers
    period = keys.integer(name, family.window_period)
    return tuple(window if (layer + 1) % period else None for layer in range(num_layers))


def _logit_softcap(keys: Fields, arch: str) -> float | None:
    """Gemma 2's files may leave out its 30; Gemma 3 has one only where its file says so."""
    name = f"{arch}.final_logit_softcapping"
    return keys.number(name, 30.0) if arch == "gemma2" else keys.optional_number(name)


def _dtype(file: GGUFFile) -> str:
    """The type most values are stored in; quantised weights came from bfloat16 and are decoded to it."""
    stored: dict[str, int] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            stored[tensor.format] = stored.get(tensor.format, 0) + math.prod(tensor.shape)
    return _DTYPES.get(max(stored, key=lambda name: stored[name]), "bfloat16") if stored else "float32"


def _ends(file: GGUFFile, keys: Fields) -> tuple[int, ...]:
    """Ids that end a sequence: those the file names, then its marks for the end of a turn."""
    named = [keys.optional_integer(f"tokenizer.ggml.{name}_token_id", low=0) for name in ("eos", "eot", "eom")]
    ends = [token for token in named if token is not None]
    tokens, kinds = file.metadata.get("tokenizer.ggml.tokens"), file.metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(kinds, np.ndarray) and len(tokens) == len(kinds):
        special = np.flatnonzero(np.isin(kinds, _CONTROL_TOKENS))
        ends += [int(token) for token in special if tokens[token] in _TURN_ENDS]
    return tuple(dict.fromkeys(ends))
