"""Products of few rows: every cut of the kernel against a product in double precision, over ragged shapes and poisoned outputs."""

from __future__ import annotations

import pytest
import torch

from octavo.ops.cuda.dense_linear import dense_linear
from octavo.ops.cuda.skinny_linear import MOST_ROWS, Launch, skinny_launch, skinny_linear, takes

LAUNCHES = {"wide": Launch(32, 128, 512, 4, 5), "deep": Launch(16, 256, 256, 4, 6), "many": Launch(16, 256, 256, 2, 4)}


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=str)
def narrow(request: pytest.FixtureRequest) -> torch.dtype:
    """The types of 16 bits that the kernel multiplies."""
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poison(*args: object, **kwargs: object) -> torch.Tensor:
        return empty(*args, **kwargs).fill_(torch.nan)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", poison)


def drawn(device: torch.device, dtype: torch.dtype, *shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize(("columns", "depth"), [(1, 512), (50, 768), (130, 1024)])
@pytest.mark.parametrize("cut", list(LAUNCHES))
def test_products(device: torch.device, narrow: torch.dtype, rows: int, columns: int, depth: int, cut: str) -> None:
    x, weight = drawn(device, narrow, rows, depth + 8, seed=0)[:, :depth], drawn(device, narrow, columns, depth, seed=1)
    bias = drawn(device, narrow, columns, seed=2)
    expected = x.double() @ weight.double().t()
    for dtype in (torch.float32, narrow):
        bound = (1e-5 if dtype == torch.float32 else torch.finfo(narrow).eps) * expected.abs().max().item()
        for given in (None, bias):
            actual = skinny_linear(x, weight, given, dtype, launch=LAUNCHES[cut])
            assert actual.dtype == dtype
            assert (actual.double() - (expected if given is None else expected + given.double())).abs().max().item() <= bound


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_products(device: torch.device, narrow: torch.dtype, kind: str, with_bias: bool) -> None:
    x, weight = drawn(device, narrow, 5, 512, seed=0), drawn(device, narrow, 2 * 37, 512, seed=1) * 0.1
    bias = drawn(device, narrow, 2 * 37, seed=2) if with_bias else None
    product = x.double() @ weight.double().t() + (0.0 if bias is None else bias.double())
    gate, up = product.to(narrow).double().chunk(2, dim=1)
    active = torch.nn.functional.silu(gate) if kind == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    actual = skinny_linear(x, weight, bias, narrow, kind)
    bound = 4 * torch.finfo(narrow).eps * (active * up).abs().max().item()
    assert (actual.double() - active * up).abs().max().item() <= bound


def test_a_row_does_not_depend_on_the_rows_beside_it(device: torch.device, narrow: torch.dtype) -> None:
    x, weight = drawn(device, narrow, MOST_ROWS, 768, seed=0), drawn(device, narrow, 70, 768, seed=1)
    together = skinny_linear(x, weight, None, torch.float32)
    for first, last in ((0, 1), (3, 4), (3, 8), (15, 16)):
        assert torch.equal(skinny_linear(x[first:last].clone(), weight, None, torch.float32), together[first:last])


def test_what_the_kernel_takes(device: torch.device) -> None:
    """More rows, wider types and ragged lengths are multiplied too, by another way."""
    for rows, depth, dtype, taken in (
        (16, 512, torch.float16, True),
        (17, 512, torch.float16, False),
        (1, 256, torch.float16, False),
        (1, 640, torch.float16, False),
        (1, 512, torch.float32, False),
    ):
        x, weight = drawn(device, dtype, rows, depth, seed=0), drawn(device, dtype, 24, depth, seed=1)
        assert takes(x, weight) is taken
        actual = dense_linear(x, weight, None, torch.float32)
        assert (actual.double() - x.double() @ weight.double().t()).abs().max().item() < 1e-3


def test_cuts_follow_the_number_of_columns() -> None:
    assert skinny_launch(4096, gated=False) == LAUNCHES["deep"]
    assert skinny_launch(6144, gated=False) == LAUNCHES["many"]
    assert skinny_launch(4096, gated=True) == LAUNCHES["wide"]


def test_unknown_activation_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="'relu' is not one of silu, gelu_tanh"):
        skinny_linear(
            drawn(device, torch.float16, 1, 512, seed=0), drawn(device, torch.float16, 4, 512, seed=1), None, torch.float16, "relu"
        )
