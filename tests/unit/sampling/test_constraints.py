"""logit_bias, allowed_token_ids, bad_words and min_tokens, by their rules and against transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import NoBadWordsLogitsProcessor

from octavo.errors import InvalidRequestError
from octavo.sampling.constraints import apply_constraints
from octavo.sampling.state import SequenceState

MakeState = Callable[..., SequenceState]
NEVER = float("-inf")


def constrained(logits: torch.Tensor, state: SequenceState) -> torch.Tensor:
    assert state.constraints is not None
    rows = torch.stack([torch.zeros_like(logits), logits, torch.zeros_like(logits)])
    apply_constraints(rows, [(1, state.constraints, state.output_ids)])
    assert not rows[0].any() and not rows[2].any(), "a neighbouring row was touched"
    return rows[1]


def banned_ids(state: SequenceState, width: int = 10) -> list[int]:
    if state.constraints is None:
        return []
    return (constrained(torch.ones(width), state) == NEVER).nonzero().flatten().tolist()


def test_a_request_without_constraints_has_none(make_state: MakeState) -> None:
    state = make_state(10, suppress=(1,), logit_bias={}, bad_words=[])
    assert state.constraints is None


def test_bias_is_added_to_its_tokens(make_state: MakeState) -> None:
    logits = torch.randn(10, generator=torch.Generator().manual_seed(0))
    expected = logits.clone()
    expected[3] += 5.0
    expected[7] -= 100.0
    assert torch.equal(constrained(logits, make_state(10, logit_bias={3: 5.0, 7: -1000.0, 50: 1.0})), expected)


def test_only_allowed_ids_are_left_and_they_keep_their_logits(make_state: MakeState) -> None:
    logits = torch.randn(10, generator=torch.Generator().manual_seed(1))
    expected = torch.full((10,), NEVER)
    expected[[2, 5]] = logits[[2, 5]]
    assert torch.equal(constrained(logits, make_state(10, allowed_token_ids=[5, 2, 5, 400, -1])), expected)


def test_allowed_ids_and_bias_and_bans_add_up(make_state: MakeState) -> None:
    state = make_state(10, allowed_token_ids=[2, 5, 6], logit_bias={2: 1.0, 3: 50.0}, bad_word_ids=((5,),))
    result = constrained(torch.zeros(10), state)
    assert {token: result[token].item() for token in range(10) if result[token] != NEVER} == {2: 1.0, 6: 0.0}


def test_allowed_ids_that_are_all_outside_the_vocabulary_are_refused(make_state: MakeState) -> None:
    with pytest.raises(InvalidRequestError, match="allowed_token_ids") as caught:
        make_state(10, allowed_token_ids=[10, 11])
    assert caught.value.param == "allowed_token_ids"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ((), [4]),
        ((1,), [2, 4]),
        ((1, 2), [3, 4]),
        ((9, 1, 2), [3, 4]),
        ((2, 1), [2, 4]),
        ((2,), [4]),
    ],
)
def test_a_bad_words_last_token_is_banned_after_its_first_ones(make_state: MakeState, output: tuple[int, ...], expected: list[int]) -> None:
    assert banned_ids(make_state(10, (7,), output, bad_word_ids=((4,), (1, 2), (1, 2, 3)))) == expected


def test_the_prompt_does_not_count_for_bad_words(make_state: MakeState) -> None:
    words = ((1, 2), (1, 2, 3))
    assert banned_ids(make_state(10, (1,), (), bad_word_ids=words)) == []
    assert banned_ids(make_state(10, (1,), (2,), bad_word_ids=words)) == []
    assert banned_ids(make_state(10, (1, 2), (1, 2), bad_word_ids=words)) == [3]


def test_bad_words_follow_the_output_as_it_grows(make_state: MakeState) -> None:
    state = make_state(10, bad_word_ids=((1, 2),))
    seen = [banned_ids(state)]
    for token in (1, 2, 1):
        state.append(token)
        seen.append(banned_ids(state))
    assert seen == [[], [2], [], [2]]


def test_bad_words_ban_what_transformers_bans(make_state: MakeState) -> None:
    """Its processor sees the whole history, so it is given the output alone."""
    rng = np.random.default_rng(3)
    words = [rng.integers(0, 4, length).tolist() for length in (1, 2, 2, 3, 3, 4)]
    words[0] = [9]
    peer = NoBadWordsLogitsProcessor(words, eos_token_id=99)
    for length in range(1, 60):
        output = rng.integers(0, 4, length).tolist()
        scores = peer(torch.tensor([output]), torch.ones(1, 10))[0]
        expected = (scores == NEVER).nonzero().flatten().tolist()
        assert banned_ids(make_state(10, (0,), tuple(output), bad_word_ids=tuple(map(tuple, words)))) == expected


def test_ending_ids_are_banned_until_min_tokens(make_state: MakeState) -> None:
    state = make_state(10, suppress=(2, 8, 77), min_tokens=2)
    seen = [banned_ids(state)]
    for token in (1, 1):
        state.append(token)
        seen.append(banned_ids(state))
    assert seen == [[2, 8], [2, 8], []]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Nothing would be left of the allowed ids: the bans give way, the allowed ids hold.
        ({"allowed_token_ids": [4], "bad_word_ids": ((4,),)}, {4}),
        ({"allowed_token_ids": [4, 5], "bad_word_ids": ((4,),), "suppress": (5,), "min_tokens": 3}, {4, 5}),
        ({"bad_word_ids": tuple((token,) for token in range(10))}, set(range(10))),
        # One is left: they hold.
        ({"allowed_token_ids": [4, 5, 6], "bad_word_ids": ((4,),), "suppress": (5,), "min_tokens": 3}, {6}),
        ({"bad_word_ids": tuple((token,) for token in range(9))}, {9}),
    ],
)
def test_bans_that_would_leave_no_id_do_not_apply(make_state: MakeState, options: dict[str, Any], expected: set[int]) -> None:
    assert set(range(10)) - set(banned_ids(make_state(10, **options))) == expected
