"""Sampling on the GPU: what the filters keep against a plain reading of them in double precision, and how often each token is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from octavo.ops.base import SampleRows
from octavo.ops.cuda import sampling
from octavo.ops.cuda.sampling import sample


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short runs and chunks, so that a small vocabulary has several; and memory that comes full of rubbish."""
    monkeypatch.setattr(sampling, "QUARTER", 32)
    monkeypatch.setattr(sampling, "RUN", 128)
    monkeypatch.setattr(sampling, "_CHUNK", 128)
    empty, empty_like = torch.empty, torch.empty_like

    def poison(made: torch.Tensor) -> torch.Tensor:
        return made.fill_(torch.nan if made.dtype.is_floating_point else -7)

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))


def rows_of(*rows: dict[str, Any]) -> SampleRows:
    def column(name: str, default: float, kind: type) -> np.ndarray:
        return np.array([row.get(name, default) for row in rows], dtype=kind)

    return SampleRows(
        temperatures=column("temperature", 1.0, np.float32),
        top_ks=column("top_k", 0, np.int32),
        top_ps=column("top_p", 1.0, np.float32),
        min_ps=column("min_p", 0.0, np.float32),
        seeds=column("seed", 1, np.int64),
        positions=column("position", 1, np.int64),
    )


def kept_tokens(logits: torch.Tensor, row: dict[str, Any]) -> dict[int, float]:
    """The tokens that the filters keep, and each one's probability, as ``octavo.sampling.filters`` describes it."""
    temperature = row.get("temperature", 1.0)
    x = logits.double()
    order = sorted((token for token in range(len(x)) if x[token] > -math.inf), key=lambda token: (-float(x[token]), token))
    if row.get("min_p", 0.0) > 0.0:
        bar = float(x.max()) + temperature * math.log(row["min_p"])
        order = [token for token in order if float(x[token]) >= bar]
    if row.get("top_k", 0) > 0:
        order = order[: row["top_k"]]
    weights = [math.exp((float(x[token]) - float(x.max())) / temperature) for token in order]
    if row.get("top_p", 1.0) < 1.0:
        ends = np.cumsum(weights)
        enough = int(np.searchsorted(ends, row["top_p"] * ends[-1])) + 1
        order, weights = order[:enough], weights[:enough]
    return dict(zip(order, (np.array(weights) / sum(weights)).tolist(), strict=True))


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_greedy_rows_take_the_lowest_of_the_likeliest(device: torch.device) -> None:
    logits = drawn(5, 300)
    logits[0, 7] = logits[0, 290] = logits[0].max() + 1  # in two runs
    logits[1, 130] = logits[1, 131] = logits[1].max() + 1  # in one
    logits[2] = -torch.inf
    logits[2, 299] = -5.0
    tokens = sample(logits.to(device), rows_of(*[{"temperature": 0.0}] * 5)).tolist()
    assert tokens[:3] == [7, 130, 299]
    assert tokens[3:] == logits[3:].argmax(1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_no_numbers_are_told(device: torch.device, temperature: float) -> None:
    logits = drawn(5, 300)
    logits[0, 200] = torch.nan
    logits[1, 3] = torch.inf
    logits[2] = -torch.inf
    logits[3, 0] = -torch.inf
    tokens = sample(logits.to(device), rows_of(*[{"temperature": temperature, "top_p": 0.9}] * 5)).tolist()
    assert tokens[:3] == [-1, -1, -1]
    assert min(tokens[3:]) >= 0


FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "cool": {"temperature": 0.4},
    "top_k": {"top_k": 5},
    "top_k of one": {"top_k": 1},
    "top_k of all": {"top_k": 1000},
    "top_k through ties": {"top_k": 4, "ties": True},
    "top_p": {"top_p": 0.7},
    "top_p of one": {"top_p": 1e-6},
    "top_p through ties": {"top_p": 0.4, "ties": True},
    "min_p": {"min_p": 0.2},
    "min_p of one": {"min_p": 1.0, "ties": True},
    "top_k and top_p": {"top_k": 8, "top_p": 0.6},
    "top_p within the ties that top_k cuts": {"top_k": 5, "top_p": 0.5, "ties": True},
    "all": {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "temperature": 0.8},
    "min_p leaves fewer than top_k": {"top_k": 50, "min_p": 0.3, "top_p": 0.9},
}


def filtered_logits(row: dict[str, Any]) -> torch.Tensor:
    """Scores of 200 tokens; where the row asks for ties, five of them are equal, the likeliest or next to it."""
    logits = drawn(200, seed=3)
    logits[77] = -torch.inf
    if row.pop("ties", False):
        top = logits.topk(2).indices
        logits[[3, 140, 9, 60]] = logits[top[1]].clone()
        logits[top[0]] = logits[top[1]].clone() if "min_p" in row else logits[top[0]]
    return logits


@pytest.mark.parametrize("name", list(FILTERS))
def test_the_filters_keep_what_they_should(device: torch.device, name: str) -> None:
    row = dict(FILTERS[name])
    logits = filtered_logits(row)
    params = sampling._params(rows_of(row), 200, device)
    best = torch.stack([logits[:128].max(), logits[128:].max()])[None]
    cuts, lasts = (found.item() for found in sampling._cuts(logits[None].to(device), best.to(device), params))
    kept = set()
    for token, score in enumerate(logits.tolist()):
        bits = int(np.float32(score).view(np.int32))
        key = bits if bits >= 0 else bits ^ 0x7FFFFFFF
        if score - float(best.max()) >= float(params.bars[0]) and (key > cuts or (key == cuts and token <= lasts)):
            kept.add(token)
    assert kept - {77} == set(kept_tokens(logits, row))


@pytest.mark.parametrize("name", ["none", "cool", "top_k", "min_p", "top_p within the ties that top_k cuts"])
def test_tokens_are_drawn_as_often_as_they_should_be(device: torch.device, name: str) -> None:
    """Nothing outside the kept set is ever drawn; the rest by its probability (chi-square over those expected five times or more)."""
    row = dict(FILTERS[name])
    logits = filtered_logits(row)
    expected = kept_tokens(logits, row)
    times = 120 if "top" in name else 250
    seen = np.zeros(200)
    batch = rows_of(*[row | {"seed": 11 + index % 7, "position": index} for index in range(times)])
    for token in sample(logits.expand(times, -1).contiguous().to(device), batch).tolist():
        seen[token] += 1
    assert set(np.flatnonzero(seen).tolist()) <= set(expected)
    common = [token for token, probability in expected.items() if probability * times >= 5]
    statistic = sum((seen[token] - expected[token] * times) ** 2 / (expected[token] * times) for token in common)
    rest = times - sum(expected[token] for token in common) * times
    if rest >= 5:
        statistic += (times - sum(seen[token] for token in common) - rest) ** 2 / rest
    freedom = len(common)
    assert statistic < freedom + 4.5 * math.sqrt(2 * freedom) + 5  # beyond the 0.001 quantile at every number of degrees here
    assert {token for token, probability in expected.items() if probability * times >= 12} <= set(np.flatnonzero(seen).tolist())


@pytest.mark.parametrize("temperature", [1e-6, 100.0])
def test_extreme_temperatures(device: torch.device, temperature: float) -> None:
    logits = drawn(2, 300)
    rows = rows_of(*[{"temperature": temperature, "position": position} for position in range(40)])
    tokens = sample(logits[:1].expand(40, -1).contiguous().to(device), rows).tolist()
    if temperature < 1.0:
        assert set(tokens) == {int(logits[0].argmax())}
    else:
        assert len(set(tokens)) > 25


def test_a_token_depends_on_its_row_alone(device: torch.device) -> None:
    """Not on its place, the rows beside it, or whether those have filters."""
    logits = drawn(9, 500).to(device)
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.5}]
    rows = [kinds[index % 6] | {"seed": -3 + index, "position": 2**33 + index} for index in range(9)]
    together = sample(logits, rows_of(*rows)).tolist()
    for index in range(9):
        assert sample(logits[index : index + 1], rows_of(rows[index])).tolist() == together[index : index + 1]
    order = [4, 0, 8, 2, 6, 1, 3, 5, 7]
    assert sample(logits[order], rows_of(*[rows[index] for index in order])).tolist() == [together[index] for index in order]


def test_seed_and_position_both_count(device: torch.device) -> None:
    logits = torch.zeros(64, 300, device=device)
    seeds = sample(logits, rows_of(*[{"seed": 2**40 * seed} for seed in range(64)])).tolist()
    positions = sample(logits, rows_of(*[{"position": 2**32 * position} for position in range(64)])).tolist()
    assert len(set(seeds)) > 50
    assert len(set(positions)) > 50


def test_no_rows(device: torch.device) -> None:
    assert sample(torch.zeros(0, 300, device=device), rows_of()).shape == (0,)
