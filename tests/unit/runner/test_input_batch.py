"""From a batch's differences to a step's tensors."""

from __future__ import annotations

import pytest
import torch

from octavo.batch import Batch, NewSequence, ScheduledSequence
from octavo.runner.input_batch import InputBatch
from octavo.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


def make_batch(dropped: list[int], new: list[NewSequence], scheduled: list[ScheduledSequence]) -> Batch:
    return Batch(0, dropped, new, [], scheduled)


@pytest.fixture
def inputs() -> InputBatch:
    return InputBatch(max_num_seqs=3, max_model_len=64, block_size=4, vocab_size=100, device=torch.device("cpu"))


def test_a_prompt_chunk_and_a_decode_share_a_step(inputs: InputBatch) -> None:
    first = NewSequence(7, [10, 11, 12, 13, 14, 15], 6, GREEDY, seed=0)
    second = NewSequence(8, [20, 21, 22], 3, GREEDY, seed=0)
    scheduled = [ScheduledSequence(7, 0, 5, 0, [9, 2], False), ScheduledSequence(8, 2, 1, 0, [5], True)]
    inputs.apply(make_batch([], [first, second], scheduled))
    step = inputs.prepare(scheduled)
    assert step.token_ids.tolist() == [10, 11, 12, 13, 14, 22]
    assert step.attention.positions.tolist() == [0, 1, 2, 3, 4, 2]
    assert step.attention.slots.tolist() == [36, 37, 38, 39, 8, 22]
    assert step.attention.query_starts.tolist() == [0, 5, 6]
    assert step.attention.context_lens.tolist() == step.attention.context_lens_host == [5, 3]
    assert step.attention.query_lens == [5, 1]
    assert step.attention.block_tables.tolist() == [[9, 2], [5, 0]]
    assert step.sample_rows == [5]
    assert [state.seq_id for state in step.states] == [8]


def test_later_steps_see_appended_tokens_and_table_changes(inputs: InputBatch) -> None:
    scheduled = [ScheduledSequence(1, 0, 4, 0, [3], True)]
    inputs.apply(make_batch([], [NewSequence(1, [1, 2, 3, 4], 4, GREEDY, seed=0)], scheduled))
    inputs.prepare(scheduled).states[0].append(50)
    scheduled = [ScheduledSequence(1, 4, 1, 1, [6], True)]
    inputs.apply(make_batch([], [], scheduled))
    step = inputs.prepare(scheduled)
    assert step.token_ids.tolist() == [50]
    assert step.attention.slots.tolist() == [24]
    scheduled = [ScheduledSequence(1, 4, 1, 0, [0, 1], True)]  # both blocks were copied before a write
    inputs.apply(make_batch([], [], scheduled))
    assert inputs.prepare(scheduled).attention.block_tables.tolist() == [[0, 1]]


def test_a_dropped_sequence_gives_its_place_to_a_new_one_in_the_same_batch(inputs: InputBatch) -> None:
    for seq_id in range(3):
        inputs.apply(
            make_batch([], [NewSequence(seq_id, [seq_id], 1, GREEDY, seed=0)], [ScheduledSequence(seq_id, 0, 1, 0, [seq_id], True)])
        )
    scheduled = [ScheduledSequence(9, 0, 1, 0, [7], True), ScheduledSequence(2, 0, 1, 0, [], True)]
    inputs.apply(make_batch([0, 1], [NewSequence(9, [99], 1, GREEDY, seed=0)], scheduled))
    step = inputs.prepare(scheduled)
    assert set(inputs.states) == {2, 9}
    assert step.token_ids.tolist() == [99, 2]
    assert step.attention.block_tables.tolist() == [[7], [2]]


def test_dropping_a_sequence_twice_or_an_unknown_one_does_nothing(inputs: InputBatch) -> None:
    inputs.apply(make_batch([5, 5], [], []))
    assert inputs.states == {}
