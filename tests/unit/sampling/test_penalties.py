"""Penalties against the formula in float64 and against transformers; the counts against a recount."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from octavo.sampling.penalties import TokenCounts, apply_penalties
from octavo.sampling.state import SequenceState

MakeState = Callable[..., SequenceState]
PROMPT, OUTPUT = (3, 5, 5, 9), (5, 7, 7, 7, 2)


def penalised(logits: torch.Tensor, state: SequenceState) -> torch.Tensor:
    assert state.counts is not None
    rows = logits.unsqueeze(0).clone()
    apply_penalties(rows, [(0, state.params, state.counts)])
    return rows[0]


def formula(logits: torch.Tensor, repetition: float, frequency: float, presence: float) -> npt.NDArray[np.float64]:
    x = logits.double().numpy().copy()
    counts = Counter(OUTPUT)
    for token in {*PROMPT, *OUTPUT}:
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token, count in counts.items():
        x[token] -= frequency * count + presence
    return x


@pytest.mark.parametrize("repetition", [1.0, 1.3, 0.7])
@pytest.mark.parametrize("frequency", [0.0, 0.4, -1.5])
@pytest.mark.parametrize("presence", [0.0, 1.1, -2.0])
def test_penalties_follow_the_formula(make_state: MakeState, repetition: float, frequency: float, presence: float) -> None:
    if (repetition, frequency, presence) == (1.0, 0.0, 0.0):
        assert make_state(20, PROMPT, OUTPUT).counts is None
        return
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0)) * 3
    state = make_state(20, PROMPT, OUTPUT, repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence)
    expected = formula(logits, repetition, frequency, presence)
    assert np.abs(penalised(logits, state).double().numpy() - expected).max() < 1e-6
    untouched = sorted(set(range(20)) - {*PROMPT, *OUTPUT})
    assert torch.equal(penalised(logits, state)[untouched], logits[untouched])


def test_the_repetition_penalty_is_that_of_transformers(make_state: MakeState) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(1)) * 3
    peer = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*PROMPT, *OUTPUT]]), logits.unsqueeze(0).clone())[0]
    torch.testing.assert_close(penalised(logits, make_state(20, PROMPT, OUTPUT, repetition_penalty=1.7)), peer)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.2}, {"frequency_penalty": 0.5}, {"presence_penalty": 0.5}])
def test_counts_that_grew_are_those_of_a_recount(make_state: MakeState, options: dict[str, Any]) -> None:
    """As after a preemption, when the sequence comes back whole with its output."""
    rng = np.random.default_rng(2)
    prompt = tuple(rng.integers(0, 50, 30).tolist())
    output = tuple(rng.integers(0, 80, 200).tolist())
    grown, whole = make_state(80, prompt, **options), make_state(80, prompt, output, **options)
    for token in output:
        grown.append(token)
    assert grown.counts is not None and whole.counts is not None
    counts = Counter(output)
    seen = {*output, *(prompt if "repetition_penalty" in options else ())}
    for tokens in (grown.counts, whole.counts):
        assert len(set(tokens.ids.tolist())) == len(tokens.ids)
        assert dict(zip(tokens.ids.tolist(), tokens.counts.tolist(), strict=True)) == {token: counts[token] for token in seen}


def test_rows_are_penalised_by_their_own_history(make_state: MakeState) -> None:
    logits = torch.ones(3, 10)
    entries = []
    for row, token in ((0, 4), (2, 6)):
        state = make_state(10, (1,), (token,), presence_penalty=float(row + 1) / 2)
        assert state.counts is not None
        entries.append((row, state.params, state.counts))
    apply_penalties(logits, entries)
    expected = torch.ones(3, 10)
    expected[0, 4], expected[2, 6] = 0.5, -0.5
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("repetition", [1e-300, 1e300])
def test_no_penalty_makes_a_finite_logit_infinite_or_an_infinite_one_finite(make_state: MakeState, repetition: float) -> None:
    logits = torch.tensor([2.0, -2.0, 0.0, float("-inf"), 1.0])
    result = penalised(logits, make_state(5, (0, 1, 2, 3), repetition_penalty=repetition))
    assert torch.isfinite(result[[0, 1, 2]]).all()
    assert result[3] == float("-inf")
    assert result[4] == 1.0


def test_a_prompt_token_without_a_logit_is_passed_over(make_state: MakeState) -> None:
    result = penalised(torch.ones(8), make_state(8, (2, 8, 100), repetition_penalty=2.0))
    assert result.tolist() == [1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_nothing_seen_is_nothing_changed(make_state: MakeState) -> None:
    assert penalised(torch.ones(4), make_state(4, (1,), presence_penalty=2.0)).tolist() == [1.0] * 4


def test_counts_take_an_empty_history() -> None:
    tokens = TokenCounts(np.zeros(0, np.int64), np.zeros(0, np.int64))
    tokens.add(3)
    tokens.add(3)
    assert (tokens.ids.tolist(), tokens.counts.tolist()) == ([3], [2])
