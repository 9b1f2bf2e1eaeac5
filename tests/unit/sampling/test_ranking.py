"""The most likely tokens in order, against a plain lexicographic sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.sampling import ranking
from octavo.sampling.ranking import LANE, leaders, top_tokens


def plain_order(row: torch.Tensor) -> list[int]:
    values = row.double().numpy()
    order: list[int] = np.lexsort((np.arange(len(values)), -values)).tolist()
    return order


def rows_of(kind: str, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(6, width, generator=generator)
    if kind == "ties":
        return rows.mul(2).round()
    if kind == "zeros":
        return torch.where(rows > 0, 0.0, -0.0)
    if kind == "masked":
        return rows.masked_fill(torch.rand(6, width, generator=generator) < 0.99, float("-inf"))
    if kind == "equal":
        return torch.full((6, width), 1.5)
    return rows


KINDS = ("plain", "ties", "zeros", "masked", "equal")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 20, 63, 64, 65, 1000])
def test_top_tokens_are_those_of_a_full_sort_with_ties_by_id(kind: str, count: int) -> None:
    rows = rows_of(kind, LANE * 300)
    found = top_tokens(rows, count)
    assert [ids.tolist() for ids in found] == [plain_order(row)[:count] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lanes", [1, 7, 64, 299, 300, None])
def test_leaders_are_exact_as_far_as_they_say(kind: str, lanes: int | None) -> None:
    rows = rows_of(kind, LANE * 300)
    leading = leaders(rows, lanes)
    for row, ids, exact, complete in zip(rows, leading.ids.tolist(), leading.exact, leading.complete, strict=True):
        order = plain_order(row)
        assert ids[:exact] == order[:exact]
        if complete:
            assert all(row[token] == float("-inf") for token in order[exact:])


def test_leaders_of_distinct_values_are_at_least_as_many_as_lanes() -> None:
    assert min(leaders(rows_of("plain", LANE * 300), 64).exact) >= 64


def test_the_whole_row_is_sorted_only_where_the_leaders_do_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int | None]] = []
    real = leaders

    def spy(logits: torch.Tensor, lanes: int | None) -> ranking.Leaders:
        asked.append((len(logits), lanes))
        return real(logits, lanes)

    monkeypatch.setattr(ranking, "leaders", spy)
    rows = rows_of("plain", LANE * 2000)
    rows[3] = 0.25
    found = top_tokens(rows, 30)
    assert asked == [(6, 64), (1, 1024), (1, None)]
    assert [ids.tolist() for ids in found] == [plain_order(row)[:30] for row in rows]
