"""How weights lie on the GPU: nothing is lost, neighbours are stacked, and it takes what the memory plan counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_blocks import FORMATS, drawn_blocks, stands_for

from octavo.ops.base import BlockWeight, Float8Weight
from octavo.ops.cuda.block_rows import dequantize
from octavo.ops.cuda.weights import BlockPart, DensePart, Float8Part, pack
from octavo.quantization.formats import FLOAT8, INT4, INT8, PackedFormat, packed_bytes
from octavo.quantization.quantize import quantize_int4, quantize_int8


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sizes", [(32, 64), (1,), (40, 7, 90)])
@pytest.mark.parametrize("columns", [32, 192, 256])
def test_blocks_stand_for_what_they_did(name: str, sizes: tuple[int, ...], columns: int, device: torch.device, dtype: torch.dtype) -> None:
    members = [drawn_blocks(name, rows, columns, seed=rows) for rows in sizes]
    (part,) = pack(members, dtype, device)
    assert isinstance(part, BlockPart)
    assert (part.first, part.out_features, part.in_features) == (0, sum(sizes), columns)
    expected = torch.cat([stands_for(member) for member in members])
    assert torch.equal(dequantize(part).cpu(), expected.to(dtype))


def test_rows_can_be_spelled_out_from_any_tile_on(device: torch.device, dtype: torch.dtype) -> None:
    for name in FORMATS:
        weight = drawn_blocks(name, 100, 64)
        (part,) = pack([weight], dtype, device)
        assert isinstance(part, BlockPart)
        assert torch.equal(dequantize(part, 32, 75).cpu(), stands_for(weight)[32:75].to(dtype))


def test_neighbours_of_one_kind_are_stacked_and_others_stay_apart(device: torch.device) -> None:
    four, eight, dense = drawn_blocks("4_minima", 40, 64), drawn_blocks("8_signed", 8, 64), drawn(5, 64)
    parts = pack([four, four, eight, dense, dense.half(), Float8Weight(dense), four], torch.float16, device)
    assert [(type(part), part.first, part.out_features) for part in parts] == [
        (BlockPart, 0, 80),
        (BlockPart, 80, 8),
        (DensePart, 88, 10),
        (Float8Part, 98, 5),
        (BlockPart, 103, 40),
    ]
    assert all(part.in_features == 64 and part.dtype == torch.float16 for part in parts)
    third = parts[2]
    assert isinstance(third, DensePart)
    assert torch.equal(third.weight.cpu(), torch.cat([dense, dense]).half())


def test_signed_and_unsigned_numbers_are_not_stacked(device: torch.device) -> None:
    parts = pack([drawn_blocks("8_signed", 32, 64), drawn_blocks("8_zero16", 32, 64)], torch.float32, device)
    assert [part.first for part in parts] == [0, 32]


@pytest.mark.parametrize(
    ("packed", "part"),
    [
        (INT4, lambda weight: quantize_int4(weight)),
        (INT8, lambda weight: quantize_int8(weight)),
        (FLOAT8, lambda weight: Float8Weight(weight)),
        (PackedFormat("dense"), lambda weight: weight),
    ],
)
def test_parts_take_what_the_memory_plan_counts(packed: PackedFormat, part, device: torch.device) -> None:
    (made,) = pack([part(drawn(100, 96))], torch.bfloat16, device)
    dense = 28 * 96 * 2 if isinstance(made, DensePart) else 0  # which the plan rounds up to whole tiles
    assert made.nbytes + dense == packed_bytes(packed, 100, 96, "bfloat16")


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_laid_out_is_a_copy(name: str, device: torch.device) -> None:
    weight = drawn_blocks(name, 32, 32)
    arrays = [np.array(array) for array in (weight.values, weight.scales)]
    made = BlockWeight(weight.bits, arrays[0], weight.zero, arrays[1], weight.minima)
    (part,) = pack([made], torch.float32, device)
    for array in arrays:
        array[:] = 0
    assert isinstance(part, BlockPart)
    assert torch.equal(dequantize(part).cpu(), stands_for(weight))


def test_float8_numbers_are_the_nearest(device: torch.device) -> None:
    weight = drawn(70, 40) * torch.logspace(-6, 3, 70)[:, None]
    weight[13] = 0.0
    (part,) = pack([Float8Weight(weight[:9]), Float8Weight(weight[9:])], torch.float32, device)
    assert isinstance(part, Float8Part)
    assert part.values.shape == (96, 48)
    found = part.values.float().cpu() * part.scales.cpu()[:, None]
    assert not found[70:].any() and not found[:, 40:].any() and not found[13].any()
    # Three bits of mantissa; below 2^-6 of a scale they are multiples of 2^-9.
    bound = weight.abs() * 2**-4 + part.scales.cpu()[:70, None] * 2**-10
    assert ((found[:70, :40] - weight).abs() <= bound * (1 + 1e-5)).all()
    assert torch.allclose(found[:70].abs().amax(1), weight.abs().amax(1), rtol=1e-6)
