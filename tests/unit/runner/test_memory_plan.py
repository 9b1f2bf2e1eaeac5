"""The bill: what it counts, what it refuses, what it lowers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo.config import EngineOptions, engine_options
from octavo.errors import ConfigError, MemoryPlanError
from octavo.models.config import ModelConfig, RotaryConfig
from octavo.models.expected_tensors import expected_tensors
from octavo.runner.device import CpuDevice, CudaDevice
from octavo.runner.memory_plan import MemoryPlan, bill_of, gib, matrix_formats, plan_memory, plan_ranks, weight_bytes

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


PARAMETERS = 134_515_008  # of SmolLM2-135M, the tied table counted once
NORMS = (2 * 30 + 1) * 576
TABLE = 49152 * 576
EMBEDDED = {
    name: "F32" if len(shape) == 1 else "Q4_1" if name.startswith("model.layers.") else "Q8_0"
    for name, shape in expected_tensors(CONFIG).items()
}


def plan(available: int = 8 * GIB, formats: dict[str, str] | None = None, **options: Any) -> MemoryPlan:
    return plan_memory(CONFIG, engine_options(**{"dtype": "bfloat16"} | options), CpuDevice(), available, formats)


def test_reference_kernels_hold_a_tied_table_twice_and_norms_in_float32() -> None:
    assert weight_bytes(CONFIG, "bfloat16") == 2 * (PARAMETERS + TABLE) + 2 * NORMS
    assert weight_bytes(CONFIG, "float32") == 4 * (PARAMETERS + TABLE)
    untied = replace(CONFIG, tie_word_embeddings=False)
    assert weight_bytes(untied, "bfloat16") == weight_bytes(CONFIG, "bfloat16")


def test_kernels_that_pack_hold_a_tied_table_once() -> None:
    assert plan().weights == 2 * PARAMETERS + 2 * NORMS
    assert plan(dtype="float32").weights == 4 * PARAMETERS
    assert plan(formats=EMBEDDED, quantization="none").weights == plan().weights
    assert plan().weight_formats == plan(formats=EMBEDDED, quantization="none").weight_formats == "bfloat16"
    untied = replace(CONFIG, tie_word_embeddings=False)
    assert weight_bytes(untied, "bfloat16", matrix_formats(untied, "auto")) == plan().weights + 2 * TABLE


def test_a_quantised_file_takes_what_its_blocks_take() -> None:
    layers = PARAMETERS - TABLE - NORMS
    made = plan(formats=EMBEDDED)
    assert made.weights == layers * 20 // 32 + TABLE * 34 // 32 + 4 * NORMS
    assert made.weight_formats == "4-bit blocks with minima, vocabulary 8-bit blocks; computed in bfloat16"
    assert plan(formats=EMBEDDED, dtype="float32").weights == made.weights


def test_weights_quantised_at_load_take_what_they_become() -> None:
    layers = PARAMETERS - TABLE - NORMS
    rows = 30 * (2 * 576 + 2 * 192 + 2 * 1536 + 576)
    table = TABLE + 4 * 49152
    int8, int4 = plan(quantization="int8"), plan(quantization="int4")
    assert int8.weights == layers + 4 * rows + table + 4 * NORMS
    assert int4.weights == layers * 18 // 32 + table + 4 * NORMS
    assert plan(formats=EMBEDDED, quantization="int4").weights == int4.weights
    assert int4.weight_formats == "int4, vocabulary int8; computed in bfloat16"


def test_layers_of_several_formats_are_counted() -> None:
    mixed = EMBEDDED | {"model.layers.3.mlp.down_proj.weight": "Q6_K", "model.layers.4.mlp.down_proj.weight": "F16"}
    described = plan(formats=mixed).weight_formats
    assert described == "208 4-bit blocks with minima, 1 8-bit blocks, 1 dense, vocabulary 8-bit blocks; computed in bfloat16"
    assert described in [note for _, _, note in plan(formats=mixed).rows()]


def test_where_reference_kernels_run_all_is_dense_and_quantised_arithmetic_is_refused() -> None:
    made = plan(formats=EMBEDDED, dtype="float16")
    assert made.weights == weight_bytes(CONFIG, "bfloat16") and made.weight_formats == "float16, dequantised at load"
    for option in ({"quantization": "int8"}, {"quantization": "int4"}, {"activation_bits": 8}, {"kv_cache_dtype": "int8"}):
        with pytest.raises(ConfigError, match=f"{next(iter(option))}.*cpu and float16"):
            plan(formats=EMBEDDED, dtype="float16", **option)


def gpu_plan(formats: dict[str, str] | None = None, **options: Any) -> MemoryPlan:
    return plan_memory(CONFIG, engine_options(**{"dtype": "bfloat16"} | options), CudaDevice(), 8 * GIB, formats)


def test_a_gpu_holds_weights_as_a_cpus_kernels_do_and_keeps_room_for_its_libraries() -> None:
    made = gpu_plan(EMBEDDED)
    assert made.weights == plan(formats=EMBEDDED).weights
    assert made.runtime == GIB
    assert gpu_plan().weights == 2 * PARAMETERS + 2 * NORMS
    # All of a batch's scores at once, where a CPU has them in pieces.
    less = gpu_plan(max_num_seqs=64).activations
    assert gpu_plan(max_num_seqs=256).activations - less == 192 * 49152 * 4
    assert gpu_plan(max_num_seqs=1000).activations == gpu_plan(max_num_seqs=256).activations


def test_caches_of_eight_bits_are_whole_numbers_on_a_cpu_and_fp8_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_plan(kv_cache_dtype="fp8").block_bytes * 2 == gpu_plan().block_bytes
    with pytest.raises(ConfigError, match="kv_cache_dtype=int8 needs --device cpu; on a GPU use fp8"):
        gpu_plan(kv_cache_dtype="int8")
    with pytest.raises(ConfigError, match="kv_cache_dtype=fp8 needs a GPU; on a CPU use int8"):
        plan(kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match="activation_bits=8 needs --device cpu"):
        gpu_plan(activation_bits=8)
    monkeypatch.setattr(CudaDevice, "has_float8", lambda device: False)
    with pytest.raises(ConfigError, match=r"kv_cache_dtype=fp8 needs a GPU of compute capability 8\.9 \(Ada\) or later"):
        gpu_plan(kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match=r"quantization=fp8 needs a GPU of compute capability 8\.9 \(Ada\) or later; use int8"):
        gpu_plan(quantization="fp8")


def test_a_library_that_attends_needs_a_gpu_and_what_it_was_made_for() -> None:
    made = gpu_plan(attention_backend="flashinfer", max_num_seqs=64, max_model_len=1024)
    plain = gpu_plan(max_num_seqs=64, max_model_len=1024)
    # Partial results, plans, and the pages of 64 sequences of 64 blocks with room to grow.
    assert made.activations - plain.activations == 128 * 2**20 + 2 * 8 * 2**20 + 2 * 4 * 2 * 64 * 64
    assert gpu_plan(attention_backend="fa3").activations == gpu_plan().activations
    assert gpu_plan(attention_backend="flashinfer", kv_cache_dtype="fp8").kv_dtype == "fp8"
    with pytest.raises(ConfigError, match="attention_backend=fa3 needs a GPU; this is cpu"):
        plan(attention_backend="fa3")
    with pytest.raises(ConfigError, match="attention_backend=fa3 attends in bfloat16 or float16, not in float32; triton does"):
        gpu_plan(attention_backend="fa3", dtype="float32")
    with pytest.raises(ConfigError, match="fa3 needs a KV cache of the compute type, bfloat16; triton and flashinfer take fp8"):
        gpu_plan(attention_backend="fa3", kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match="flashinfer needs a KV cache of the compute type, bfloat16, or fp8, not float16"):
        gpu_plan(attention_backend="flashinfer", kv_cache_dtype="float16")
    for library, size in (("fa3", 260), ("flashinfer", 80)):
        odd = replace(CONFIG, head_dim=size)
        with pytest.raises(ConfigError, match=rf"attention_backend={library} takes heads of .*this model's have {size}"):
            plan_memory(odd, engine_options(dtype="bfloat16", attention_backend=library), CudaDevice(), 8 * GIB)


def test_float8_weights_are_a_gpus_and_leave_the_vocabulary_dense() -> None:
    layers = PARAMETERS - TABLE - NORMS
    rows = 30 * (2 * 576 + 2 * 192 + 2 * 1536 + 576)
    made = gpu_plan(quantization="fp8")
    assert made.weights == layers + 4 * rows + 2 * TABLE + 4 * NORMS
    assert made.weight_formats == "fp8, vocabulary dense; computed in bfloat16"
    assert gpu_plan(EMBEDDED, quantization="fp8").weights == made.weights
    for dtype in ("bfloat16", "float16"):  # on C++ kernels and on the reference
        with pytest.raises(ConfigError, match="quantization=fp8 needs a GPU; on a CPU use int8"):
            plan(quantization="fp8", dtype=dtype)


def test_quantised_weights_need_room_on_a_gpu_to_be_spelled_out() -> None:
    assert gpu_plan(EMBEDDED).activations >= gpu_plan().activations + 128 * 2**20
    assert gpu_plan(EMBEDDED, quantization="none").activations == gpu_plan().activations


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


def test_int8_keys_and_values_have_a_scale_for_each_tokens_head() -> None:
    made = plan(kv_cache_dtype="int8")
    assert made.kv_dtype == "int8"
    assert made.block_bytes == 16 * 30 * 2 * 3 * (64 + 4)


def test_activations_grow_with_the_token_budget() -> None:
    assert plan(max_num_batched_tokens=8192).activations > plan(max_num_batched_tokens=512).activations
    assert plan(threads=64).activations > plan(threads=1).activations


def rank_plans(available: int = 8 * GIB, elsewhere: tuple[int, ...] = (), **options: Any) -> list[MemoryPlan]:
    return plan_ranks(CONFIG, engine_options(**{"dtype": "bfloat16"} | options), CpuDevice(), available, None, elsewhere)


@pytest.mark.parametrize(("tensor", "stages"), [(2, 1), (1, 2), (2, 2), (1, 4)])
def test_ranks_have_one_pools_blocks_and_the_models_weights_between_them(tensor: int, stages: int) -> None:
    alone = plan(kv_cache_memory_bytes=GIB)
    made = rank_plans(tensor_parallel_size=tensor, pipeline_parallel_size=stages, kv_cache_memory_bytes=GIB)
    assert len(made) == tensor * stages
    assert {each.num_blocks for each in made} == {alone.num_blocks} and {each.max_model_len for each in made} == {alone.max_model_len}
    assert sum(each.block_bytes for each in made) == alone.block_bytes
    bill = bill_of(made)
    assert bill.kv_pool == alone.kv_pool
    # Norms are on every rank of a stage, and a tied table is on the first stage and the last.
    assert alone.weights <= bill.weights <= alone.weights + tensor * 4 * NORMS + (stages > 1) * 2 * TABLE


def test_the_host_with_the_least_memory_says_how_many_blocks_there_are() -> None:
    layout = {"pipeline_parallel_size": 2, "gpu_memory_utilization": 0.5}
    wide = rank_plans(4 * GIB, (4 * GIB,), **layout)
    for here, there in ((4 * GIB, GIB), (GIB, 4 * GIB)):
        made = rank_plans(here, (there,), **layout)
        assert made[0].num_blocks == made[1].num_blocks < wide[0].num_blocks
        assert made[0].available == here
        # Each host pays for its own ranks alone.
        for each, free in zip(made, (here, there), strict=True):
            assert each.weights + each.activations + each.runtime + each.kv_pool <= free
    assert wide[0].num_blocks > rank_plans(4 * GIB, **layout)[0].num_blocks, "two hosts have more than one"


def test_ranks_with_a_gpu_each_pay_for_themselves_alone() -> None:
    options = engine_options(dtype="bfloat16", tensor_parallel_size=2, gpu_memory_utilization=0.5, max_num_seqs=4096)
    made = plan_ranks(CONFIG, options, CudaDevice(), 4 * GIB)
    assert made[0].num_blocks == made[1].num_blocks
    for each in made:
        fixed = each.weights + each.activations + each.runtime
        assert each.kv_pool <= (4 * GIB - fixed) / 2
    # The rank with more heads has larger pages: it says how many there are.
    larger = max(made, key=lambda each: each.block_bytes)
    assert larger.kv_pool > 0.99 * (4 * GIB - larger.weights - larger.activations - larger.runtime) / 2


def test_a_pool_that_does_not_fit_on_one_of_the_hosts_is_refused() -> None:
    with pytest.raises(MemoryPlanError, match="does not fit"):
        rank_plans(8 * GIB, (GIB,), pipeline_parallel_size=2, kv_cache_memory_bytes=2 * GIB)


def test_sizes_read_well() -> None:
    assert gib(3 * GIB // 2) == "1.50 GiB"
    assert gib(96 * 2**20) == "96.0 MiB"


def test_default_options_are_accepted() -> None:
    assert plan_memory(CONFIG, EngineOptions(), CpuDevice(), 8 * GIB).num_blocks > 0
