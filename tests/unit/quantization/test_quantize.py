"""Quantisation at load: what is promised of scales, rounding, padding and odd input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from weight_blocks import relative_error, spelled_out

from octavo.errors import ModelLoadError
from octavo.quantization.quantize import quantize_int4, quantize_int8


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def test_int8_is_nearest_to_even_under_a_scale_a_row() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.6, 0.0], [0.0, 254.0, 3.0, -5.0, 1.0, -1.0, 2.0, -254.0]])
    made = quantize_int8(weight)
    assert made.bits == 8 and made.zero == 0 and made.minima is None
    assert made.values.dtype == np.int8 and made.scales.dtype == np.float32
    assert made.scales.tolist() == [[1.0], [2.0]]
    assert made.values[:, 0, :8].tolist() == [[127, 0, 2, 2, 0, -2, -127, 0], [0, 127, 2, -2, 0, 0, 1, -127]]
    assert not made.values[:, :, 8:].any()


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 576, 1000])
def test_columns_are_filled_up_with_zeros(quantize, columns: int) -> None:
    weight = normal(5, columns)
    made = quantize(weight)
    assert made.shape == (5, -(-columns // 32) * 32)
    values = spelled_out(made)
    assert not values[:, columns:].any()
    assert np.abs(values[:, :columns] - weight.numpy()).max() <= (0.5 if made.bits == 8 else 1.2) * np.abs(made.scales).max()


def test_normal_weights_lose_what_the_precision_costs() -> None:
    weight = normal(256, 1024)
    assert relative_error(spelled_out(quantize_int8(weight)), weight.numpy()) < 0.0085
    found = relative_error(spelled_out(quantize_int4(weight)), weight.numpy())
    q4_0 = relative_error(q4_0_values(weight), weight.numpy())
    assert found < 0.083 < 0.085 < q4_0


def q4_0_values(weight: torch.Tensor) -> np.ndarray:
    """As llama.cpp's Q4_0 rounds."""
    x = weight.view(-1, 32)
    scales = (x.gather(1, x.abs().argmax(1, keepdim=True)) / -8).half().float()
    return ((x / scales + 8.5).floor().clamp(0, 15).sub(8) * scales).view(weight.shape).numpy()


def test_int4_blocks_are_as_block_weight_says() -> None:
    # Values that 4 bits hold exactly, all different in their nibbles' places.
    q = torch.tensor([(7 * i + 3) % 16 - 8 for i in range(64)], dtype=torch.float32)
    made = quantize_int4((q * 0.25).view(1, 64))
    assert made.bits == 4 and made.zero == 8 and made.minima is None
    assert made.values.shape == (1, 2, 16) and made.values.dtype == np.uint8
    assert made.scales.dtype == np.float16
    assert np.array_equal(spelled_out(made), (q * 0.25).view(1, 64).numpy())


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-42, 1e-38, 1e-20, 1e-8])
def test_rows_and_blocks_of_zeros_and_of_next_to_nothing_are_numbers(quantize, size: float) -> None:
    weight = normal(4, 64)
    weight[1] = 0.0
    weight[2, 32:] = torch.tensor([size, -size]).repeat(16)
    weight[3] = size
    made = quantize(weight)
    values = spelled_out(made)
    assert np.isfinite(values).all()
    assert not values[1].any()
    assert np.abs(values[3] - weight[3].numpy()).max() <= size
    alone = quantize(weight[0:1])
    assert np.array_equal(made.values[0], alone.values[0]) and np.array_equal(made.scales[0], alone.scales[0])


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(quantize, bad: float) -> None:
    weight = normal(3, 64)
    weight[2, 40] = bad
    with pytest.raises(ModelLoadError, match="not finite"):
        quantize(weight)


def test_int4_refuses_what_a_half_precision_scale_cannot_reach() -> None:
    with pytest.raises(ModelLoadError, match="too large"):
        quantize_int4(torch.full((1, 32), 1e6))
    assert np.isfinite(quantize_int4(normal(1, 32) * 1e6).scales).all()


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_taken_as_the_numbers_they_are(quantize, dtype: torch.dtype) -> None:
    weight = normal(3, 96).to(dtype)
    narrow, wide = quantize(weight), quantize(weight.float())
    assert np.array_equal(narrow.values, wide.values) and np.array_equal(narrow.scales, wide.scales)


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_rows_do_not_depend_on_the_piece_they_fall_into(quantize) -> None:
    weight = normal(300, 2**19 // 128)  # three pieces
    whole, part = quantize(weight), quantize(weight[100:270])
    assert np.array_equal(whole.values[100:270], part.values) and np.array_equal(whole.scales[100:270], part.scales)
