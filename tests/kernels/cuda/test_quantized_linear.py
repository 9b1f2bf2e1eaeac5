"""Products with quantised weights against float64 ones with what the weights stand for, over ragged shapes and poisoned outputs."""

from __future__ import annotations

import pytest
import torch
from drawn_blocks import FORMATS, drawn_blocks, stands_for

from octavo.layers.linear import GatedLinear
from octavo.models.stored_rows import StoredRows
from octavo.ops.base import Float8Weight, WeightPart
from octavo.ops.cuda import quantized_linear, split_sums
from octavo.ops.cuda.backend import CudaOps
from octavo.ops.cuda.float8_linear import FUSED_ROWS as FLOAT8_FUSED_ROWS
from octavo.ops.cuda.float8_linear import _library as float8_products_by_the_library
from octavo.ops.cuda.float8_linear import float8_rows
from octavo.ops.cuda.quantized_linear import FUSED_ROWS, gather_rows, linear
from octavo.ops.cuda.split_sums import row_tile, split_groups
from octavo.ops.cuda.weights import BlockPart, DevicePart, Float8Part, pack
from octavo.quantization.base import StoredTensor, WeightSource

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 7e-4}
"""Of a result, as a share of what its products' sizes add up to (sums in float32), or of itself."""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed(weight: WeightPart, dtype: torch.dtype, device: torch.device) -> DevicePart:
    (part,) = pack([weight], dtype, device)
    return part


def product(x: torch.Tensor, part: DevicePart, bias: torch.Tensor | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The product, in columns of a wider tensor full of NaN, whose other columns must stay as they are."""
    wide = torch.full((len(x) + 1, part.out_features + 5), torch.nan, dtype=dtype or x.dtype, device=x.device)
    linear(x, part, wide[:-1, 3:-2], bias)
    assert wide[-1].isnan().all() and wide[:, :3].isnan().all() and wide[:, -2:].isnan().all()
    return wide[:-1, 3:-2].cpu()


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated while a product runs is full of NaN."""
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        made = empty(*args, **kwargs)  # type: ignore[call-overload]
        return made.fill_(torch.nan) if made.dtype in ROUNDING else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits as large weights have them, of small ones."""
    monkeypatch.setattr(split_sums, "_LEAST_SPLIT", 64)
    monkeypatch.setattr(split_sums, "_PROGRAMS", 12)


def close(actual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, spelled_out: bool = False) -> bool:
    """Whether a result is the float64 product but for rounding.

    Args:
        spelled_out: whether the weight was rounded to the compute type first.
    """
    left, right = x.cpu().double(), (weight.float().to(x.dtype) if spelled_out else weight).double()
    expected, sizes = left @ right.t(), left.abs() @ right.abs().t()
    if bias is not None:
        expected += bias.cpu().double()
    bound = ROUNDING[torch.float32] * sizes + ROUNDING[actual.dtype] * expected.abs()
    return bool(((actual.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 16, 33, 70, FUSED_ROWS + 1])
@pytest.mark.parametrize(("out_features", "in_features"), [(96, 192), (70, 544), (1, 32)])
def test_products(name: str, rows: int, out_features: int, in_features: int, device: torch.device, dtype: torch.dtype, split: None) -> None:
    weight = drawn_blocks(name, out_features, in_features)
    x = drawn(rows, in_features).to(device, dtype)
    part = packed(weight, dtype, device)
    actual = product(x, part)
    assert close(actual, x, stands_for(weight), spelled_out=rows > FUSED_ROWS)
    assert isinstance(part, BlockPart) and not part.counters.any()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [5, FUSED_ROWS + 3])
@pytest.mark.parametrize("biased", [False, True])
def test_float32_results_are_not_rounded_and_a_bias_is_added(
    name: str, rows: int, biased: bool, device: torch.device, dtype: torch.dtype
) -> None:
    weight = drawn_blocks(name, 40, 64)
    x = drawn(rows, 64).to(device, dtype)
    bias = drawn(40, seed=2).to(device, dtype) if biased else None
    part = packed(weight, dtype, device)
    actual = product(x, part, bias, torch.float32)
    assert actual.dtype == torch.float32
    assert close(actual, x, stands_for(weight), bias, spelled_out=rows > FUSED_ROWS)
    assert close(product(x, part, bias), x, stands_for(weight), bias, spelled_out=rows > FUSED_ROWS)


@pytest.mark.parametrize("name", ["4_minima", "8_rows"])
@pytest.mark.parametrize("rows", [2, FUSED_ROWS + 1])
def test_rows_that_lack_the_last_columns_and_lie_apart(name: str, rows: int, device: torch.device, dtype: torch.dtype) -> None:
    """A quantised weight is filled up to whole blocks, the rows it is multiplied with are not."""
    weight = drawn_blocks(name, 33, 96)
    x = drawn(rows, 160).to(device, dtype)[:, 1:82]
    filled = torch.nn.functional.pad(x, (0, 15))
    assert close(product(x, packed(weight, dtype, device)), filled, stands_for(weight), spelled_out=rows > FUSED_ROWS)


@pytest.mark.parametrize("name", [*FORMATS, "float8"])
def test_a_row_has_the_same_bits_whatever_lies_beside_it(name: str, device: torch.device, dtype: torch.dtype, split: None) -> None:
    weight = Float8Weight(drawn(70, 384)) if name == "float8" else drawn_blocks(name, 70, 384)
    part = packed(weight, dtype, device)
    most = FLOAT8_FUSED_ROWS if name == "float8" else FUSED_ROWS
    x = drawn(most, 384).to(device, dtype)
    whole = product(x, part, dtype=torch.float32)
    for rows in (1, 7, 8, 9, 16, 17, 33):
        assert torch.equal(product(x[:rows], part, dtype=torch.float32), whole[:rows]), rows


def test_splits_add_up_in_order_and_leave_their_counters_as_they_were(device: torch.device, dtype: torch.dtype, split: None) -> None:
    part = packed(drawn_blocks("4_zero8", 64, 640), dtype, device)
    assert isinstance(part, BlockPart)
    assert split_groups(1, 5, 128) == (5, 1)
    x = drawn(16, 640).to(device, dtype)
    first = product(x, part, dtype=torch.float32)
    assert torch.equal(product(x, part, dtype=torch.float32), first)
    assert torch.equal(product(x[:1], part, dtype=torch.float32), first[:1])
    assert not part.counters.any()


def test_splits_cover_all_groups_once() -> None:
    for programs in (1, 9, 64, 448, 2000):
        for groups in (1, 5, 18, 32, 112, 344):
            splits, length = split_groups(programs, groups, 128)
            assert (splits - 1) * length < groups <= splits * length and splits <= 16
            assert splits == 1 or length >= 4
    assert split_groups(64, 32, 128) == (8, 4) and split_groups(64, 112, 128) == (13, 9)
    assert [row_tile(rows) for rows in (1, 8, 9, 17, 128)] == [8, 8, 16, 32, 32]


@pytest.mark.parametrize("most", [1, 2 * 32 * 64 * 4])
def test_a_weight_is_spelled_out_some_rows_at_a_time(most: int, device: torch.device, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(quantized_linear, "CUDA_SPELLED_OUT_BYTES", most)
    spelled: list[int] = []
    dequantize = quantized_linear.dequantize

    def watched(part: BlockPart, start: int = 0, stop: int | None = None) -> torch.Tensor:
        dense = dequantize(part, start, stop)
        spelled.append(len(dense))
        return dense

    monkeypatch.setattr(quantized_linear, "dequantize", watched)
    weight = drawn_blocks("4_minima", 150, 64)
    x, bias = drawn(FUSED_ROWS + 1, 64).to(device, dtype), drawn(150, seed=1).to(device, dtype)
    assert close(product(x, packed(weight, dtype, device), bias), x, stands_for(weight), bias, spelled_out=True)
    assert len(spelled) > 1 and sum(spelled) == 150 and max(spelled) * 64 * dtype.itemsize <= max(most, 32 * 64 * dtype.itemsize)


def test_dense_parts_and_no_rows(device: torch.device, dtype: torch.dtype) -> None:
    weight, x, bias = drawn(33, 20).to(dtype), drawn(7, 20).to(device, dtype), drawn(33, seed=1).to(device, dtype)
    part = packed(weight, dtype, device)
    for kind in (dtype, torch.float32):
        assert close(product(x, part, None, kind), x, weight)
        assert close(product(x, part, bias, kind), x, weight, bias)
    for name in FORMATS:
        assert product(x[:0], packed(drawn_blocks(name, 8, 32), dtype, device)).shape == (0, 8)
    assert product(x[:0], packed(Float8Weight(weight), dtype, device)).shape == (0, 33)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("columns", [32, 96, 2176])
def test_rows_of_a_table(name: str, columns: int, device: torch.device, dtype: torch.dtype) -> None:
    table = drawn_blocks(name, 45, columns)
    ids = torch.tensor([44, 0, 31, 32, 44])
    part = packed(table, dtype, device)
    actual = gather_rows(part, ids.to(device))
    assert actual.dtype == torch.float32
    assert torch.allclose(actual.cpu(), stands_for(table)[ids], rtol=1e-6, atol=1e-8)
    assert torch.allclose(gather_rows(part, ids.to(device), 3.5).cpu(), stands_for(table)[ids] * 3.5, rtol=1e-6, atol=1e-8)
    assert gather_rows(part, ids[:0].to(device)).shape == (0, columns)


def test_rows_of_a_dense_table_are_rounded_and_float8_tables_refused(device: torch.device, dtype: torch.dtype) -> None:
    table, ids = drawn(9, 16).to(dtype), torch.tensor([8, 3])
    part = packed(table, dtype, device)
    assert torch.equal(gather_rows(part, ids.to(device), 0.75).cpu(), (table[ids] * 0.75).float())
    assert torch.equal(gather_rows(part, ids.to(device)).cpu(), table[ids].float())
    with pytest.raises(TypeError, match="not held as float8"):
        gather_rows(packed(Float8Weight(table), dtype, device), ids.to(device))


@pytest.mark.parametrize("rows", [1, 3, 16, 33, FLOAT8_FUSED_ROWS + 6])
@pytest.mark.parametrize(("out_features", "in_features"), [(96, 256), (70, 200), (1, 16)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_float8_products(
    rows: int, out_features: int, in_features: int, with_bias: bool, device: torch.device, dtype: torch.dtype, split: None
) -> None:
    part = packed(Float8Weight(drawn(out_features, in_features, seed=1)), dtype, device)
    assert isinstance(part, Float8Part)
    x = (drawn(rows, in_features) * torch.logspace(-3, 3, rows)[:, None]).to(device, dtype)
    bias = drawn(out_features, seed=2).to(device, dtype) if with_bias else None
    x8, scales = float8_rows(x, part.values.shape[1])
    left = (x8.double() * scales[:, None])[:, :in_features]
    right = (part.values.double() * part.scales[:, None])[:out_features, :in_features].cpu()
    by_library = device.type == "cuda" and rows > FLOAT8_FUSED_ROWS  # which rounds to bfloat16
    for kind in (dtype, torch.float32):
        actual = product(x, part, bias, kind)
        if by_library:
            expected = left.cpu() @ right.t() + (0.0 if bias is None else bias.cpu().double())
            sizes = left.cpu().abs() @ right.abs().t()
            assert ((actual.double() - expected).abs() <= ROUNDING[torch.bfloat16] * (expected.abs() + sizes / 8)).all()
        else:
            assert close(actual, left, right, bias)
    assert not part.counters.any()


def test_rows_become_float8_numbers(device: torch.device, dtype: torch.dtype) -> None:
    x = (drawn(6, 75) * torch.logspace(-4, 4, 6)[:, None]).to(dtype)
    x[2] = 0.0
    x8, scales = float8_rows(x.to(device), 80)
    assert x8.dtype == torch.float8_e4m3fn and x8.shape == (6, 80)
    found, wide = x8.float().cpu() * scales.cpu()[:, None], x.float()
    assert torch.allclose(scales.cpu(), wide.abs().amax(1) / 448, rtol=1e-6)
    assert not found[:, 75:].any() and not found[2].any()
    exact = (wide / scales.cpu().clamp(min=1e-30)[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    # Quotients on a GPU are not the very same: one that falls between two numbers may be rounded to the other.
    assert (x8.float().cpu()[:, :75] != exact).sum() <= (0 if device.type == "cpu" else 4)
    assert ((found[:, :75] - wide).abs() <= (wide.abs() * 2**-4 + scales.cpu()[:, None] * 2**-10) * (1 + 1e-5)).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("out_features", [64, 70])
@pytest.mark.parametrize("with_bias", [False, True])
def test_float8_products_by_the_library(kind: torch.dtype, out_features: int, with_bias: bool, device: torch.device) -> None:
    """Torch has them on a CPU too."""
    part = packed(Float8Weight(drawn(out_features, 72, seed=1)), torch.bfloat16, device)
    assert isinstance(part, Float8Part)
    x8, scales = float8_rows(drawn(9, 72).to(device), part.values.shape[1])
    bias = drawn(out_features, seed=2).to(device, torch.bfloat16) if with_bias else None
    expected = (x8.double() * scales[:, None]) @ (part.values.double() * part.scales[:, None]).t()[:, :out_features]
    expected += 0.0 if bias is None else bias.double()
    wide = torch.full((9, out_features + 3), torch.nan, dtype=kind, device=device)
    for out in (wide[:, 1:-2], torch.full((9, out_features), torch.nan, dtype=kind, device=device)):
        float8_products_by_the_library(x8, scales, part, out, bias)
        assert ((out.double() - expected).abs() <= 2 * ROUNDING[torch.bfloat16] * (expected.abs() + 1)).all()
    assert wide[:, 0].isnan().all() and wide[:, -2:].isnan().all()


class Source(WeightSource):
    """Two matrices of a layer."""

    def __init__(self, quantization: str) -> None:
        self.quantization = quantization
        self.weights = {f"model.layers.0.{name}.weight": drawn(48, 128, seed=seed) for seed, name in enumerate(("gate", "up"))}

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    def __getitem__(self, name: str) -> StoredTensor:
        return StoredRows(name, (48, 128), "F32", self.weights[name].view(torch.uint8).view(-1).numpy())

    def names(self) -> list[str]:
        return list(self.weights)


@pytest.mark.parametrize(("quantization", "kind", "loss"), [("int8", BlockPart, 0.02), ("int4", BlockPart, 0.2), ("fp8", Float8Part, 0.08)])
@pytest.mark.parametrize("rows", [2, FUSED_ROWS + 1])
def test_a_layer_holds_its_weights_as_asked(
    quantization: str, kind: type, loss: float, rows: int, device: torch.device, dtype: torch.dtype
) -> None:
    ops, source, x = CudaOps(device, dtype), Source(quantization), drawn(rows, 128, seed=9)
    layer = GatedLinear(ops, source, ["model.layers.0.gate", "model.layers.0.up"], "silu")
    assert [type(part) for part in layer.packed.data.parts] == [kind]
    gate, up = (x @ weight.t() for weight in source.weights.values())
    expected = torch.nn.functional.silu(gate) * up
    actual = layer(x.to(device, dtype)).float().cpu()
    assert actual.shape == (rows, 48)
    assert loss / 20 < (actual - expected).norm() / expected.norm() < loss
