"""Shared pieces of the sampling tests: sequences made in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from octavo.batch import NewSequence
from octavo.sampling.state import SequenceState
from octavo.sampling_params import SamplingParams


@pytest.fixture
def make_state() -> Callable[..., SequenceState]:
    """A sequence from its prompt, its output and sampling parameters by name."""

    def make(
        vocab_size: int,
        prompt: tuple[int, ...] = (0,),
        output: tuple[int, ...] = (),
        seed: int = 0,
        suppress: tuple[int, ...] = (),
        bad_word_ids: tuple[tuple[int, ...], ...] = (),
        **params: Any,
    ) -> SequenceState:
        new = NewSequence(
            seq_id=seed,
            token_ids=[*prompt, *output],
            num_prompt_tokens=len(prompt),
            params=SamplingParams(**{"max_tokens": None, **params}),
            seed=seed,
            suppress_until_min=list(suppress),
            bad_word_ids=[list(word) for word in bad_word_ids],
        )
        return SequenceState(new, vocab_size)

    return make
