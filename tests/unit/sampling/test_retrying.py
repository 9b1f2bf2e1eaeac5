"""One row that nothing can be drawn from does not end the others, nor change what they draw."""

from __future__ import annotations

import pytest
import torch

from octavo.batch import NewSequence
from octavo.sampling.retrying import sample_what_can
from octavo.sampling.state import SequenceState
from octavo.sampling_params import SamplingParams

VOCAB = 12


def state(seq_id: int, **params: object) -> SequenceState:
    return SequenceState(NewSequence(seq_id, [3, 5, 3], 2, SamplingParams(**params), seed=seq_id), VOCAB)


def sequences() -> list[SequenceState]:
    penalised = {"repetition_penalty": 3.0, "presence_penalty": 1.5}
    return [
        state(0, temperature=0.0, **penalised),
        state(1, temperature=0.0),
        state(2, temperature=0.9, logit_bias={4: 2.0}, **penalised),
        state(3, temperature=0.7),
    ]


@pytest.mark.parametrize("damaged", [(0,), (1,), (3,), (0, 2), (1, 2, 3), (0, 1, 2, 3)])
def test_the_rows_left_draw_what_they_would_have_drawn(damaged: tuple[int, ...]) -> None:
    logits = torch.randn((4, VOCAB), generator=torch.Generator().manual_seed(7))
    expected = {entry.seq_id: token for entry, (token, _) in sample_what_can(logits.clone(), sequences()).tokens}
    assert len(expected) == 4
    spoiled = logits.clone()
    for row in damaged:
        spoiled[row, 6] = torch.nan
    found = sample_what_can(spoiled, sequences())
    assert sorted(found.failed) == sorted(damaged)
    assert {entry.seq_id: token for entry, (token, _) in found.tokens} == {
        seq_id: token for seq_id, token in expected.items() if seq_id not in damaged
    }
