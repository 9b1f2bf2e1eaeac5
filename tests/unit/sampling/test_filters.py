"""Temperature, min_p, top_k, top_p and the draw, against a float64 oracle and transformers' filters.

An even grid of random numbers makes the inverse of the cumulative distribution visible: a token of probability p must be drawn by
p of the grid's numbers, to within one at each end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from octavo.errors import InvalidLogitsError
from octavo.sampling import filters
from octavo.sampling.filters import Draw, draw_tokens

LAST = 1.0 - 2.0**-53
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.5},
    {"top_p": 0.93},
    {"top_p": 1e-9},
    {"min_p": 0.07},
    {"min_p": 1.0},
    {"top_k": 12, "top_p": 0.8},
    {"top_k": 30, "min_p": 0.02},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
]


def draw(logits: torch.Tensor, uniform: float, temperature: float = 1.0, **options: Any) -> int:
    return draw_tokens(logits.unsqueeze(0), [Draw(0, uniform, temperature, **options)])[0]


def grid_counts(logits: torch.Tensor, size: int, temperature: float = 1.0, **options: Any) -> npt.NDArray[np.int64]:
    """How many of ``size`` evenly spaced random numbers draw each token."""
    draws = [Draw(row, (row + 0.5) / size, temperature, **options) for row in range(size)]
    return np.bincount(draw_tokens(logits.expand(size, -1).contiguous(), draws), minlength=len(logits))


def oracle(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> npt.NDArray[np.float64]:
    """Probabilities after the filters, written as the documentation says it."""
    scaled = logits.double().numpy() / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    p[p < min_p * p.max()] = 0.0
    order = np.lexsort((np.arange(len(p)), -logits.double().numpy()))
    if top_k:
        p[order[top_k:]] = 0.0
    if top_p < 1.0:
        mass = np.cumsum(p[order]) / p.sum()
        p[order[int(np.argmax(mass >= top_p)) + 1 :]] = 0.0
    return p / p.sum()


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("width", [50, 128, 333])
def test_each_token_is_drawn_by_its_share_of_the_random_numbers(options: dict[str, Any], temperature: float, width: int) -> None:
    logits = torch.randn(width, generator=torch.Generator().manual_seed(width)) * 2
    counts = grid_counts(logits, 4000, temperature, **options)
    expected = oracle(logits, temperature, **options)
    assert np.abs(counts - 4000 * expected).max() <= 1.01
    assert counts[expected == 0.0].sum() == 0


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        ({"top_k": 9}, TopKLogitsWarper(9)),
        ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
        ({"top_p": 0.99}, TopPLogitsWarper(0.99)),
        ({"min_p": 0.05}, MinPLogitsWarper(0.05)),
    ],
    ids=["top_k", "top_p 0.7", "top_p 0.99", "min_p"],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_filters_keep_what_those_of_transformers_keep(options: dict[str, Any], peer: Any, seed: int) -> None:
    logits = torch.randn(60, generator=torch.Generator().manual_seed(seed)) * 2
    expected = torch.softmax(peer(torch.zeros(1, 1, dtype=torch.int64), logits.unsqueeze(0).clone())[0].double(), 0).numpy()
    counts = grid_counts(logits, 4000, **options)
    assert np.abs(counts - 4000 * expected).max() <= 1.01
    assert counts[expected == 0.0].sum() == 0


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 12.0])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_few_leading_tokens_give_exactly_what_a_full_sort_gives(spread: float, rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, flat rows that need the whole vocabulary, and random numbers at both ends included."""
    generator = torch.Generator().manual_seed(int(spread * 10))
    logits = torch.randn(40, 16 * 1200 + 5, generator=generator) * spread
    if rounded:
        logits = logits.round()
    kinds = [{"top_p": 0.1}, {"top_p": 0.9}, {"top_p": 0.999999}, {"top_k": 50}, {"top_k": 900, "top_p": 0.9}, {"top_k": 40, "min_p": 0.1}]
    kinds += [{"top_k": 5000}, {"top_p": 0.95, "min_p": 0.03}]
    uniforms = [0.0, LAST, *torch.rand(38, generator=generator, dtype=torch.float64).tolist()]
    draws = [Draw(row, uniform, 0.5 + row / 30, **kinds[row % len(kinds)]) for row, uniform in enumerate(uniforms)]
    quick = draw_tokens(logits, draws)
    monkeypatch.setattr(filters, "LANES", ())
    assert draw_tokens(logits, draws) == quick


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 40}], ids=str)
def test_a_row_draws_the_same_at_any_place_and_chunk_and_thread_count(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd width puts each row at another alignment in memory."""
    logits = torch.randn(1003, generator=torch.Generator().manual_seed(1)).mul(3).repeat(64, 1)
    draws = [Draw(row, row / 64, 0.8, **options) for row in range(64)]
    together = draw_tokens(logits, draws)
    alone = [draw_tokens(logits[:1].clone(), [Draw(0, row / 64, 0.8, **options)])[0] for row in range(64)]
    monkeypatch.setattr("octavo.sampling.rows.CPU_CHUNK_ELEMENTS", 7 * 1003)
    torch.set_num_threads(2)
    assert draw_tokens(logits, draws) == together == alone


@pytest.mark.parametrize("width", [31, 1003, 40_000])
def test_weights_are_the_same_bits_at_any_place_and_thread_count(width: int) -> None:
    """The kernel that makes them must treat each row alone, whatever its alignment: the draw above would rarely notice."""
    row = torch.randn(width, generator=torch.Generator().manual_seed(2)).mul(3)
    rows = row.repeat(9, 1)
    alone = filters._weights(rows[:1].clone(), [Draw(0, 0.5, 0.7)])[0]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for weights in filters._weights(rows, [Draw(place, 0.5, 0.7) for place in range(9)]):
            assert torch.equal(weights, alone)


def test_weights_are_whole_numbers_whose_sum_is_exact_in_any_order() -> None:
    logits = torch.randn(2, 262_144, generator=torch.Generator().manual_seed(3)).mul(torch.tensor([[0.01], [6.0]]))
    weights = filters._weights(logits, [Draw(0, 0.5, 1.0), Draw(1, 0.5, 1.0)]).double()
    assert torch.equal(weights, weights.round())
    for row in weights:
        exact = sum(int(weight) for weight in row.tolist())
        assert exact < 2**53
        assert exact == float(row.sum()) == float(row.flip(0).cumsum(0)[-1])


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.6}], ids=str)
def test_equal_logits_rank_by_token_id(options: dict[str, Any]) -> None:
    logits = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 2.0, 0.0])
    assert np.abs(grid_counts(logits, 2000, **options) - 2000 * oracle(logits, **options)).max() <= 1.01


def test_top_k_keeps_k_tokens_of_many_equal_ones() -> None:
    assert grid_counts(torch.zeros(300), 300, top_k=3).nonzero()[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, LAST])
def test_a_token_of_minus_infinity_is_never_drawn(options: dict[str, Any], uniform: float) -> None:
    logits = torch.full((500,), float("-inf"))
    logits[[17, 256, 499]] = torch.tensor([0.0, -1.0, 0.5])
    assert draw(logits, uniform, 2.0, **options) in (17, 256, 499)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9999}], ids=str)
def test_the_ends_of_the_random_numbers_draw_the_ends_of_the_order(options: dict[str, Any]) -> None:
    """Without filters the order is that of ids; the last 499 have no probability to speak of."""
    logits = torch.full((1000,), -200.0)
    logits[500:503] = torch.tensor([3.0, 2.0, 1.0])
    assert draw(logits, 0.0, **options) == 500
    assert draw(logits, LAST, **options) == 502


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_a_random_number_on_a_border_draws_the_token_after_it(options: dict[str, Any]) -> None:
    """Four equal logits are quarters exactly; top_p = 0.5 is reached, not passed, by two of them."""
    kept = 2 if options else 4
    assert [draw(torch.zeros(4), step / kept, **options) for step in range(kept)] == list(range(kept))
    assert draw(torch.zeros(4), LAST, **options) == kept - 1


def test_the_last_random_number_looks_up_the_last_weight_of_any_total() -> None:
    totals = [1, 2, 3, 2**52, 2**52 + 1, 2**53 - 1, *(2**bits - 1 for bits in range(1, 53)), *(2**bits + 1 for bits in range(1, 52))]
    assert [filters._target(Draw(0, LAST, 1.0), float(total)) for total in totals] == [total - 1 for total in totals]


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6])
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_a_tiny_temperature_takes_the_most_likely_token(temperature: float, options: dict[str, Any]) -> None:
    logits = torch.randn(700, generator=torch.Generator().manual_seed(4))
    logits[3] = float("-inf")
    assert {draw(logits, uniform, temperature, **options) for uniform in (0.0, 0.3, LAST)} == {int(logits.argmax())}


@pytest.mark.parametrize("temperature", [1e6, 1e30, 1e300])
def test_a_huge_temperature_is_even_over_all_finite_logits(temperature: float) -> None:
    logits = torch.randn(200, generator=torch.Generator().manual_seed(5)) * 10
    logits[50:] = float("-inf")
    assert grid_counts(logits, 2000, temperature).tolist() == pytest.approx([40] * 50 + [0] * 150, abs=1)


def test_logits_at_the_end_of_float32_are_no_trouble() -> None:
    largest = torch.finfo(torch.float32).max
    assert draw(torch.tensor([-largest, largest, 0.0]), 0.5, 1e-3) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_nan_and_infinity_are_refused_with_the_row_named(bad: float, options: dict[str, Any]) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(6))
    logits[2, 130] = bad
    with pytest.raises(InvalidLogitsError, match="row 2 ") as caught:
        draw_tokens(logits, [Draw(row, 0.5, 1.0, **options) for row in (1, 2, 3)])
    assert caught.value.rows == [2]


def test_nothing_but_minus_infinity_is_refused() -> None:
    with pytest.raises(InvalidLogitsError):
        draw(torch.full((10,), float("-inf")), 0.5)


def test_the_logits_are_left_as_they_are() -> None:
    logits = torch.randn(3, 256, generator=torch.Generator().manual_seed(7))
    before = logits.clone()
    draw_tokens(logits, [Draw(0, 0.5, 0.1), Draw(1, 0.5, 0.1, min_p=0.2), Draw(2, 0.5, 0.1, top_p=0.5)])
    assert torch.equal(logits, before)
