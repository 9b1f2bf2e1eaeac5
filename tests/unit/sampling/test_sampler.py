"""The sampler as the runner calls it: every parameter in one batch, each row on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo.errors import InvalidLogitsError
from octavo.sampling import sampler as module
from octavo.sampling.logprobs import prompt_logprobs
from octavo.sampling.sampler import Sampler
from octavo.sampling.state import SequenceState

MakeState = Callable[..., SequenceState]
VOCAB = 1003
FEATURES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 3},
    {"temperature": 0.0, "repetition_penalty": 1.5, "logprobs": 0},
    {"temperature": 0.0, "allowed_token_ids": [5, 6, 7], "logprobs": 2},
    {},
    {"temperature": 0.3},
    {"temperature": 1.7, "min_p": 0.02},
    {"top_p": 0.9},
    {"top_k": 40, "logprobs": 5},
    {"top_k": 1},
    {"top_k": 60, "top_p": 0.8, "min_p": 0.01, "temperature": 0.8},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"logit_bias": {9: 100.0}},
    {"bad_word_ids": ((17,), (3, 4)), "top_p": 0.95},
    {"suppress": (1, 2, 3), "min_tokens": 50, "logprobs": -1},
    {"allowed_token_ids": list(range(0, VOCAB, 3)), "top_p": 0.99, "repetition_penalty": 0.8},
]


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def states_of(make_state: MakeState, count: int) -> list[SequenceState]:
    output = (17, 3, 500, 3)
    return [make_state(VOCAB, (1, 2, 3), output[: row % 5], seed=row * 7919, **FEATURES[row % len(FEATURES)]) for row in range(count)]


def test_a_rows_result_is_the_same_alone_and_among_others(make_state: MakeState) -> None:
    """Bit for bit, log probabilities included, for all features mixed, in any order."""
    logits, states = logits_of(64), states_of(make_state, 64)
    together = Sampler()(logits.clone(), states)
    assert [Sampler()(logits[row : row + 1].clone(), [states[row]])[0] for row in range(64)] == together
    order = np.random.default_rng(1).permutation(64).tolist()
    shuffled = Sampler()(logits[order].clone(), [states[row] for row in order])
    assert shuffled == [together[row] for row in order]


def test_results_do_not_depend_on_the_thread_count(make_state: MakeState) -> None:
    logits, states = logits_of(64), states_of(make_state, 64)
    one = Sampler()(logits.clone(), states)
    torch.set_num_threads(2)
    assert Sampler()(logits.clone(), states) == one


def test_the_same_seed_and_position_draw_the_same_token_others_do_not(make_state: MakeState) -> None:
    logits = torch.zeros(1, VOCAB)

    def token(seed: int, length: int) -> int:
        return Sampler()(logits.clone(), [make_state(VOCAB, (0,) * length, seed=seed)])[0][0]

    assert token(5, 10) == token(5, 10)
    assert len({token(seed, 10) for seed in range(50)}) > 40
    assert len({token(5, length) for length in range(1, 51)}) > 40


def test_a_sequence_that_comes_back_whole_goes_on_as_it_would_have(make_state: MakeState) -> None:
    """After a preemption the worker gets prompt and output at once; the tokens must not change."""
    options: dict[str, Any] = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "bad_word_ids": ((8,),), "top_p": 0.95}

    def step(state: SequenceState) -> int:
        token = Sampler()(logits_of(1, state.position), [state])[0][0]
        state.append(token)
        return token

    kept = make_state(VOCAB, (4, 5), seed=3, **options)
    tokens = [step(kept) for _ in range(12)]
    back = make_state(VOCAB, (4, 5), tuple(tokens[:6]), seed=3, **options)
    assert [step(back) for _ in range(6)] == tokens[6:]


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"top_k": 8}, {"top_p": 0.8}, {"min_p": 0.1}, {"presence_penalty": 1.0}, {"logit_bias": {3: 2.0}}],
    ids=str,
)
def test_seeds_draw_from_the_distribution(make_state: MakeState, options: dict[str, Any]) -> None:
    """Chi-square over 10 000 fixed seeds, within five standard deviations of its mean."""
    width, draws = 24, 10_000
    logits = torch.randn(width, generator=torch.Generator().manual_seed(11)) * 1.5
    x = logits.double().numpy().copy()
    x[5] -= options.get("presence_penalty", 0.0)
    x[3] += options.get("logit_bias", {}).get(3, 0.0)
    x /= options.get("temperature", 1.0)
    p = np.exp(x - x.max())
    order = np.argsort(-p)
    p[p < options.get("min_p", 0.0) * p.max()] = 0.0
    p[order[options.get("top_k", width) :]] = 0.0
    mass = np.cumsum(p[order]) / p.sum()
    p[order[int(np.argmax(mass >= options.get("top_p", 0.0))) + 1 :] if "top_p" in options else []] = 0.0
    states = [make_state(width, (0,), (5,), seed=seed, **options) for seed in range(draws)]
    counts = np.bincount([token for token, _ in Sampler()(logits.repeat(draws, 1), states)], minlength=width)
    expected = draws * p / p.sum()
    possible = expected > 0.0
    assert counts[~possible].sum() == 0
    chi_square = float(((counts[possible] - expected[possible]) ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_greedy_takes_the_first_of_equals_and_agrees_with_top_k_one(make_state: MakeState) -> None:
    logits = logits_of(8).round()
    expected = [int(np.argmax(row.numpy())) for row in logits]
    for options in ({"temperature": 0.0}, {"top_k": 1}, {"temperature": 0.0, "top_p": 0.1, "min_p": 0.5}):
        assert [token for token, _ in Sampler()(logits.clone(), [make_state(VOCAB, **options) for _ in range(8)])] == expected


def test_greedy_comes_after_bias_and_penalties(make_state: MakeState) -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 1),
        ({"logit_bias": {3: 5.0}}, 3),
        ({"presence_penalty": 1.5}, 2),
        ({"bad_word_ids": ((1,),)}, 2),
        ({"allowed_token_ids": [0, 3]}, 3),
        ({"suppress": (1, 2), "min_tokens": 9}, 3),
        # Bias first, then the repetition penalty on what it makes: (3 + 1) / 4 = 1 < 2.
        ({"logit_bias": {1: 1.0}, "repetition_penalty": 4.0}, 2),
    ]
    for options, expected in cases:
        assert Sampler()(logits.clone(), [make_state(4, (0,), (1,), temperature=0.0, **options)])[0][0] == expected, options


def test_logprobs_are_those_of_the_raw_logits(make_state: MakeState) -> None:
    """Whatever temperature, filters, bias, bans and penalties did to the row."""
    logits, states = logits_of(64), states_of(make_state, 64)
    for row, (token, entry) in enumerate(Sampler()(logits.clone(), states)):
        count = states[row].params.logprobs
        assert entry == (None if count is None else prompt_logprobs(logits[row : row + 1], [token], count)[0])


def test_plain_greedy_batches_do_one_argmax_and_nothing_else(make_state: MakeState, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_edit", "_choose", "_logprobs"):
        monkeypatch.setattr(module, name, None)
    logits = logits_of(5)
    states = [make_state(VOCAB, temperature=0.0) for _ in range(5)]
    assert Sampler()(logits, states) == [(int(row.argmax()), None) for row in logits]


def test_the_sequences_are_not_changed(make_state: MakeState) -> None:
    states = states_of(make_state, 32)
    before = [state.token_ids.tolist() for state in states]
    Sampler()(logits_of(32), states)
    assert [state.token_ids.tolist() for state in states] == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"temperature": 0.0, "logprobs": 1}, {"top_p": 0.5}], ids=str)
def test_rows_that_are_not_numbers_are_refused(make_state: MakeState, bad: float, options: dict[str, Any]) -> None:
    logits = logits_of(4)
    logits[2, 1002] = bad
    with pytest.raises(InvalidLogitsError) as caught:
        Sampler()(logits, [make_state(VOCAB, **options) for _ in range(4)])
    assert caught.value.rows == [2]


def test_a_row_of_minus_infinity_is_refused_when_greedy(make_state: MakeState) -> None:
    with pytest.raises(InvalidLogitsError):
        Sampler()(torch.full((1, 10), float("-inf")), [make_state(10, temperature=0.0)])


def test_no_rows_give_no_tokens() -> None:
    assert Sampler()(torch.zeros(0, 10), []) == []


@pytest.mark.parametrize("logits", [torch.zeros(2, 10), torch.zeros(1, 10, dtype=torch.bfloat16), torch.zeros(1, 20)[:, ::2]])
def test_logits_of_another_shape_type_or_layout_are_refused(make_state: MakeState, logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous float32 logits with 1 rows"):
        Sampler()(logits, [make_state(10)])
