"""config.json and generation_config.json of every family, in the older and the newer spelling, and false ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.config import SUPPORTED_ARCHITECTURES, ModelConfig, RotaryConfig
from octavo.models.families import FAMILIES
from octavo.models.hf_config import read_hf_config, read_hf_generation_config

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}

# Files as they were written before transformers 5.
OLD_FILES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama-linear": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-biased": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 128, "head_dim": 32},
    "mistral-full": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 64,
    },
    "qwen2-sliding": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 3,
    },
    "qwen3-yarn": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 32,
        "query_pre_attn_scalar": 144,
        "sliding_window": 128,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 128,
        "sliding_window_pattern": 2,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.5,
        "rope_scaling": LONGROPE,
        "sliding_window": 100000,
        "eos_token_id": [2, 7],
        "pad_token_id": 0,
    },
}


def write(directory: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def read_old(tmp_path: Path, name: str, **changes: Any) -> ModelConfig:
    return read_hf_config(write(tmp_path / "old", SHAPE | OLD_FILES[name] | changes))


@pytest.mark.parametrize("name", OLD_FILES)
def test_both_spellings_mean_the_same(tmp_path: Path, name: str) -> None:
    old = read_old(tmp_path, name)
    transformers.AutoConfig.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
    renewed = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "rope_parameters" in renewed
    assert "rope_theta" not in renewed
    assert read_hf_config(tmp_path / "new") == old


@pytest.mark.parametrize("name", OLD_FILES)
def test_windows_and_sizes_are_those_transformers_uses(tmp_path: Path, name: str) -> None:
    ours = read_old(tmp_path, name)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "old")
    kinds = (
        getattr(theirs, "layer_types", None) or ["sliding_attention" if getattr(theirs, "sliding_window", None) else "full_attention"] * 4
    )
    windows = tuple(theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds)
    assert ours.windows == tuple(None if w is not None and w >= ours.max_position_embeddings else w for w in windows)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.head_dim, ours.tie_word_embeddings) == (head_dim, theirs.tie_word_embeddings)
    assert ours.attention_scale == getattr(theirs, "query_pre_attn_scalar", head_dim) ** -0.5


def test_every_supported_architecture_has_one_family() -> None:
    assert tuple(family.architecture for family in FAMILIES) == SUPPORTED_ARCHITECTURES


def test_llama3_scaling_and_the_stated_context(tmp_path: Path) -> None:
    config = read_old(tmp_path, "llama")
    parameters = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert config.rotary == RotaryConfig(16, 500000.0, "llama3", parameters, 128)
    assert config.max_position_embeddings == 512
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == (False, False, False)


def test_linear_and_yarn_scaling_stretch_the_context(tmp_path: Path) -> None:
    assert read_old(tmp_path, "llama-linear").max_position_embeddings == 2048
    yarn = read_old(tmp_path, "qwen3-yarn")
    assert yarn.max_position_embeddings == 2048
    assert yarn.rotary.original_max_position == 512
    assert read_old(tmp_path, "qwen3-yarn", max_position_embeddings=2048).max_position_embeddings == 2048


def test_biases_by_family(tmp_path: Path) -> None:
    biased = read_old(tmp_path, "llama-biased")
    assert (biased.qkv_bias, biased.output_bias, biased.mlp_bias) == (True, True, True)
    qwen2 = read_old(tmp_path, "qwen2")
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = read_old(tmp_path, "qwen3-yarn")
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)


def test_gemma_facts(tmp_path: Path) -> None:
    two = read_old(tmp_path, "gemma2")
    assert (two.windows, two.attention_softcap, two.logit_softcap) == ((128, None, 128, None), 50.0, 30.0)
    assert (two.attention_scale, two.embedding_scale, two.norm_plus_one, two.activation) == (1 / 12, 8.0, True, "gelu_tanh")
    assert two.tie_word_embeddings
    three = read_old(tmp_path, "gemma3")
    assert (three.windows, three.attention_softcap, three.logit_softcap) == ((128, None, 128, None), None, None)
    assert three.rotary == RotaryConfig(32, 1e6, "linear", {"factor": 8.0})
    assert three.rotary_local == RotaryConfig(32, 10000.0)
    assert three.max_position_embeddings == 512


def test_gemma_softcaps_can_be_switched_off(tmp_path: Path) -> None:
    config = read_old(tmp_path, "gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (config.attention_softcap, config.logit_softcap) == (None, None)


def test_the_text_part_of_a_multimodal_gemma_with_all_that_its_file_leaves_out(tmp_path: Path) -> None:
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": {"hidden_size": 1152},
    }
    config = read_hf_config(write(tmp_path / "m", outer))
    assert (config.architecture, config.vocab_size, config.num_heads, config.num_kv_heads) == ("Gemma3ForCausalLM", 262208, 8, 4)
    assert (config.head_dim, config.max_position_embeddings, config.eos_token_ids, config.dtype) == (256, 131072, (1, 106), "bfloat16")
    assert config.windows[:6] == (1024,) * 5 + (None,)


def test_phi3_partial_rotary_and_longrope(tmp_path: Path) -> None:
    config = read_old(tmp_path, "phi3")
    assert (config.rotary.dim, config.rotary.kind, config.rotary.original_max_position) == (8, "longrope", 64)
    assert config.rotary.params == {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0], "factor": 8.0}
    assert config.windows == (None,) * 4
    for early_name in ("su", "yarn"):
        assert read_old(tmp_path, "phi3", rope_scaling=LONGROPE | {"type": early_name}).rotary == config.rotary


def test_end_of_sequence_ids_of_both_files_are_joined(tmp_path: Path) -> None:
    raw = SHAPE | OLD_FILES["llama"]
    assert read_hf_config(write(tmp_path / "a", raw, {"eos_token_id": [5, 2]})).eos_token_ids == (2, 5)
    assert read_hf_config(write(tmp_path / "b", raw | {"eos_token_id": None}, {"eos_token_id": 9})).eos_token_ids == (9,)
    assert read_hf_config(write(tmp_path / "c", raw | {"eos_token_id": None, "pad_token_id": -1})).pad_token_id is None


def test_a_file_without_architectures_goes_by_its_model_type(tmp_path: Path) -> None:
    raw = SHAPE | {"model_type": "qwen3"}
    assert read_hf_config(write(tmp_path / "q", raw)).architecture == "Qwen3ForCausalLM"


def test_the_type_may_be_unstated_or_in_the_newer_field(tmp_path: Path) -> None:
    assert read_old(tmp_path, "llama", torch_dtype=None).dtype == "float32"
    assert read_old(tmp_path, "llama", torch_dtype=None, dtype="float16").dtype == "float16"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"architectures": ["BertModel"]}, r"BertModel.*LlamaForCausalLM.*Phi3ForCausalLM.*Gemma3ForConditionalGeneration"),
        ({"architectures": [], "model_type": "mamba"}, "'mamba'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "mrope"),
        ({"hidden_act": "relu"}, "relu"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"use_bidirectional_attention": True}, "encoder"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        read_old(tmp_path, "llama", **changes)


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "8", True, 10**30, [8]])
def test_a_senseless_size_is_refused_naming_file_and_field(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ModelLoadError, match=rf"config\.json: field '{field}'"):
        read_old(tmp_path, "llama", **{field: value})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 6, "num_key_value_heads": 6}, "head_dim"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, r"rope_scaling\.high_freq_factor"),
        ({"rope_scaling": LONGROPE}, r"rope_scaling\.short_factor"),
        ({"eos_token_id": [1, -2]}, "eos_token_id"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_window"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
    ],
)
def test_senseless_values_are_refused_naming_the_field(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"field '{field}'"):
        read_old(tmp_path, "llama", **changes)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"hidden_size": ' + "9" * 5000 + "}", "\x00\xff"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_hf_config(tmp_path)


def test_a_missing_or_endless_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json: cannot be read"):
        read_hf_config(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ModelLoadError, match="too large"):
        read_hf_config(tmp_path)


def test_generation_defaults_are_those_stated(tmp_path: Path) -> None:
    stated = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0,
        "repetition_penalty": 1.05,
        "max_new_tokens": 64,
        "eos_token_id": 3,
    }
    write(tmp_path / "g", {}, stated | {"do_sample": True, "transformers_version": "4.50.0"})
    assert read_hf_generation_config(tmp_path / "g") == stated | {"eos_token_id": [3]}
    assert read_hf_generation_config(write(tmp_path / "none", {})) == {}


@pytest.mark.parametrize(("field", "value"), [("temperature", -1), ("top_p", 2), ("top_k", 0.5), ("min_p", "x"), ("repetition_penalty", 0)])
def test_senseless_generation_defaults_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ModelLoadError, match=rf"generation_config\.json: field '{field}'"):
        read_hf_generation_config(write(tmp_path / "g", {}, {field: value}))


def test_reading_a_configuration_imports_no_torch(tmp_path: Path) -> None:
    write(tmp_path / "m", SHAPE | OLD_FILES["llama"])
    code = (
        "import sys, pathlib; from octavo.models import hub, loader; "
        "loader.read_model_config(hub.resolve(sys.argv[1])); print('torch' in sys.modules, 'huggingface_hub' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False False"
