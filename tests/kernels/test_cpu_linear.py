"""The C++ products and token tables in every packed format: right to float32's rounding, and a row's bits are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cpu_kernels import (
    ALIKE,
    ALIKE_8_BITS,
    ALIKE_BF16,
    KERNELS,
    SIGMAS,
    TANH,
    U_BF16,
    GuardedOps,
    U,
    cpu_ops,
    drawn,
    every_set,
    worst,
)
from cpu_products import FORMATS, NEXT_TO_NOTHING, compute_type, drawn_rows, drawn_weight, product, row_bytes, row_words, spelled_out

from octavo.ops.base import BlockWeight, PackedLinear, WeightPart
from octavo.ops.cpu.backend import CpuOps

every_format = pytest.mark.parametrize("packed", FORMATS)

# Rows, outputs, inputs. Tiles are of 1 to 12 rows, operands are made by each thread for up to 2 rows, panels have 32 columns.
SIZES = [
    (1, 1, 1),
    (2, 17, 31),
    (3, 31, 17),
    (5, 37, 97),
    (6, 97, 37),
    (7, 33, 33),
    (12, 64, 97),
    (13, 16, 576),
    (33, 97, 1536),
    (193, 37, 97),
]
# Inputs in blocks of 32, whose flags come in words of 32.
BLOCK_SIZES = [
    (1, 1, 32),
    (2, 17, 32),
    (3, 31, 96),
    (5, 37, 64),
    (6, 97, 160),
    (7, 33, 1056),
    (12, 64, 96),
    (13, 16, 576),
    (33, 97, 1536),
    (193, 37, 96),
]


def sizes_of(packed: str) -> list[tuple[int, int, int]]:
    return SIZES if packed in ("f32", "bf16") else BLOCK_SIZES


FORMATS_AND_SIZES = [(packed, *size) for packed in FORMATS for size in sizes_of(packed)]


@pytest.fixture
def ops_of(kernels: str) -> Iterator[dict[torch.dtype, GuardedOps]]:
    """Kernels by compute type; nothing may have been written beside their outputs."""
    both = {dtype: GuardedOps(dtype, 1, kernels) for dtype in (torch.float32, torch.bfloat16)}
    yield both
    for ops in both.values():
        ops.assert_guards()


Both = dict[torch.dtype, GuardedOps]


@every_set
@pytest.mark.parametrize(("packed", "rows", "outputs", "inputs"), FORMATS_AND_SIZES)
def test_linear_and_logits(ops_of: Both, packed: str, rows: int, outputs: int, inputs: int) -> None:
    ops, x = ops_of[compute_type(packed)], drawn_rows(rows, inputs)
    weight, bias = drawn_weight(packed, outputs, inputs), drawn(outputs, seed=2)
    exact, bound = product(x, weight, ops)
    plain, biased = ops.pack_linear([weight]), ops.pack_linear([weight], bias)
    assert (plain.out_features, plain.in_features) == (outputs, inputs)
    assert worst(ops.linear(x, plain), exact, bound) < 1
    total = exact + bias.double()
    assert worst(ops.linear(x, biased), total, bound + U * total.abs()) < 1
    cap = exact.abs().mean().item() + 1e-3
    assert worst(ops.logits(x, plain, cap), cap * torch.tanh(exact / cap), bound + (TANH + 3 * U) * cap) < 1


@every_set
@every_format
def test_a_thousand_rows(ops_of: Both, packed: str) -> None:
    """Many runs of the rows that stay in the cache while panels go by."""
    ops, x, weight = ops_of[compute_type(packed)], drawn_rows(1000, 32), drawn_weight(packed, 65, 32)
    assert worst(ops.linear(x, ops.pack_linear([weight])), *product(x, weight, ops)) < 1


@pytest.mark.parametrize("packed", ["bf16", "u4_block_min"])
def test_a_vocabulary(packed: str) -> None:
    """More columns than any layer has; on two threads."""
    ops, x, weight = GuardedOps(torch.bfloat16, 2, KERNELS[0]), drawn_rows(2, 576), drawn_weight(packed, 49152, 576)
    scores = ops.logits(x, ops.pack_linear([weight]))
    for some in (slice(0, 500), slice(24500, 25000), slice(48652, 49152)):
        assert worst(scores[:, some], *product(x, rows_of(weight, some), ops)) < 1
    assert not scores.isnan().any()
    ops.assert_guards()


def rows_of(weight: WeightPart, rows: slice) -> WeightPart:
    if not isinstance(weight, BlockWeight):
        return weight[rows]
    minima = None if weight.minima is None else weight.minima[rows]
    return replace(weight, values=weight.values[rows], scales=weight.scales[rows], minima=minima)


# ---- gates -------------------------------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


def gated(kind: str, gate: tuple[torch.Tensor, torch.Tensor], up: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """act(gate) * up and its bound, from theirs. Both activations are at most 1.13 steep and |gate| large; the kernels' own are an
    exponential (2 U), a few operations and for gelu a tanh off, relative to |gate|: 10 U."""
    active = ACTIVATIONS[kind](gate[0])
    off = 1.13 * gate[1] + 10 * U * gate[0].abs()
    return active * up[0], off * (up[0].abs() + up[1]) + (active.abs() + U) * up[1] + U * (active * up[0]).abs()


@every_set
@pytest.mark.parametrize("kind", list(ACTIVATIONS))
@pytest.mark.parametrize(("packed", "rows", "width", "inputs"), [(packed, *size) for packed in FORMATS for size in sizes_of(packed)[1:8:3]])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_linear(ops_of: Both, kind: str, packed: str, rows: int, width: int, inputs: int, with_bias: bool) -> None:
    ops, x = ops_of[compute_type(packed)], drawn_rows(rows, inputs)
    parts = [drawn_weight(packed, width, inputs, seed) for seed in (1, 2)]
    bias = drawn(2 * width, seed=3) if with_bias else torch.zeros(2 * width)
    gate, up = (
        (exact + own.double(), bound + U * (exact + own).abs())
        for (exact, bound), own in zip((product(x, part, ops) for part in parts), bias.chunk(2), strict=True)
    )
    weight = ops.pack_linear(parts, bias if with_bias else None, gated=True)
    assert worst(ops.gated_linear(x, weight, kind), *gated(kind, gate, up)) < 1


@every_set
@pytest.mark.parametrize("kind", list(ACTIVATIONS))
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_gates_of_another_format_than_what_they_gate(ops_of: Both, kind: str, rows: int) -> None:
    ops, x = ops_of[torch.bfloat16], drawn_rows(rows, 64)
    parts = [drawn_weight("u4_block", 41, 64), drawn_weight("u8_block_min", 41, 64)]
    weight = ops.pack_linear(parts, gated=True)
    assert worst(ops.gated_linear(x, weight, kind), *gated(kind, product(x, parts[0], ops), product(x, parts[1], ops))) < 1


@every_set
def test_gates_far_from_zero(ops_of: Both) -> None:
    """Where exponentials end: activations go to the gate itself, or to 0."""
    ops, gates = ops_of[torch.float32], torch.tensor([0.0, -0.0, 1e-30, 20.0, -20.0, 86.0, -86.0, 300.0, -300.0, 1e30, -1e30])
    weight = ops.pack_linear([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])], gated=True)
    x = torch.stack((gates, torch.ones(len(gates))), dim=1)
    for kind, activation in ACTIVATIONS.items():
        exact = activation(gates.double()).unsqueeze(1)
        assert worst(ops.gated_linear(x, weight, kind), exact, 10 * U * gates.double().abs().unsqueeze(1)) < 1


# ---- parts, strides, types -----------------------------------------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize(
    "formats",
    [
        ["u4_block", "u4_block", "u4_block"],
        ["u4_block", "u4_block", "u8_block"],
        ["u8_block", "bf16", "u4_block_min"],
        ["bf16", "bf16", "bf16"],
    ],
    ids="-".join,
)
@pytest.mark.parametrize("rows", [1, 7])
def test_stacked_parts_of_one_and_of_several_formats(ops_of: Both, formats: list[str], rows: int) -> None:
    ops, x = ops_of[torch.bfloat16], drawn_rows(rows, 96)
    parts = [drawn_weight(packed, height, 96, height) for packed, height in zip(formats, (17, 31, 5), strict=True)]
    bias = drawn(53, seed=4)
    weight = ops.pack_linear(parts, bias)
    assert weight.out_features == 53
    exact, bound = (torch.cat(column, dim=1) for column in zip(*(product(x, part, ops) for part in parts), strict=True))
    total = exact + bias.double()
    assert worst(ops.linear(x, weight), total, bound + U * total.abs()) < 1


@every_set
@every_format
def test_rows_and_weights_in_strides(ops_of: Both, packed: str) -> None:
    """Rows that are a slice of wider ones; weights of which every second row, or block, is wanted."""
    ops, wide = ops_of[compute_type(packed)], drawn_rows(5, 160)
    x, weight = wide[:, 32:96], drawn_weight(packed, 70, 128)
    if isinstance(weight, BlockWeight):
        minima = None if weight.minima is None else weight.minima[::2, ::2]
        scales = weight.scales[::2] if packed == "u8_row" else weight.scales[::2, ::2]
        part: WeightPart = replace(weight, values=weight.values[::2, ::2], scales=scales, minima=minima)
    else:
        part = weight.view(35, 2, 64, 2)[:, 0, :, 0]
    assert worst(ops.linear(x, ops.pack_linear([part])), *product(x.contiguous(), part, ops)) < 1


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dense_weights_of_another_type_are_rounded(ops_of: Both, dtype: torch.dtype) -> None:
    x, weight = drawn_rows(4, 33), drawn(19, 33, dtype=dtype)
    for compute, ops in ops_of.items():
        assert worst(ops.linear(x, ops.pack_linear([weight])), *product(x, weight.to(compute), ops)) < 1


@every_set
def test_unsigned_bytes_count_from_any_zero(ops_of: Both) -> None:
    ops, x, drawn_bytes = ops_of[torch.bfloat16], drawn_rows(3, 64), drawn_weight("u8_block", 5, 64)
    assert isinstance(drawn_bytes, BlockWeight)
    for values, zero in [(drawn_bytes.values, zero) for zero in (0, 1, 128, 255)] + [(drawn_bytes.values.view(np.int8), 0)]:
        weight = replace(drawn_bytes, values=values, zero=zero)
        assert worst(ops.linear(x, ops.pack_linear([weight])), *product(x, weight, ops)) < 1


# ---- what rounding rows to bytes costs -------------------------------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("packed", FORMATS[2:])
def test_rows_lose_half_a_step_at_most(ops_of: Both, packed: str) -> None:
    """Against the rows before they are rounded: what each value loses is independent of the others, and of the weight."""
    ops, x, weight = ops_of[torch.bfloat16], drawn_rows(30, 320), drawn_weight(packed, 33, 320)
    matrix, step = spelled_out(weight), row_bytes(x).step
    assert row_bytes(x).wide.any(1).sum() == 10
    lost = SIGMAS * (step.square() @ matrix.view(33, 10, 32).square().sum(2).T).sqrt()
    if ops.wide_activations and packed == "u8_row":
        lost = SIGMAS * row_words(x)[1] / 2 * matrix.square().sum(1).sqrt()
    if ops.wide_activations and packed.startswith("u4"):  # both factors lose half of bfloat16's last bit
        lost = SIGMAS * U_BF16 * (x.double().square() @ matrix.square().T).sqrt()
    assert worst(ops.linear(x, ops.pack_linear([weight])), x.double() @ matrix.T, lost + product(x, weight, ops)[1]) < 1


@every_set
@pytest.mark.parametrize("packed", FORMATS[2:])
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-37, 1e-35, 1e34])
def test_blocks_of_any_size(ops_of: Both, packed: str, size: float) -> None:
    """Beside ordinary blocks in their row and alone: what counts as nothing is lost, and no more."""
    ops, x, weight = ops_of[torch.bfloat16], drawn(6, 160), drawn_weight(packed, 33, 160)
    x[:, 32:64] *= size
    x[3:, :32] = x[3:, 64:] = 0.0
    exact, bound = product(x, weight, ops)
    nothing = NEXT_TO_NOTHING * (256 if ops.wide_activations and packed == "u8_row" else 1)
    assert worst(ops.linear(x, ops.pack_linear([weight])), exact, bound + nothing * spelled_out(weight).abs().sum(1)) < 1


@every_set
@every_format
def test_what_is_no_number_stays_in_its_row(ops_of: Both, packed: str) -> None:
    ops, x, weight = ops_of[compute_type(packed)], drawn_rows(15, 96), drawn_weight(packed, 33, 96)
    harmless = ops.linear(x, packed_weight := ops.pack_linear([weight]))
    broken = {3: torch.nan, 6: torch.inf, 11: -torch.inf}
    for row, value in broken.items():
        x[row, 7 * row] = value
    result = ops.linear(x, packed_weight)
    for row in range(len(x)):
        if row in broken:
            assert not result[row].isfinite().any()
        else:
            assert torch.equal(result[row], harmless[row])


@every_set
@every_format
def test_a_row_of_zeros_gives_the_bias(ops_of: Both, packed: str) -> None:
    ops, bias = ops_of[compute_type(packed)], drawn(33, seed=5)
    weight = ops.pack_linear([drawn_weight(packed, 33, 64)], bias)
    assert torch.equal(ops.linear(torch.zeros(2, 64), weight), bias.expand(2, -1))


@every_set
@every_format
@pytest.mark.parametrize("rows", [1, 5])
def test_what_an_earlier_product_left_does_no_harm(ops_of: Both, packed: str, rows: int) -> None:
    """Memory is used again: an odd row's filling up, and blocks that are not wide, must not keep what was there."""
    ops, inputs = ops_of[compute_type(packed)], 97 if packed in ("f32", "bf16") else 96
    before = drawn_weight(packed, 5, inputs + inputs % 2)
    ops.linear(torch.full((rows, inputs + inputs % 2), torch.nan), ops.pack_linear([before]))
    x, weight = drawn_rows(rows, inputs), drawn_weight(packed, 33, inputs)
    assert worst(ops.linear(x, ops.pack_linear([weight])), *product(x, weight, ops)) < 1


# ---- the same bits ---------------------------------------------------------------------------------------------------------------------


@every_set
@every_format
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_threads(kernels: str, packed: str) -> None:
    ops = GuardedOps(compute_type(packed), 1, kernels)
    x, parts = drawn_rows(200, 160), [drawn_weight(packed, 49, 160, seed) for seed in (1, 2)]
    weight, pairs = ops.pack_linear(parts, drawn(98)), ops.pack_linear(parts, gated=True)
    together, gates = ops.linear(x, weight), ops.gated_linear(x, pairs, "silu")
    for threads in (1, 2, 3):
        ops = GuardedOps(compute_type(packed), threads, kernels)
        for first, last in ((0, 1), (7, 8), (3, 5), (1, 4), (5, 17), (20, 53), (0, 193), (191, 200), (0, 200)):
            assert torch.equal(ops.linear(x[first:last], weight), together[first:last])
            assert torch.equal(ops.gated_linear(x[first:last], pairs, "silu"), gates[first:last])
        ops.assert_guards()


@every_set
@every_format
def test_packing_does_not_depend_on_threads(kernels: str, packed: str) -> None:
    x, weight = drawn_rows(3, 64), drawn_weight(packed, 333, 64)
    results = [ops.linear(x, ops.pack_linear([weight])) for ops in (cpu_ops(compute_type(packed), n, kernels) for n in (1, 3))]
    assert torch.equal(*results)


@every_format
def test_instruction_sets_agree_to_the_bit(packed: str) -> None:
    """As the head of ``csrc/cpu/simd.h`` promises."""
    x, parts = drawn_rows(40, 160), [drawn_weight(packed, 37, 160, seed) for seed in (1, 2)]
    results = []
    for kernels in ALIKE_BF16 if packed == "bf16" else ALIKE_8_BITS if packed[0] == "u" else ALIKE:
        ops = cpu_ops(compute_type(packed), 1, kernels)
        capped = ops.logits(x, ops.pack_linear(parts, drawn(74)), 30.0)
        gates = [ops.gated_linear(x, ops.pack_linear(parts, gated=True), kind) for kind in ACTIVATIONS]
        results.append(torch.cat((capped, *gates), dim=1))
    assert all(torch.equal(result, results[0]) for result in results)


# ---- token tables ----------------------------------------------------------------------------------------------------------------------


@every_set
@every_format
@pytest.mark.parametrize(("tokens", "width"), [(1, 32), (37, 96), (97, 192)])
def test_embedding_is_the_tables_row_rounded_once_and_scaled(ops_of: Both, packed: str, tokens: int, width: int) -> None:
    """Exact: a scale times a whole number plus a minimum is rounded to float32 once, and so is the product with the factor."""
    ops, table = ops_of[compute_type(packed)], drawn_weight(packed, tokens, width)
    ids = torch.tensor([0, tokens - 1, tokens // 2, 0, *range(min(tokens, 40))])
    rows = spelled_out(table).float()[ids]
    packed_table = ops.pack_embedding(table, None)
    assert torch.equal(ops.embedding(ids, packed_table), rows)
    factor = torch.tensor(48**0.5, dtype=ops.dtype).float()
    assert torch.equal(ops.embedding(ids, packed_table, 48**0.5), rows * factor)


@every_set
@pytest.mark.parametrize("packed", ["f32", "bf16", "u8_row", "u4_block_min"])
def test_embedding_reads_a_tied_head_on_any_threads(kernels: str, packed: str) -> None:
    table, ids = drawn_weight(packed, 70, 64), torch.tensor([69, 3, 64, 31, 32])
    for threads in (1, 2, 3):
        ops = GuardedOps(compute_type(packed), threads, kernels)
        found = ops.embedding(ids, ops.pack_embedding(table, ops.pack_linear([table])))
        assert torch.equal(found, spelled_out(table).float()[ids])
        ops.assert_guards()


@every_set
@pytest.mark.parametrize("width", [1, 31, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embedding_of_any_width(ops_of: Both, dtype: torch.dtype, width: int) -> None:
    table, ids = drawn(33, width, dtype=dtype), torch.tensor([32, 0, 16])
    assert torch.equal(ops_of[dtype].embedding(ids, ops_of[dtype].pack_embedding(table, None)), table[ids].float())


# ---- what is refused -------------------------------------------------------------------------------------------------------------------


def test_other_compute_types_are_refused() -> None:
    with pytest.raises(ValueError, match="compute in float32 and bfloat16, not"):
        CpuOps(torch.float16, 1)


def test_unknown_kernels_are_refused() -> None:
    ops = CpuOps(torch.float32, 1, "sse2")
    with pytest.raises(ValueError, match="no kernels named 'sse2'"):
        ops.linear(drawn(1, 4), ops.pack_linear([drawn(4, 4)]))


@pytest.mark.parametrize("x", [drawn(2, 4).double(), drawn(2, 8)[:, ::2], drawn(2, 2, 4)], ids=["float64", "strided", "three axes"])
def test_rows_of_another_kind_are_refused(x: torch.Tensor) -> None:
    ops = CpuOps(torch.float32, 1)
    with pytest.raises(ValueError, match="input must be float32 rows"):
        ops.linear(x, ops.pack_linear([drawn(4, 4)]))


def test_unknown_activations_and_weights_without_gates_are_refused() -> None:
    ops = CpuOps(torch.float32, 1)
    weight: PackedLinear = ops.pack_linear([drawn(4, 4)], gated=True)
    with pytest.raises(ValueError, match="'relu' is not one of silu, gelu_tanh"):
        ops.gated_linear(drawn(1, 4), weight, "relu")
    with pytest.raises(ValueError, match="a paired weight needs an activation"):
        ops.linear(drawn(1, 4), weight)
    with pytest.raises(ValueError, match="a paired one an even number of rows"):
        ops.pack_linear([drawn(3, 4)], gated=True)


def test_blocks_that_do_not_fit_are_refused() -> None:
    ops, weight = CpuOps(torch.bfloat16, 1), drawn_weight("u8_block", 4, 64)
    assert isinstance(weight, BlockWeight)
    with pytest.raises(ValueError, match="do not fit the packed format"):
        ops.pack_linear([replace(weight, scales=weight.scales[:, :1])])
    with pytest.raises(ValueError, match="values must be bytes"):
        ops.pack_linear([replace(weight, values=weight.values[:, :, :16])])
