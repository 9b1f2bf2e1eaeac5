"""The least time of a workload on a machine whose limits are made up, and what is measured of a real one."""

import dataclasses

import pytest
from small_shape import SMALL_SHAPE

from octavo.bench import limits
from octavo.bench.limits import Limits, least_seconds, model_cost, render
from octavo.models.config import ModelConfig


def config(windows=(None, None)) -> ModelConfig:
    return dataclasses.replace(SMALL_SHAPE, windows=windows)


LAYERS = 2 * (8 * 4 * 2 + 2 * 8 * 2 * 2 + 4 * 2 * 8 + 3 * 8 * 16)  # q, k and v, o, mlp
HEAD = 100 * 8


def machine(read=1e-9, work=1e-9) -> Limits:
    """Reads ``read`` * 1e9 bytes and does ``work`` * 1e9 operations a second."""
    return Limits(1, read, work, work, None)


def test_parameters_are_counted():
    cost = model_cost(config(), "bfloat16", "float32")
    assert (cost.layer_parameters, cost.head_parameters) == (LAYERS, HEAD)
    assert cost.step_bytes == 2 * (LAYERS + HEAD)
    assert cost.kv_bytes(10) == 2 * 2 * 10 * 2 * 2 * 4


def test_windows_bound_what_is_read():
    cost = model_cost(config(windows=(None, 4)), "float32", "float32")
    assert cost.kv_bytes(10) == 2 * (10 + 4) * 2 * 2 * 4
    assert cost.kv_bytes(3) == 2 * (3 + 3) * 2 * 2 * 4


def test_prompts_take_their_arithmetic():
    cost = model_cost(config(), "float32", "float32")
    fast_memory = machine(read=1e9)
    assert least_seconds(cost, [(10, 1), (20, 1)], 8, fast_memory) == pytest.approx(2 * (30 * LAYERS + 2 * HEAD))


def test_steps_take_their_reading():
    cost = model_cost(config(), "float32", "float32")
    fast_arithmetic = machine(work=1e9)
    steps = sum(cost.step_bytes + cost.kv_bytes(11 + step) for step in range(3))
    assert least_seconds(cost, [(10, 4)], 8, fast_arithmetic) == pytest.approx(cost.step_bytes + steps)


def test_a_batch_reads_the_weights_once():
    cost = model_cost(config(), "float32", "float32")
    fast_arithmetic = machine(work=1e9)
    together = least_seconds(cost, [(10, 4)] * 2, 2, fast_arithmetic)
    apart = least_seconds(cost, [(10, 4)] * 2, 1, fast_arithmetic)
    assert apart - together == pytest.approx(3 * cost.step_bytes)


def test_large_batches_take_their_arithmetic():
    cost = model_cost(config(), "float32", "float32")
    fast_memory = machine(read=1e9)
    assert least_seconds(cost, [(1, 3)] * 5, 8, fast_memory) == pytest.approx(5 * 2 * (LAYERS + HEAD) * 3)


def test_a_place_that_gets_free_is_taken():
    cost = model_cost(config(), "float32", "float32")
    fast_memory = machine(read=1e9)
    one_by_one = least_seconds(cost, [(1, 2), (1, 4), (1, 3)], 2, fast_memory)
    assert one_by_one == pytest.approx((3 + 6) * 2 * (LAYERS + HEAD))


def test_bfloat16_is_never_slower_than_float32():
    slow = Limits(1, 1.0, 10.0, 2.0, None)
    assert slow.arithmetic("bfloat16") == slow.arithmetic("float32") == 1e10


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr(limits, "READ_BUFFER_BYTES", 2**22)
    monkeypatch.setattr(limits, "MATRIX_SIZES", (64,))
    found = limits.measure(1)
    assert found.threads == 1
    assert min(found.read_gb_s, found.fp32_gflop_s, found.bf16_gflop_s) > 0
    assert found.int8_gop_s is None or found.int8_gop_s >= found.fp32_gflop_s


def test_a_missing_int8_product_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(limits, "READ_BUFFER_BYTES", 2**22)
    monkeypatch.setattr(limits, "MATRIX_SIZES", (64,))
    monkeypatch.setattr(limits, "_int8_peak", lambda: None)
    text = render(limits.measure(1))
    assert "int8 product" not in text.partition("Practical")[0]
    assert "int8 is left out" in text
