"""Shapes and sampling defaults from GGUF metadata: what llama.cpp's converters write, and what its loader knows without them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.config import ModelConfig, RotaryConfig
from octavo.models.hub import ModelFiles
from octavo.models.loader import read_generation_config, read_model_config

Writer = gguf.GGUFWriter


def write(
    directory: Path,
    arch: str = "llama",
    layers: int = 2,
    extend: Callable[[Writer], object] = lambda writer: None,
    leave_out: str | None = None,
    **tensors: np.ndarray,
) -> ModelFiles:
    """A file with the metadata of a small model, what ``extend`` adds, and an embedding."""
    writer = Writer(directory / "m.gguf", arch)
    for key, add, value in (
        ("context_length", writer.add_context_length, 4096),
        ("embedding_length", writer.add_embedding_length, 64),
        ("block_count", writer.add_block_count, layers),
        ("feed_forward_length", writer.add_feed_forward_length, 128),
        ("attention.head_count", writer.add_head_count, 4),
        ("attention.head_count_kv", writer.add_head_count_kv, 2),
        ("attention.layer_norm_rms_epsilon", writer.add_layer_norm_rms_eps, 1e-5),
    ):
        if key != leave_out:
            add(value)
    extend(writer)
    for name, values in {"token_embd.weight": np.zeros((96, 64), np.float32), **tensors}.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelFiles("m", "gguf", directory / "m.gguf")


def read(directory: Path, *args: Any, **options: Any) -> ModelConfig:
    return read_model_config(write(directory, *args, **options))


def test_what_a_file_leaves_out_has_the_formats_defaults(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.vocab_size, config.head_dim, config.rotary) == (96, 16, RotaryConfig(16))
    assert (config.windows, config.tie_word_embeddings, config.eos_token_ids, config.bos_token_id) == ((None, None), True, (), None)
    assert (config.dtype, config.qkv_bias) == ("float32", False)


def test_stored_types_decide_the_type(tmp_path: Path) -> None:
    assert read(tmp_path, **{"output.weight": np.zeros((200, 64), np.float16)}).dtype == "float16"


def test_partial_rotation_and_linear_scaling(tmp_path: Path) -> None:
    def extend(writer: Writer) -> None:
        writer.add_rope_dimension_count(8)
        writer.add_rope_freq_base(5000.0)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    assert read(tmp_path, extend=extend).rotary == RotaryConfig(8, 5000.0, "linear", {"factor": 4.0})


def test_yarn_scaling(tmp_path: Path) -> None:
    def extend(writer: Writer) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(2048)

    config = read(tmp_path, "qwen2", extend=extend)
    assert (config.rotary.kind, config.rotary.original_max_position, config.max_position_embeddings) == ("yarn", 2048, 8192)
    assert config.rotary.params["attention_factor"] == pytest.approx(1.1386294)


def test_llama3_divisors_become_equal_longrope_factors(tmp_path: Path) -> None:
    divisors = np.array([1, 1, 1, 1.5, 2, 8, 8, 8], np.float32)
    rotary = read(tmp_path, **{"rope_freqs.weight": divisors}).rotary
    assert (rotary.kind, rotary.params["attention_factor"], rotary.original_max_position) == ("longrope", 1.0, 4096)
    assert rotary.params["short_factor"] == rotary.params["long_factor"] == divisors.tolist()


def test_phi3_longrope_and_its_window(tmp_path: Path) -> None:
    def extend(writer: Writer) -> None:
        writer.add_rope_scaling_orig_ctx_len(1024)
        writer.add_rope_scaling_attn_factors(1.25)
        writer.add_sliding_window(2047)

    short, long = np.ones(8, np.float32), np.arange(1, 9, dtype=np.float32)
    config = read(tmp_path, "phi3", extend=extend, **{"rope_factors_short.weight": short, "rope_factors_long.weight": long})
    assert (config.rotary.kind, config.rotary.original_max_position) == ("longrope", 1024)
    assert config.rotary.params["attention_factor"] == 1.25
    assert config.rotary.params["long_factor"] == long.tolist()
    assert config.windows == (2047, 2047)


def test_a_window_of_zero_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, "phi3", extend=lambda writer: writer.add_sliding_window(0)).windows == (None, None)


@pytest.mark.parametrize(("arch", "layers", "period", "scalar"), [("gemma2", 4, 2, 16), ("gemma2", 46, 2, 16), ("gemma3", 12, 6, 16)])
def test_gemma_window_patterns(tmp_path: Path, arch: str, layers: int, period: int, scalar: int) -> None:
    config = read(tmp_path, arch, layers, lambda writer: writer.add_sliding_window(512))
    assert config.windows == tuple(512 if (layer + 1) % period else None for layer in range(layers))
    assert config.attention_scale == scalar**-0.5


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_scale_queries_by_hidden_size_over_heads(tmp_path: Path, arch: str, layers: int) -> None:
    config = read(tmp_path, arch, layers, lambda writer: writer.add_key_length(32) or writer.add_value_length(32))
    assert (config.head_dim, config.attention_scale) == (32, 16**-0.5)


def test_gemma3_rotates_sliding_layers_by_a_smaller_base(tmp_path: Path) -> None:
    def extend(writer: Writer) -> None:
        writer.add_rope_freq_base(1e6)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
        writer.add_sliding_window(512)

    config = read(tmp_path, "gemma3", 6, extend)
    assert config.rotary == RotaryConfig(16, 1e6, "linear", {"factor": 8.0})
    assert config.rotary_local == RotaryConfig(16, 10000.0)
    assert config.max_position_embeddings == 4096


def test_gemma2_softcaps_default_and_gemma3_has_none(tmp_path: Path) -> None:
    two, three = read(tmp_path, "gemma2"), read(tmp_path, "gemma3")
    assert (two.attention_softcap, two.logit_softcap) == (50.0, 30.0)
    assert (three.attention_softcap, three.logit_softcap) == (None, None)


def test_sequences_end_at_named_tokens_and_at_marks_of_a_turns_end(tmp_path: Path) -> None:
    def extend(writer: Writer) -> None:
        writer.add_token_list(["<s>", "</s>", "<end_of_turn>", "<|im_end|>", "<|eot_id|>"])
        writer.add_token_types([3, 3, 4, 1, 3])
        writer.add_eos_token_id(1)
        writer.add_eot_token_id(4)

    files = write(tmp_path, extend=extend)
    assert read_model_config(files).eos_token_ids == (1, 4, 2)
    assert read_generation_config(files) == {"eos_token_id": [1, 4, 2]}


def test_recommended_sampling_is_read_under_the_usual_names(tmp_path: Path) -> None:
    def extend(writer: Writer) -> None:
        for name, value in (("temp", 0.5), ("top_p", 0.75), ("min_p", 0.0), ("penalty_repeat", 1.5)):
            writer.add_float32(f"general.sampling.{name}", value)
        writer.add_int32("general.sampling.top_k", 20)

    expected = {"temperature": 0.5, "top_p": 0.75, "min_p": 0.0, "repetition_penalty": 1.5, "top_k": 20}
    assert read_generation_config(write(tmp_path, extend=extend)) == expected


def test_heads_listed_for_each_layer_must_agree(tmp_path: Path) -> None:
    assert read(tmp_path, leave_out="attention.head_count", extend=lambda writer: writer.add_head_count([4, 4])).num_heads == 4
    with pytest.raises(ModelLoadError, match="head_count"):
        read(tmp_path, leave_out="attention.head_count", extend=lambda writer: writer.add_head_count([4, 8]))


@pytest.mark.parametrize(
    "key",
    [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"m\.gguf: field 'llama\.{key}' is missing"):
        read(tmp_path, leave_out=key)


@pytest.mark.parametrize(
    ("extend", "what"),
    [
        (lambda writer: writer.add_expert_count(8), "experts"),
        (lambda writer: writer.add_uint16("split.count", 3), "part 1 of 3"),
        (lambda writer: writer.add_value_length(8), "another size"),
        (lambda writer: (writer.add_string("llama.rope.scaling.type", "su"), writer.add_rope_scaling_factor(2.0)), "'su'"),
    ],
)
def test_variants_that_are_not_run_are_refused(tmp_path: Path, extend: Callable[[Writer], object], what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        read(tmp_path, extend=extend)


def test_an_unsupported_architecture_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*gemma2, gemma3, llama, phi3, qwen2, qwen3"):
        read(tmp_path, "mamba")


def test_false_rotary_tables_are_refused(tmp_path: Path) -> None:
    for values in (np.ones(7, np.float32), np.ones(8, np.float16), np.zeros(8, np.float32), np.full(8, np.nan, np.float32)):
        with pytest.raises(ModelLoadError, match=r"rope_freqs\.weight"):
            read(tmp_path, **{"rope_freqs.weight": values})


def test_no_changed_byte_makes_reading_the_shape_crash(tmp_path: Path) -> None:
    def extend(writer: Writer) -> None:
        writer.add_sliding_window(512)
        writer.add_token_list(["a", "<|im_end|>"])
        writer.add_token_types([1, 3])
        writer.add_eos_token_id(1)

    files = write(tmp_path, "gemma2", extend=extend)
    whole = files.path.read_bytes()
    rng = random.Random(0)
    for position in range(24, 1100):
        content = bytearray(whole)
        content[position] = rng.choice((0, 0xFF, rng.randrange(256)))
        files.path.write_bytes(content)
        try:
            assert len(read_model_config(files).windows) <= 10_000
        except ModelLoadError:
            continue
