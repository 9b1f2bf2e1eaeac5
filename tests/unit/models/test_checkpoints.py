"""Tiny random checkpoints of every family, written as safetensors and as GGUF, and read back under the same names and values.

What a family's tensors are called and how large they are is asked of transformers; what llama.cpp calls them, of the gguf package.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from weight_blocks import spelled_out

from octavo.errors import ConfigError, ModelLoadError, UnsupportedModelError
from octavo.models.config import ModelConfig
from octavo.models.expected_tensors import expected_tensors
from octavo.models.hub import ModelFiles, resolve
from octavo.models.loader import open_weights, read_generation_config, read_model_config, stored_formats

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "float32",
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 32},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32},
    "gemma2": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "tie_word_embeddings": True, "head_dim": 32}
    | {"sliding_window": 32, "query_pre_attn_scalar": 32},
    "gemma3": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "tie_word_embeddings": True, "head_dim": 32}
    | {"sliding_window": 32, "query_pre_attn_scalar": 32},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": 32},
}
GGUF_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
}


def write_config(directory: Path, family: str, **changes: Any) -> ModelConfig:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(SHAPE | FAMILIES[family] | changes))
    return read_model_config(resolve(str(directory)))


def random_tensors(config: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in expected_tensors(config).items()}


def interleave(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """llama.cpp's order of query and key rows: of each head, row i of the first half, then row i of the second."""
    return weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, family: str, config: ModelConfig, tensors: dict[str, torch.Tensor], storage: str = "F32") -> ModelFiles:
    """The checkpoint as llama.cpp's converter writes it."""
    arch = GGUF_ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rotary.theta)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    if any(config.windows):
        writer.add_sliding_window(32)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attention_softcap)
        writer.add_final_logit_softcapping(config.logit_softcap)
    names = gguf.get_tensor_name_map(arch, config.num_layers)
    for name, tensor in tensors.items():
        values = tensor.float()
        if family in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
            values = interleave(values, config.head_dim)
        if family.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        kind = gguf.GGMLQuantizationType[storage if values.ndim > 1 else "F32"]
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), gguf.quantize(values.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return resolve(str(path))


def assert_holds(files: ModelFiles, config: ModelConfig, tensors: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    source = open_weights(files, config, "auto")
    assert set(source.names()) >= set(tensors)
    for name, tensor in tensors.items():
        stored = source[name]
        assert (stored.name, stored.shape) == (name, tuple(tensor.shape))
        torch.testing.assert_close(stored.dense(torch.float32), tensor.float(), atol=atol, rtol=0)
        for rows in (slice(1, 3), slice(0, 0), slice(len(tensor) // 2, None), slice(None, None, 2)):
            part = stored.dense(torch.bfloat16, rows)
            assert part.is_contiguous()
            assert torch.equal(part, stored.dense(torch.bfloat16)[rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expected_tensors_are_those_transformers_makes(tmp_path: Path, family: str) -> None:
    config = write_config(tmp_path, family)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del theirs["lm_head.weight"]
    assert expected_tensors(config) == theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_safetensors_file_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    config = write_config(tmp_path, "llama")
    tensors = random_tensors(config, dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_holds(resolve(str(tmp_path)), config, tensors)


def test_shards_are_read_back(tmp_path: Path) -> None:
    config = write_config(tmp_path, "qwen3")
    tensors = random_tensors(config)
    homes = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for shard in set(homes.values()):
        save_file({name: tensors[name] for name in tensors if homes[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    assert_holds(resolve(str(tmp_path)), config, tensors)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_checkpoint_has_its_own_names(tmp_path: Path, prefix: str) -> None:
    tmp_path.joinpath("config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": SHAPE | FAMILIES["gemma3"]})
    )
    files = ModelFiles("m", "hf", tmp_path)
    config = read_model_config(files)
    tensors = random_tensors(config)
    stored = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(stored | {"vision_tower.x": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert_holds(files, config, tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_gives_the_same_tensors_and_the_same_shape(tmp_path: Path, family: str) -> None:
    config = write_config(tmp_path / "hf", family)
    tensors = random_tensors(config)
    files = write_gguf(tmp_path / "model.gguf", family, config, tensors)
    read = read_model_config(files)
    expected = config
    if family == "mistral":  # llama.cpp files it under llama
        expected = dataclasses.replace(config, architecture="LlamaForCausalLM", model_type="llama")
    assert dataclasses.replace(read, norm_eps=config.norm_eps) == expected
    assert read.norm_eps == pytest.approx(config.norm_eps)
    # Gemma's norms are stored plus one, in float32: a few units in the last place are lost there.
    assert_holds(files, read, tensors, atol=3e-7 if family.startswith("gemma") else 0.0)


@pytest.mark.parametrize("storage", ["F16", "BF16", "Q4_0", "Q8_0"])
def test_quantised_rows_are_put_back_in_order(tmp_path: Path, storage: str) -> None:
    config = write_config(tmp_path / "hf", "llama")
    tensors = random_tensors(config)
    files = write_gguf(tmp_path / "model.gguf", "llama", config, tensors, storage)
    kind = gguf.GGMLQuantizationType[storage]
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            rounded = gguf.dequantize(gguf.quantize(tensor.numpy(), kind), kind)
            tensors[name] = torch.from_numpy(np.array(rounded).reshape(tensor.shape))
    source = open_weights(files, read_model_config(files), "gguf")
    assert source["model.layers.0.self_attn.q_proj.weight"].format == storage
    assert_holds(files, read_model_config(files), tensors)
    for name, tensor in tensors.items():
        blocks = source[name].blocks()
        assert (blocks is None) == (tensor.ndim == 1 or not storage.startswith("Q"))
        if blocks is not None:
            assert np.array_equal(spelled_out(blocks), tensor.numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_formats_are_read_from_the_header_under_the_same_names(tmp_path: Path, family: str) -> None:
    config = write_config(tmp_path / "hf", family)
    tensors = random_tensors(config)
    files = write_gguf(tmp_path / "model.gguf", family, config, tensors, "Q8_0")
    read = read_model_config(files)
    assert stored_formats(files, read, "auto") == {name: "Q8_0" if tensor.ndim > 1 else "F32" for name, tensor in tensors.items()}
    assert stored_formats(files, read, "dummy") == {}
    assert stored_formats(resolve(str(tmp_path / "hf")), config, "auto") == {}


def test_formats_are_read_without_torch(tmp_path: Path) -> None:
    config = write_config(tmp_path / "hf", "llama")
    write_gguf(tmp_path / "model.gguf", "llama", config, random_tensors(config))
    code = (
        "import sys; from octavo.models import hub, loader; files = hub.resolve(sys.argv[1])\n"
        "print(len(loader.stored_formats(files, loader.read_model_config(files), 'auto')), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.gguf")], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(len(expected_tensors(config))), "False"]


def test_a_tensor_that_the_model_would_ignore_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path / "hf", "mistral")
    tensors = random_tensors(config)
    save_file(tensors | {"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1\.self_attn\.q_proj\.bias"):
        open_weights(resolve(str(tmp_path / "hf")), config, "auto")
    files = write_gguf(tmp_path / "model.gguf", "mistral", config, tensors)
    files.path.write_bytes(files.path.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))
    with pytest.raises(UnsupportedModelError, match=r"blk\.1\.attn_x\.weight"):
        open_weights(files, read_model_config(files), "auto")


def test_constants_and_other_models_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    config = write_config(tmp_path, "llama")
    tensors = random_tensors(config)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "model.layers.2.head.weight": torch.ones(3)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    assert_holds(resolve(str(tmp_path)), config, tensors)


def test_a_tensor_of_another_shape_than_configured_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, "llama")
    tensors = random_tensors(config)
    save_file(tensors | {"model.norm.weight": torch.ones(65)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model\.norm\.weight' has shape \[65\].*\[64\]"):
        open_weights(resolve(str(tmp_path)), config, "auto")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, "llama")
    tensors = random_tensors(config)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        open_weights(resolve(str(tmp_path)), config, "auto")


def test_a_directory_without_safetensors_says_that_pickles_are_not_read(tmp_path: Path) -> None:
    config = write_config(tmp_path, "llama")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match="Pickled weights"):
        open_weights(resolve(str(tmp_path)), config, "auto")


def test_the_load_format_must_fit_the_files(tmp_path: Path) -> None:
    config = write_config(tmp_path / "hf", "llama")
    with pytest.raises(ConfigError, match="load_format='gguf'"):
        open_weights(resolve(str(tmp_path / "hf")), config, "gguf")
    files = write_gguf(tmp_path / "model.gguf", "llama", config, random_tensors(config))
    with pytest.raises(ConfigError, match="load_format='safetensors'"):
        open_weights(files, config, "safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_dummy_weights_have_the_models_shape_and_depend_on_the_name_alone(tmp_path: Path, family: str) -> None:
    config = write_config(tmp_path, family)
    files = resolve(str(tmp_path))
    one, other = open_weights(files, config, "dummy"), open_weights(files, config, "dummy")
    assert {name: one[name].shape for name in one.names()} == expected_tensors(config)
    names = [name for name in one.names() if name.endswith("proj.weight")]
    made = {name: one[name].dense(torch.float32) for name in names}
    for name in reversed(names):
        assert torch.equal(other[name].dense(torch.float32), made[name])
        assert 0.015 < float(made[name].std()) < 0.025
    assert not torch.equal(made[names[0]].flatten()[:64], made[names[1]].flatten()[:64])
    norm = one["model.norm.weight"].dense(torch.bfloat16)
    assert norm.dtype == torch.bfloat16
    assert float(norm.float().mean()) == pytest.approx(0.0 if family.startswith("gemma") else 1.0, abs=0.02)


def test_rows_of_large_dummy_tensors_are_made_without_the_rest(tmp_path: Path) -> None:
    config = write_config(tmp_path, "llama", vocab_size=50_000)
    table = open_weights(resolve(str(tmp_path)), config, "dummy")["model.embed_tokens.weight"]
    whole = table.dense(torch.float32)
    for rows in (slice(0, 5), slice(16_380, 16_390), slice(49_990, None), slice(20_000, 20_000), slice(5, 40_000, 9_000)):
        assert torch.equal(table.dense(torch.float32, rows), whole[rows])


def test_a_name_no_checkpoint_has_is_refused_by_every_source(tmp_path: Path) -> None:
    config = write_config(tmp_path / "hf", "llama")
    tensors = random_tensors(config)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    gguf_files = write_gguf(tmp_path / "model.gguf", "llama", config, tensors)
    for files, load_format in ((resolve(str(tmp_path / "hf")), "auto"), (gguf_files, "auto"), (gguf_files, "dummy")):
        source = open_weights(files, config, load_format)
        assert "model.layers.9.x" not in source
        with pytest.raises(ModelLoadError, match=r"model\.layers\.9\.x"):
            source["model.layers.9.x"]


def test_generation_defaults_of_a_gguf_file_without_any_are_its_end_of_sequence(tmp_path: Path) -> None:
    config = write_config(tmp_path / "hf", "llama")
    files = write_gguf(tmp_path / "model.gguf", "llama", config, random_tensors(config))
    assert read_generation_config(files) == {"eos_token_id": [2]}
