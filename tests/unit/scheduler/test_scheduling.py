"""Who gets how many tokens in a step, who is admitted and who is preempted."""

from __future__ import annotations

import pytest

from octavo.batch import Batch
from octavo.errors import InvalidRequestError
from octavo.request import SequenceStatus


def shares(batch: Batch) -> dict[int, int]:
    return {entry.seq_id: entry.num_tokens for entry in batch.scheduled}


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_and_samples_at_its_end(harness) -> None:
    h = harness(max_num_batched_tokens=8)
    h.add("a", 19)
    plans = [h.step().scheduled[0] for _ in range(4)]
    assert [(e.num_computed, e.num_tokens, e.samples) for e in plans] == [(0, 8, False), (8, 8, False), (16, 3, True), (19, 1, True)]


def test_running_sequences_come_first_and_a_new_prompt_gets_what_is_left(harness) -> None:
    h = harness(max_num_batched_tokens=8)
    h.add("a", 3)
    h.add("b", 2)
    h.step()
    h.add("c", 20)
    assert shares(h.step()) == {0: 1, 1: 1, 2: 6}
    assert shares(h.step()) == {0: 1, 1: 1, 2: 6}


def test_a_long_chunk_leaves_a_token_to_each_running_sequence_behind_it(harness) -> None:
    h = harness(max_num_batched_tokens=8, scheduling_policy="priority")
    h.add("a", 3)
    h.add("b", 3)
    h.step()
    h.add("c", 30, priority=-1)
    assert shares(h.step()) == {0: 1, 1: 1, 2: 6}
    assert shares(h.step()) == {2: 6, 0: 1, 1: 1}
    assert [entry.seq_id for entry in h.plan().scheduled] == [2, 0, 1]


def test_no_more_sequences_run_than_the_sequence_budget(harness) -> None:
    h = harness(max_num_seqs=2)
    for name in "abc":
        h.add(name, 2, max_tokens=2)
    assert set(shares(h.step())) == {0, 1}
    assert (h.scheduler.num_running, h.scheduler.num_waiting) == (2, 1)
    assert set(shares(h.step())) == {0, 1}
    assert set(shares(h.step())) == {2}


def test_requests_are_admitted_by_arrival_or_by_priority(harness) -> None:
    for policy, expected in (("fcfs", [0, 1, 2, 3]), ("priority", [3, 0, 2, 1])):
        h = harness(max_num_seqs=1, scheduling_policy=policy)
        for name, priority in zip("abcd", (0, 5, 0, -5), strict=True):
            h.add(name, 2, max_tokens=1, priority=priority)
        assert [h.step().scheduled[0].seq_id for _ in range(4)] == expected


def test_a_new_sequence_comes_whole_and_then_as_what_changed(harness) -> None:
    h = harness()
    h.add("a", [5, 6, 7, 8, 9], seed=3)
    batch = h.step()
    assert [(new.seq_id, new.token_ids, new.num_prompt_tokens) for new in batch.new] == [(0, [5, 6, 7, 8, 9], 5)]
    assert (batch.scheduled[0].table_start, batch.scheduled[0].block_ids) == (0, [0, 1])
    changes = [h.step() for _ in range(4)]
    assert all(not batch.new and not batch.dropped for batch in changes)
    assert [(b.scheduled[0].table_start, b.scheduled[0].block_ids) for b in changes] == [(0, []), (0, []), (0, []), (2, [2])]


def test_what_the_worker_does_with_its_token_list_does_not_reach_the_scheduler(harness) -> None:
    h = harness()
    request = h.add("a", [5, 6])
    h.plan().new[0].token_ids.append(99)
    assert request.sequences[0].token_ids == [5, 6] and request.prompt_token_ids == [5, 6]


def test_out_of_pages_the_latest_come_is_preempted_and_comes_back_whole_before_later_ones(harness) -> None:
    h = harness(num_blocks=7, max_num_batched_tokens=100)
    a, b, c = (h.add(name, 8, max_tokens=16) for name in "abc")
    h.step()
    assert (a.sequences[0].status, b.sequences[0].status) == (SequenceStatus.RUNNING, SequenceStatus.RUNNING)
    assert c.sequences[0].status is SequenceStatus.WAITING
    preempting = next(batch for batch in iter(h.step, None) if batch.dropped)
    victim = b.sequences[0]
    assert preempting.dropped == [1] and set(shares(preempting)) == {0}
    assert (victim.status, victim.num_computed, victim.num_preemptions) == (SequenceStatus.WAITING, 0, 1)
    assert victim.num_output_tokens > 0, "its tokens are kept"
    assert h.scheduler.preemptions == {"out_of_blocks": 1} and b.num_preemptions == 1 and a.num_preemptions == 0
    kept = list(victim.token_ids)
    back = next(batch for batch in iter(h.step, None) if batch.new)
    assert back.new[0].seq_id == 1 and back.new[0].token_ids == kept
    assert a.finished, "nobody was admitted by preempting the running one"


def test_under_priority_the_least_urgent_is_preempted_even_when_it_came_first(harness) -> None:
    h = harness(num_blocks=7, scheduling_policy="priority")
    h.add("a", 8, priority=1, max_tokens=16)
    h.add("b", 8, priority=0, max_tokens=16)
    preempting = next(batch for batch in iter(h.step, None) if batch.dropped)
    assert preempting.dropped == [0]


def test_a_lone_sequence_may_use_the_whole_pool(harness) -> None:
    h = harness(num_blocks=5)
    request = h.add("a", 8, max_tokens=13)
    while h.scheduler.has_work():
        h.step()
    assert request.sequences[0].num_output_tokens == 13 and not h.scheduler.preemptions


def test_a_preempted_sequence_keeps_the_cached_token_count_of_its_first_start(harness) -> None:
    h = harness(num_blocks=7)
    h.add("a", 8, max_tokens=16)
    b = h.add("b", 8, max_tokens=16)
    next(batch for batch in iter(h.step, None) if batch.dropped)
    next(batch for batch in iter(h.step, None) if batch.new)
    assert h.kv.prefix_hits > 0, "it found pages of its own when it came back"
    assert b.sequences[0].num_cached_tokens == 0


def test_a_waiting_sequence_needs_room_for_all_it_knows_and_a_block_for_each_running_one(harness) -> None:
    h = harness(num_blocks=6)
    h.add("a", 8, max_tokens=9)
    h.add("b", 12, max_tokens=9)
    h.add("c", 1, max_tokens=1)
    assert set(shares(h.step())) == {0, 1}, "2 + 3 blocks, and one more for the running"
    tight = harness(num_blocks=6)
    tight.add("a", 8, max_tokens=9)
    tight.add("b", 13, max_tokens=9)
    tight.add("c", 1, max_tokens=1)
    assert set(shares(tight.step())) == {0}, "2 + 4 would leave none; and nobody overtakes the one that waits"


def test_nobody_is_admitted_beside_a_half_computed_prompt(harness) -> None:
    """So the pages that its rest will need are not given away."""
    h = harness(max_num_batched_tokens=7, scheduling_policy="priority")
    h.add("a", 2)
    h.step()
    h.add("b", 20, priority=-1)
    h.add("c", 1)
    assert [shares(h.step()) for _ in range(4)] == [{0: 1, 1: 6}, {1: 6, 0: 1}, {1: 6, 0: 1}, {1: 2, 0: 1, 2: 1}]


def test_a_second_request_with_the_same_beginning_computes_only_the_rest(harness) -> None:
    h = harness()
    h.add("a", list(range(10, 20)))
    h.step()
    second = h.add("b", [*range(10, 20), 50, 51])
    entry = h.step().scheduled[1]
    assert (entry.num_computed, entry.num_tokens) == (8, 4)
    assert second.sequences[0].num_cached_tokens == 8
    assert (h.kv.prefix_queries, h.kv.prefix_hits) == (22, 8)


def test_the_times_of_a_request_and_the_list_of_started_ones(harness) -> None:
    h = harness(max_num_seqs=1, max_num_batched_tokens=4)
    first, second = h.add("a", 6, max_tokens=2), h.add("b", 2, max_tokens=1)
    h.now = 1.0
    h.step()
    assert h.scheduler.take_started() == [first] and h.scheduler.take_started() == []
    h.now = 2.0
    h.step()
    h.now = 2.5
    h.step()
    h.now = 3.0
    h.step()
    assert h.scheduler.take_started() == [second]
    assert (first.first_scheduled_time, first.first_token_time) == (1.0, 2.0)
    assert (second.first_scheduled_time, second.first_token_time) == (3.0, 3.0)


def test_without_work_there_is_no_plan_and_dropped_sequences_wait_for_the_next_one(harness) -> None:
    h = harness()
    assert h.scheduler.schedule() is None and not h.scheduler.has_work()
    h.add("a", 2, max_tokens=1)
    h.step()
    assert h.scheduler.schedule() is None and not h.scheduler.has_work()
    h.add("b", 2)
    batch = h.step()
    assert batch.dropped == [0] and [new.seq_id for new in batch.new] == [1]
    assert h.step().dropped == []


def test_steps_are_numbered_without_gaps(harness) -> None:
    h = harness()
    h.add("a", 2, max_tokens=3)
    numbers = [h.step().step, h.step().step, h.step().step]
    assert h.scheduler.schedule() is None
    h.add("b", 2)
    assert [*numbers, h.step().step] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message", "param"),
    [
        ([], 5, "at least one token", "prompt"),
        ([1] * 60, 5, "maximum context length is 60 tokens.*contains 60 input tokens", "prompt"),
        ([1] * 20, 22, "whole KV pool holds 40", "max_tokens"),
        ([1] * 41, 1, "whole KV pool holds 40", "prompt"),
    ],
)
def test_a_request_that_can_never_run_is_refused(harness, prompt: list[int], max_tokens: int, message: str, param: str) -> None:
    h = harness(num_blocks=10, max_model_len=60)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        h.add("a", prompt, max_tokens=max_tokens)
    assert caught.value.param == param
    assert not h.scheduler.has_work()


def test_a_live_request_id_cannot_be_used_again_and_a_finished_one_can(harness) -> None:
    h = harness()
    h.add("a", 2, max_tokens=1)
    with pytest.raises(InvalidRequestError, match="'a' is running already"):
        h.add("a", 2)
    h.step()
    h.add("a", 2, max_tokens=1)
