"""How a stored tensor is held: the table, what it takes, and that loading does what it says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from weight_blocks import relative_error, spelled_out

from octavo.errors import ModelLoadError
from octavo.models.stored_rows import StoredRows
from octavo.ops.base import BlockWeight, Float8Weight
from octavo.quantization import formats
from octavo.quantization.formats import DENSE, FLOAT8, INT4, INT8, PackedFormat, load_packed, packed_bytes, resolve
from octavo.quantization.gguf import BLOCKS
from octavo.quantization.quantize import quantize_int4, quantize_int8


def stored(weight: torch.Tensor, name: str = "some.weight") -> StoredRows:
    return StoredRows(name, tuple(weight.shape), "F32", weight.contiguous().view(torch.uint8).view(-1).numpy())


@pytest.mark.parametrize("storage", BLOCKS)
def test_auto_keeps_what_is_stored_and_the_others_do_not_look(storage: str) -> None:
    assert (resolve(storage, "auto", False) == DENSE) == (storage in ("F32", "F16", "BF16"))
    assert resolve(storage, "auto", True) == resolve(storage, "auto", False)
    assert resolve(storage, "none", False) == resolve(storage, "none", True) == DENSE
    assert resolve(storage, "int8", False) == resolve(storage, "int8", True) == INT8
    assert (resolve(storage, "int4", False), resolve(storage, "int4", True)) == (INT4, INT8)
    assert (resolve(storage, "fp8", False), resolve(storage, "fp8", True)) == (FLOAT8, DENSE)
    assert (resolve(storage, "fp8", False), resolve(storage, "fp8", True)) == (FLOAT8, DENSE)


@pytest.mark.parametrize(
    ("packed", "nbytes"),
    [
        (DENSE, 64 * 576 * 2),
        (INT8, 64 * 576 + 4 * 64),
        (FLOAT8, 64 * 576 + 4 * 64),
        (INT4, 64 * 576 // 2 + 64 * 18 * 2),
        (FLOAT8, 64 * 576 + 4 * 64),
        (formats.STORED_4, 64 * 576 // 2 + 64 * 18 * 2),
        (formats.STORED_4_MINIMA, 64 * 576 // 2 + 64 * 18 * 4),
        (formats.STORED_8, 64 * 576 + 64 * 18 * 2),
        (formats.STORED_8_MINIMA, 64 * 576 + 64 * 18 * 4),
    ],
)
def test_bytes_count_scales_and_what_is_filled_up(packed: PackedFormat, nbytes: int) -> None:
    assert packed_bytes(packed, 64, 576, "bfloat16") == nbytes
    assert packed_bytes(packed, 33, 576, "bfloat16") == nbytes
    assert packed_bytes(packed, 64, 545, "bfloat16") == (nbytes if packed.bits else 64 * 545 * 2)


@pytest.mark.parametrize("storage", [name for name, (values, _) in BLOCKS.items() if values > 1])
def test_blocks_as_they_are_stored_take_what_is_counted(storage: str) -> None:
    weight = StoredRows("w", (32, 512), storage, np.zeros(32 * 512 // BLOCKS[storage][0] * BLOCKS[storage][1], np.uint8))
    packed = resolve(storage, "auto", False)
    made = load_packed(weight, packed)
    assert isinstance(made, BlockWeight)
    assert array_bytes(made) == packed_bytes(packed, 32, 512, "bfloat16")


def array_bytes(made: BlockWeight) -> int:
    return sum(array.nbytes for array in (made.values, made.scales, made.minima) if array is not None)


@pytest.mark.parametrize(("packed", "quantize"), [(INT8, quantize_int8), (INT4, quantize_int4)])
def test_dense_tensors_are_quantised_some_rows_at_a_time(monkeypatch, packed: PackedFormat, quantize) -> None:
    weight = torch.randn(70, 96, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(formats, "_READ_VALUES", 96 * 32)
    made, whole = load_packed(stored(weight), packed), quantize(weight)
    assert isinstance(made, BlockWeight) and (made.bits, made.zero) == (whole.bits, whole.zero)
    assert np.array_equal(made.values, whole.values) and np.array_equal(made.scales, whole.scales)
    assert array_bytes(made) <= packed_bytes(packed, 70, 96, "float32")


def test_quantised_tensors_are_quantised_anew_from_what_they_stand_for() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (48, 34), dtype=np.uint8)
    blocks[:, :2] = (rng.random(48) / 100).astype(np.float16)[:, None].view(np.uint8)
    tensor = StoredRows("w", (16, 96), "Q8_0", blocks.reshape(-1))
    made = load_packed(tensor, resolve("Q8_0", "int4", False))
    assert isinstance(made, BlockWeight) and made.bits == 4
    assert relative_error(spelled_out(made), tensor.dense(torch.float32).numpy()) < 0.1


def test_dense_formats_leave_it_to_the_caller() -> None:
    assert load_packed(stored(torch.ones(2, 32)), DENSE) is None


@pytest.mark.parametrize(("storage", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_what_is_to_become_float8_keeps_its_own_type_until_then(storage: str, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    made = load_packed(StoredRows("w", (5, 33), storage, weight.view(torch.uint8).view(-1).numpy()), FLOAT8)
    assert isinstance(made, Float8Weight) and made.shape == (5, 33)
    assert made.dense.dtype == dtype and torch.equal(made.dense, weight)


def test_large_numbers_are_finite_even_where_their_sum_is_not() -> None:
    made = load_packed(stored(torch.full((2, 32), 3e38)), FLOAT8)
    assert isinstance(made, Float8Weight)


@pytest.mark.parametrize("packed", [INT8, INT4, FLOAT8])
def test_what_cannot_be_quantised_is_named(packed: PackedFormat) -> None:
    weight = torch.ones(4, 32)
    weight[3, 3] = float("nan")
    with pytest.raises(ModelLoadError, match=r"'model\.layers\.0\.some\.weight' holds values that are not finite"):
        load_packed(stored(weight, "model.layers.0.some.weight"), packed)


def test_nothing_here_imports_torch() -> None:
    code = "import sys, octavo.quantization.formats, octavo.quantization.base; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
