"""The bill: what it counts, what it refuses, what it lowers."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.config import EngineOptions, engine_options
from octavo.errors import ConfigError, MemoryPlanError
from octavo.models.config import ModelConfig, RotaryConfig
from octavo.runner.device import CpuDevice
from octavo.runner.memory_plan import MemoryPlan, gib, plan_memory, weight_bytes

GIB = 2**30
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    model_type="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    norm_eps=1e-5,
    rotary=RotaryConfig(64),
    windows=(None,) * 30,
    attention_scale=0.125,
    tie_word_embeddings=True,
)


def plan(available: int = 8 * GIB, **options: Any) -> MemoryPlan:
    return plan_memory(CONFIG, engine_options(dtype="bfloat16", **options), CpuDevice(), available)


def test_weights_are_the_parameters_and_the_packed_copy_of_a_tied_table() -> None:
    parameters = 134_515_008  # of SmolLM2-135M, the tied table counted once
    expected = 2 * (parameters + 49152 * 576)
    assert expected <= weight_bytes(CONFIG, "bfloat16") <= expected * 1.01
    assert weight_bytes(CONFIG, "float32") == 2 * weight_bytes(CONFIG, "bfloat16")


def test_the_pool_takes_a_share_of_what_the_rest_leaves() -> None:
    made = plan(gpu_memory_utilization=0.5)
    left = made.available - made.weights - made.activations - made.runtime
    assert 0 <= left * 0.5 - made.kv_pool < made.block_bytes
    assert made.block_bytes == 16 * 30 * 2 * 3 * 64 * 2
    assert made.total <= made.available


def test_the_pool_is_no_larger_than_all_sequences_at_full_length() -> None:
    made = plan(available=100 * GIB, max_num_seqs=2, max_model_len=1000)
    assert made.num_blocks == 2 * 63


def test_an_explicit_size_is_kept_to_the_block() -> None:
    made = plan(kv_cache_memory_bytes=GIB)
    assert GIB - made.block_bytes < made.kv_pool <= GIB
    assert made.num_blocks * made.block_bytes == made.kv_pool


def test_a_small_pool_lowers_the_models_own_context_with_a_note() -> None:
    made = plan(kv_cache_memory_bytes=64 * 2**20)
    assert made.max_model_len == made.pool_tokens < 8192
    assert "8192" in made.notes[0]


def test_a_small_pool_refuses_an_explicit_context() -> None:
    with pytest.raises(MemoryPlanError, match="max_model_len=8192"):
        plan(kv_cache_memory_bytes=64 * 2**20, max_model_len=8192)


def test_what_does_not_fit_is_refused_with_the_figures() -> None:
    with pytest.raises(MemoryPlanError, match=r"1\.00 GiB are free"):
        plan(available=GIB, kv_cache_memory_bytes=GIB)
    with pytest.raises(MemoryPlanError, match=r"weights"):
        plan(available=2**28)
    with pytest.raises(MemoryPlanError, match="one block"):
        plan(kv_cache_memory_bytes=1000)


def test_a_context_past_the_models_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="8192"):
        plan(max_model_len=8193)


def test_the_rows_add_up() -> None:
    made = plan()
    sizes = {name: size for name, size, _ in made.rows()}
    assert sizes["total"] == sizes["weights"] + sizes["KV pool"] + sizes["activations"] + sizes["runtime"]
    assert made.as_bytes()["total"] == sizes["total"]


def test_cache_type_follows_the_compute_type_unless_told() -> None:
    assert plan().kv_dtype == "bfloat16"
    assert plan(kv_cache_dtype="float32").block_bytes == 2 * plan().block_bytes


def test_activations_grow_with_the_token_budget() -> None:
    assert plan(max_num_batched_tokens=8192).activations > plan(max_num_batched_tokens=512).activations


def test_sizes_read_well() -> None:
    assert gib(3 * GIB // 2) == "1.50 GiB"
    assert gib(96 * 2**20) == "96.0 MiB"


def test_default_options_are_accepted() -> None:
    assert plan_memory(CONFIG, EngineOptions(), CpuDevice(), 8 * GIB).num_blocks > 0
