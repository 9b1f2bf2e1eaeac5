from __future__ import annotations

import random

import pytest

from octavo.request import Request, Sequence
from octavo.sampling_params import SamplingParams
from octavo.scheduler.queue import SequenceQueue


def sequence(seq_id: int, priority: int = 0) -> Sequence:
    return Sequence(seq_id, Request(f"r{seq_id}", [1], SamplingParams(), 0, priority=priority), 0, [1])


@pytest.mark.parametrize(("by_priority", "expected"), [(False, [0, 1, 2, 3]), (True, [3, 0, 2, 1])])
def test_order_is_arrival_or_priority_then_arrival(by_priority: bool, expected: list[int]) -> None:
    items = [sequence(0), sequence(1, priority=9), sequence(2), sequence(3, priority=-1)]
    random.Random(0).shuffle(items)
    queue = SequenceQueue(by_priority)
    for item in items:
        queue.add(item)
    assert [item.seq_id for item in queue] == expected
    assert (queue.first.seq_id, queue.last.seq_id, len(queue)) == (expected[0], expected[-1], 4)


def test_discard_takes_out_exactly_the_one_and_says_whether_it_was_in() -> None:
    queue, items = SequenceQueue(False), [sequence(number) for number in range(5)]
    for item in items:
        queue.add(item)
    assert queue.discard(items[2])
    assert not queue.discard(items[2])
    assert not queue.discard(sequence(9))
    assert not queue.discard(sequence(1)), "another sequence of the same rank is not the one"
    assert [item.seq_id for item in queue] == [0, 1, 3, 4]
