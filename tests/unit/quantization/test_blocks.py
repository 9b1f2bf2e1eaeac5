"""Stored blocks as the canonical ones: the same values as dequantising gives, bit for bit or within what the module says is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from weight_blocks import normal_k_blocks, relative_error, spelled_out

from octavo.models.stored_rows import StoredRows
from octavo.ops.base import BlockWeight
from octavo.quantization.blocks import block_weight
from octavo.quantization.formats import resolve
from octavo.quantization.gguf import BLOCKS
from octavo.quantization.gguf_dequantize import dequantize

HALF_SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
QUANTISED = list(HALF_SCALES)
EXACT = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q3_K"]
MOST_LOST = {"Q4_K": 0.001, "Q5_K": 0.001, "Q6_K": 0.0045, "Q2_K": 0.0055}


def random_rows(storage: str, rows: int, row_blocks: int, seed: int = 0) -> np.ndarray:
    """uint8 [rows, bytes a row]: every bit random but for the scales, random finite numbers of both signs, some subnormal."""
    rng = np.random.default_rng(seed)
    count = rows * row_blocks
    blocks = rng.integers(0, 256, (count, BLOCKS[storage][1]), dtype=np.uint8)
    for offset in HALF_SCALES[storage]:
        scales = rng.standard_normal(count) * 10.0 ** rng.integers(-7, 2, count)
        blocks[:, offset : offset + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def dequantised(data: np.ndarray, storage: str) -> np.ndarray:
    values, nbytes = BLOCKS[storage]
    out = torch.empty(len(data), data.shape[1] // nbytes * values)
    dequantize(np.ascontiguousarray(data).reshape(-1), storage, out)
    return out.numpy()


def blocks_of(data: np.ndarray, storage: str) -> BlockWeight:
    weight = block_weight(data, storage)
    assert weight is not None
    return weight


@pytest.mark.parametrize("storage", EXACT)
def test_exact_types_have_the_dequantised_values(storage: str) -> None:
    data = random_rows(storage, 37, 5)
    assert np.array_equal(spelled_out(blocks_of(data, storage)), dequantised(data, storage))


@pytest.mark.parametrize("storage", QUANTISED)
def test_arrays_are_as_block_weight_and_the_format_say(storage: str) -> None:
    data = random_rows(storage, 6, 2)
    weight = blocks_of(data, storage)
    blocks = 2 * BLOCKS[storage][0] // 32
    packed = resolve(storage, "auto", False)
    assert weight.shape == (6, blocks * 32)
    assert (weight.bits, weight.minima is not None) == (packed.bits, packed.minima)
    assert weight.values.shape == (6, blocks, 4 * weight.bits)
    assert weight.values.dtype == (np.int8 if weight.bits == 8 and weight.zero == 0 and weight.minima is None else np.uint8)
    assert weight.scales.shape == (6, blocks) and weight.scales.dtype == np.float16
    if weight.minima is not None:
        assert weight.minima.shape == (6, blocks) and weight.minima.dtype == np.float16 and weight.zero == 0


@pytest.mark.parametrize("storage", ["Q4_0", "Q4_1", "Q8_0"])
def test_the_plain_types_are_views(storage: str) -> None:
    data = random_rows(storage, 4, 2)
    weight = blocks_of(data, storage)
    for array in filter(lambda array: array is not None, (weight.values, weight.scales, weight.minima)):
        assert np.shares_memory(array, data)


@pytest.mark.parametrize("deviation", [1.0, 0.02, 0.001])
@pytest.mark.parametrize("storage", MOST_LOST)
def test_normal_weights_in_other_types_lose_little(storage: str, deviation: float) -> None:
    weights, blocks = normal_k_blocks(storage, 1024, deviation)
    data = blocks.reshape(256, -1)
    dense = dequantised(data, storage)
    own = relative_error(dense.reshape(weights.shape), weights)
    assert own < {"Q2_K": 0.4, "Q4_K": 0.09, "Q5_K": 0.045, "Q6_K": 0.022}[storage], "the test's own encoder is wrong"
    lost = relative_error(spelled_out(blocks_of(data, storage)), dense)
    assert lost < MOST_LOST[storage]
    assert lost < own / 4


@pytest.mark.parametrize("storage", MOST_LOST)
def test_no_value_of_any_block_is_off_by_more_than_a_step(storage: str) -> None:
    """Random bits: blocks of all sizes, sub-scales of all ratios and both signs, scales that are subnormal halves."""
    data = random_rows(storage, 64, 8, seed=1)
    dense = dequantised(data, storage).reshape(-1, 32)
    weight = blocks_of(data, storage)
    off = np.abs(spelled_out(weight).reshape(-1, 32) - dense)
    if weight.minima is None:
        # A clipped 128 is a whole step off, all else half a step and what the scale's rounding adds to the largest.
        assert (off.max(1) <= np.abs(weight.scales.reshape(-1).astype(np.float32)) * 1.07).all()
        assert (np.median(off, axis=1) <= np.abs(weight.scales.reshape(-1).astype(np.float32)) * 0.5).all()
    else:
        # Products of a half and an integer round by 2^-11 at most.
        q = 2**4 if storage == "Q4_K" else 2**5
        size = q * np.abs(weight.scales.reshape(-1).astype(np.float32)) + np.abs(weight.minima.reshape(-1).astype(np.float32))
        assert (off.max(1) <= size * 2.0**-11).all()


@pytest.mark.parametrize("storage", ["Q4_K", "Q5_K"])
def test_products_of_subnormal_scales_lose_nothing(storage: str) -> None:
    data = random_rows(storage, 8, 2).reshape(-1, BLOCKS[storage][1])
    for offset in (0, 2):
        data[:, offset : offset + 2] = np.arange(1, 17, dtype=np.uint16)[:, None].view(np.uint8)  # multiples of 2^-24
    data = data.reshape(8, -1)
    assert np.array_equal(spelled_out(blocks_of(data, storage)), dequantised(data, storage))


@pytest.mark.parametrize("storage", QUANTISED)
def test_blocks_of_zeros_are_zeros(storage: str) -> None:
    data = np.zeros((3, BLOCKS[storage][1]), np.uint8)
    assert not spelled_out(blocks_of(data, storage)).any()


@pytest.mark.parametrize("storage", ["F32", "F16", "BF16"])
def test_floats_are_no_blocks(storage: str) -> None:
    assert block_weight(np.zeros((2, 64), np.uint8), storage) is None


@pytest.mark.parametrize("storage", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_scales_that_are_not_finite_leave_the_tensor_dense(storage: str, bad: float, recwarn: pytest.WarningsRecorder) -> None:
    data = random_rows(storage, 2, 1)
    offset = HALF_SCALES[storage][0]
    data[1, offset : offset + 2] = np.array([bad], np.float16).view(np.uint8)
    assert block_weight(data, storage) is None
    assert not recwarn.list


def test_products_beyond_half_precision_leave_the_tensor_dense() -> None:
    _, blocks = normal_k_blocks("Q4_K", 4, deviation=3e5)
    assert np.isfinite(dequantised(blocks, "Q4_K")).all()
    assert block_weight(blocks, "Q4_K") is None


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("storage", ["Q5_1", "Q3_K"])
def test_long_tensors_are_repacked_whole_on_any_number_of_threads(storage: str, threads: int) -> None:
    data = random_rows(storage, 1201, 1024 // BLOCKS[storage][0])
    torch.set_num_threads(threads)
    weight = blocks_of(data, storage)
    assert np.array_equal(spelled_out(weight), dequantised(data, storage))


# ---- stored rows -----------------------------------------------------------------------------------------------------


def stored(storage: str, rows: int, row_order: np.ndarray | None = None, shift: float = 0.0) -> StoredRows:
    data = np.frombuffer(random_rows(storage, rows, 512 // BLOCKS[storage][0]).tobytes(), np.uint8)  # read-only, as a mapped file
    return StoredRows("some.weight", (rows, 512), storage, data, row_order, shift)


@pytest.mark.parametrize("rows", [None, slice(1, 5), slice(3, None), slice(None, None, 2), slice(0, 0)])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("storage", EXACT)
def test_stored_rows_come_in_their_order_and_only_those_asked_for(storage: str, ordered: bool, rows: slice | None) -> None:
    order = np.random.default_rng(0).permutation(8).astype(np.int64) if ordered else None
    tensor = stored(storage, 8, order)
    weight = tensor.blocks(rows)
    assert weight is not None
    assert np.array_equal(spelled_out(weight), tensor.dense(torch.float32, rows).numpy())


@pytest.mark.parametrize("storage", MOST_LOST)
def test_stored_rows_of_lossy_types_do_not_depend_on_what_else_is_asked_for(storage: str) -> None:
    tensor = stored(storage, 8, np.arange(8)[::-1].copy())
    whole, part = tensor.blocks(), tensor.blocks(slice(2, 7, 2))
    assert whole is not None and part is not None
    expected = replace(whole, values=whole.values[2:7:2], scales=whole.scales[2:7:2])
    if whole.minima is not None:
        expected = replace(expected, minima=whole.minima[2:7:2])
    assert np.array_equal(spelled_out(part), spelled_out(expected))


def test_what_is_shifted_or_no_matrix_or_dense_is_not_in_blocks() -> None:
    assert stored("Q8_0", 4, shift=-1.0).blocks() is None
    assert StoredRows("bias", (512,), "Q8_0", random_rows("Q8_0", 1, 16).reshape(-1)).blocks() is None
    assert StoredRows("dense", (4, 8), "F32", np.zeros(128, np.uint8)).blocks() is None
