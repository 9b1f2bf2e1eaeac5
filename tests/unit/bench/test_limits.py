"""The least time of a workload on a machine whose limits are made up, and what is measured of a real one."""

from __future__ import annotations

import dataclasses

import pytest
from small_shape import SMALL_SHAPE

from octavo.bench import limits
from octavo.bench.limits import Limits, least_seconds, model_cost, render
from octavo.models.config import ModelConfig
from octavo.quantization.formats import PackedFormat
from octavo.runner.memory_plan import matrix_formats

HIDDEN, MLP, VOCAB = 64, 96, 160
QUERIES, KEYS = 4 * 16, 2 * 16


def config(windows: tuple[int | None, ...] = (None, None), tied: bool = False) -> ModelConfig:
    """Every side is a multiple of 32, so that nothing is filled up."""
    sides = dataclasses.replace(SMALL_SHAPE, hidden_size=HIDDEN, intermediate_size=MLP, vocab_size=VOCAB, head_dim=16)
    return dataclasses.replace(sides, windows=windows, tie_word_embeddings=tied)


LAYERS = 2 * HIDDEN * (QUERIES + 2 * KEYS + QUERIES + 3 * MLP)  # q, k and v, o, mlp
HEAD = VOCAB * HIDDEN


def machine(read: float = 1e-9, work: float = 1e-9, int8: float | None = None) -> Limits:
    """Reads ``read`` * 1e9 bytes and does ``work`` * 1e9 operations a second."""
    return Limits(1, read, work, work, int8)


def held(quantization: str, stored: str | None = None) -> dict[str, PackedFormat]:
    """How the matrices are held where all are stored in one way."""
    names = matrix_formats(config(), "none")
    return matrix_formats(config(), quantization, dict.fromkeys(names, stored) if stored else None)


def test_dense_products_are_counted() -> None:
    cost = model_cost(config(), "bfloat16", "float32")
    assert (cost.layers.dense, cost.head.dense) == (LAYERS, HEAD)
    assert (cost.layers.quantised, cost.head.quantised, cost.quantised) == (0, 0, False)
    assert cost.step_bytes == 2 * (LAYERS + HEAD)
    assert cost.kv_bytes(10) == 2 * 2 * 10 * 2 * 16 * 4
    assert cost == model_cost(config(), "bfloat16", "float32", held("none"))


def test_a_tied_table_is_read_as_the_head() -> None:
    assert model_cost(config(tied=True), "float32", "float32").step_bytes == 4 * (LAYERS + HEAD)


@pytest.mark.parametrize(
    ("quantization", "stored", "layer_bytes", "head_bytes"),
    [
        ("int8", None, LAYERS + 4 * 2 * (QUERIES + 2 * KEYS + HIDDEN + 2 * MLP + HIDDEN), HEAD + 4 * VOCAB),
        ("int4", None, LAYERS // 2 + LAYERS // 32 * 2, HEAD + 4 * VOCAB),
        ("auto", "Q4_1", LAYERS // 2 + LAYERS // 32 * 4, HEAD // 2 + HEAD // 32 * 4),
        ("auto", "Q8_0", LAYERS + LAYERS // 32 * 2, HEAD + HEAD // 32 * 2),
    ],
)
def test_quantised_weights_count_the_bytes_they_are_held_in(
    quantization: str, stored: str | None, layer_bytes: int, head_bytes: int
) -> None:
    cost = model_cost(config(), "bfloat16", "bfloat16", held(quantization, stored))
    assert (cost.layers.bytes, cost.head.bytes) == (layer_bytes, head_bytes)
    assert (cost.layers.quantised, cost.head.quantised, cost.quantised) == (LAYERS, HEAD, True)
    assert (cost.layers.dense, cost.head.dense) == (0, 0)


def test_int8_caches_count_their_scales() -> None:
    assert model_cost(config(), "float32", "int8").kv_bytes(10) == 2 * 2 * 10 * 2 * (16 + 4)


def test_windows_bound_what_is_read() -> None:
    cost = model_cost(config(windows=(None, 4)), "float32", "float32")
    assert cost.kv_bytes(10) == 2 * (10 + 4) * 2 * 16 * 4
    assert cost.kv_bytes(3) == 2 * (3 + 3) * 2 * 16 * 4


def test_prompts_take_their_arithmetic() -> None:
    cost = model_cost(config(), "float32", "float32")
    fast_memory = machine(read=1e9)
    assert least_seconds(cost, [(10, 1), (20, 1)], 8, fast_memory) == pytest.approx(2 * (30 * LAYERS + 2 * HEAD))


def test_quantised_weights_are_multiplied_at_the_int8_peak() -> None:
    mixed = held("int8") | {"lm_head.weight": held("none")["lm_head.weight"]}
    cost = model_cost(config(), "bfloat16", "bfloat16", mixed)
    fast_memory = machine(read=1e9, int8=4e-9)
    assert least_seconds(cost, [(10, 1)], 8, fast_memory) == pytest.approx(2 * (10 * LAYERS / 4 + HEAD))
    assert least_seconds(cost, [(1, 3)] * 5, 8, fast_memory) == pytest.approx(5 * 2 * (LAYERS / 4 + HEAD) * 3)


def test_steps_take_their_reading() -> None:
    cost = model_cost(config(), "float32", "float32")
    fast_arithmetic = machine(work=1e9)
    steps = sum(cost.step_bytes + cost.kv_bytes(11 + step) for step in range(3))
    assert least_seconds(cost, [(10, 4)], 8, fast_arithmetic) == pytest.approx(cost.step_bytes + steps)


def test_a_batch_reads_the_weights_once() -> None:
    cost = model_cost(config(), "float32", "float32")
    fast_arithmetic = machine(work=1e9)
    together = least_seconds(cost, [(10, 4)] * 2, 2, fast_arithmetic)
    apart = least_seconds(cost, [(10, 4)] * 2, 1, fast_arithmetic)
    assert apart - together == pytest.approx(3 * cost.step_bytes)


def test_large_batches_take_their_arithmetic() -> None:
    cost = model_cost(config(), "float32", "float32")
    fast_memory = machine(read=1e9)
    assert least_seconds(cost, [(1, 3)] * 5, 8, fast_memory) == pytest.approx(5 * 2 * (LAYERS + HEAD) * 3)


def test_a_place_that_gets_free_is_taken() -> None:
    cost = model_cost(config(), "float32", "float32")
    fast_memory = machine(read=1e9)
    one_by_one = least_seconds(cost, [(1, 2), (1, 4), (1, 3)], 2, fast_memory)
    assert one_by_one == pytest.approx((3 + 6) * 2 * (LAYERS + HEAD))


def test_a_narrow_type_is_never_slower_than_a_wider_one() -> None:
    slow = Limits(1, 1.0, 10.0, 2.0, None)
    assert slow.arithmetic("bfloat16") == slow.arithmetic("float32") == slow.arithmetic("int8") == 1e10
    assert Limits(1, 1.0, 10.0, 30.0, 20.0).arithmetic("int8") == 3e10
    assert Limits(1, 1.0, 10.0, 30.0, 70.0).arithmetic("int8") == 7e10


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure quickly; the figures mean nothing then."""
    monkeypatch.setattr(limits, "READ_BUFFER_BYTES", 2**22)
    monkeypatch.setattr(limits, "MATRIX_SIZES", (64,))
    monkeypatch.setattr(limits, "PACKED_SIZES", (8, 64, 64))


@pytest.mark.usefixtures("small")
def test_this_machine_is_measured() -> None:
    found = limits.measure(1)
    assert found.threads == 1
    assert min(found.read_gb_s, found.fp32_gflop_s, found.bf16_gflop_s) > 0
    assert found.int8_gop_s is None or found.int8_gop_s >= found.fp32_gflop_s


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("faster", ["torch", "packed"])
def test_the_faster_product_is_the_peak_of_its_type(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    torchs, packed = (3.0, 2.0) if faster == "torch" else (2.0, 3.0)
    monkeypatch.setattr(limits, "_matmul_peak", lambda dtype: torchs * 1e9 * dtype.itemsize)
    monkeypatch.setattr(limits, "_int8_peak", lambda: torchs * 100e9)
    monkeypatch.setattr(limits, "_packed_peak", lambda kind, threads: packed * 1e9 * {"float32": 4, "bfloat16": 2, "int8": 100}[kind])
    found = limits.measure(1)
    assert (found.fp32_gflop_s, found.bf16_gflop_s, found.int8_gop_s) == (12.0, 6.0, 300.0)


@pytest.mark.usefixtures("small")
def test_int8_that_runs_on_neither_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_int8_peak", lambda: 0.0)
    monkeypatch.setattr(limits, "_packed_peak", lambda kind, threads: 1.0)
    found = limits.measure(1)
    assert found.int8_gop_s is None
    text = render(found)
    assert "int8 product" not in text.partition("Practical")[0]
    assert "int8 is left out" in text
