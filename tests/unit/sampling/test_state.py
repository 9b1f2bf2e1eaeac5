"""A sequence's state in the worker: what is built, what grows, what stays unbuilt."""

from __future__ import annotations

from collections.abc import Callable

from octavo.sampling.random import uniform
from octavo.sampling.state import SequenceState

MakeState = Callable[..., SequenceState]


def test_positions_and_lengths_follow_the_tokens(make_state: MakeState) -> None:
    state = make_state(100, (1, 2, 3), (4,), seed=9)
    assert (state.position, state.num_output_tokens, state.num_prompt_tokens) == (4, 1, 3)
    for token in range(50):
        state.append(token)
    assert (state.position, state.num_output_tokens, state.num_prompt_tokens) == (54, 51, 3)
    assert state.token_ids.tolist() == [1, 2, 3, 4, *range(50)]
    assert state.output_ids.tolist() == [4, *range(50)]
    assert state.uniform() == uniform(9, 54)


def test_only_what_the_parameters_use_is_built(make_state: MakeState) -> None:
    plain = make_state(100, temperature=0.0, top_p=0.5, min_p=0.1, suppress=(1,))
    assert plain.plain and plain.counts is None and plain.constraints is None
    assert not make_state(100, temperature=0.5).plain
    assert not make_state(100, temperature=0.0, logprobs=0).plain
    assert not make_state(100, temperature=0.0, presence_penalty=0.1).plain
    assert not make_state(100, temperature=0.0, logit_bias={1: 1.0}).plain
    assert make_state(100, temperature=0.5, top_k=1).plain


def test_the_prompt_is_counted_for_the_repetition_penalty_alone(make_state: MakeState) -> None:
    repetition = make_state(100, (1, 2, 2), (3,), repetition_penalty=1.1).counts
    presence = make_state(100, (1, 2, 2), (3,), presence_penalty=1.1).counts
    assert repetition is not None and presence is not None
    assert sorted(repetition.ids.tolist()) == [1, 2, 3]
    assert presence.ids.tolist() == [3]
