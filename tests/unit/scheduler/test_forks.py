"""Requests for several sequences (n > 1)."""

from __future__ import annotations

from octavo.request import SequenceStatus, sequence_seed


def test_siblings_wait_for_the_prompt_and_then_share_its_pages(harness) -> None:
    h = harness(max_num_batched_tokens=6)
    request = h.add("a", 10, n=3)
    assert [entry.seq_id for entry in h.step().scheduled] == [0]
    assert (h.scheduler.num_running, h.scheduler.num_waiting) == (1, 2)
    assert [entry.seq_id for entry in h.step().scheduled] == [0]
    batch = h.step()
    assert [(e.seq_id, e.num_computed, e.num_tokens, e.samples) for e in batch.scheduled] == [
        (0, 10, 1, True),
        (1, 9, 1, True),
        (2, 9, 1, True),
    ]
    tables = [h.kv.block_table(sequence) for sequence in request.sequences]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert len({table[2] for table in tables}) == 3
    assert batch.block_copies == [(tables[0][2], tables[1][2]), (tables[0][2], tables[2][2])]
    assert [(entry.table_start, entry.block_ids) for entry in batch.scheduled[1:]] == [(0, tables[1]), (0, tables[2])]
    assert [sequence.num_cached_tokens for sequence in request.sequences] == [0, 9, 9]


def test_a_fork_whose_last_token_begins_a_block_copies_nothing(harness) -> None:
    h = harness(prefix_caching=False)
    h.add("a", 9, n=2)
    h.step()
    batch = h.step()
    assert batch.scheduled[1].num_computed == 8 and batch.block_copies == []


def test_cached_blocks_are_preferred_to_a_fork_that_shares_no_more(harness) -> None:
    h = harness()
    h.add("a", 9, n=2)
    h.step()
    assert h.step().scheduled[1].num_computed == 8
    assert (h.kv.prefix_queries, h.kv.prefix_hits) == (18, 8)


def test_a_prompt_of_one_token_has_nothing_to_share(harness) -> None:
    h = harness()
    h.add("a", 1, n=2)
    h.step()
    batch = h.step()
    assert (batch.scheduled[1].num_computed, batch.scheduled[1].num_tokens) == (0, 1) and batch.block_copies == []


def test_siblings_go_before_requests_that_came_later(harness) -> None:
    h = harness(max_num_seqs=2)
    h.add("a", 5, n=2)
    h.add("b", 5)
    h.add("c", 5)
    assert [entry.seq_id for entry in h.step().scheduled] == [0, 2]
    h.scheduler.abort("b")
    assert [entry.seq_id for entry in h.step().scheduled] == [0, 1]


def test_siblings_of_a_leader_that_ended_at_once_find_its_pages_in_the_prefix_cache(harness) -> None:
    h = harness()
    request = h.add("a", 10, n=3)
    h.step(token=2)
    assert request.sequences[0].status is SequenceStatus.FINISHED
    batch = h.step()
    assert batch.dropped == [0]
    assert [(entry.seq_id, entry.num_computed) for entry in batch.scheduled] == [(1, 8), (2, 8)]


def test_without_prefix_cache_or_leader_siblings_compute_the_prompt_themselves(harness) -> None:
    h = harness(prefix_caching=False)
    h.add("a", 10, n=2)
    h.step(token=2)
    assert [(entry.seq_id, entry.num_computed, entry.num_tokens) for entry in h.step().scheduled] == [(1, 0, 10)]


def test_a_sibling_can_fork_from_another_sibling_when_the_leader_is_gone(harness) -> None:
    h = harness(prefix_caching=False, max_num_seqs=2)
    request = h.add("a", 10, n=3)
    h.step()
    h.step({0: 2})
    assert request.sequences[0].status is SequenceStatus.FINISHED
    entry = h.step().scheduled[1]
    assert (entry.seq_id, entry.num_computed) == (2, 9)


def test_a_leader_aborted_before_the_prompt_is_done_lets_its_siblings_go_on(harness) -> None:
    h = harness(max_num_batched_tokens=4)
    request = h.add("a", 10, n=2, max_tokens=1)
    h.step()
    assert h.scheduler.abort("a", (0,)) == [request.sequences[0]]
    while h.scheduler.has_work():
        h.step()
    assert [str(sequence.finish_reason) for sequence in request.sequences] == ["abort", "length"]


def test_siblings_never_start_after_an_abort(harness) -> None:
    h = harness()
    request = h.add("a", 10, n=3)
    h.plan()
    assert h.scheduler.abort("a") == request.sequences
    assert h.answer() == []
    assert not h.scheduler.has_work() and h.scheduler.schedule() is None
    lone = h.add("b", 10, n=2)
    h.plan()
    h.scheduler.abort("b", (1,))
    h.answer()
    assert [entry.seq_id for entry in h.step().scheduled] == [lone.sequences[0].seq_id]


def test_best_of_makes_as_many_sequences_as_it_says(harness) -> None:
    assert [s.index for s in harness().add("a", 3, n=1, best_of=3).sequences] == [0, 1, 2]


def test_each_sequence_has_a_seed_of_its_own_that_depends_on_request_seed_and_index_alone(harness) -> None:
    h = harness()
    h.add("a", 10, n=2, seed=7)
    other = harness()
    other.add("z", 3, seed=1)
    other.add("b", 5, n=2, seed=7)
    seeds = [new.seed for new in h.step().new + h.step().new]
    others = {new.seq_id: new.seed for new in other.step().new + other.step().new}
    assert seeds == [sequence_seed(7, 0), sequence_seed(7, 1)] == [others[1], others[2]]


def test_sequence_seeds_are_distinct_64_bit_numbers_that_never_change() -> None:
    seeds = {sequence_seed(seed, index) for seed in (-(2**63), -1, 0, 1, 2**62, 2**64 - 2) for index in range(128)}
    assert len(seeds) == 6 * 128 and all(0 <= seed < 2**64 for seed in seeds)
    assert sequence_seed(-1, 3) == sequence_seed(2**64 - 1, 3)
    # SplitMix64's first output from state 0 is 0xE220A8397B1DCDAF; mixed once more for index 0.
    assert sequence_seed(0, 0) == 0xA706DD2F4D197E6F
