"""Plans that are made before the results of earlier ones are known."""

from __future__ import annotations

import pytest

from octavo.batch import Batch
from octavo.kvcache.block_pool import PoolError
from octavo.request import FinishReason, Request, SequenceStatus
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs


def spans(batch: Batch) -> list[tuple[int, int, int, bool]]:
    return [(entry.seq_id, entry.num_computed, entry.num_tokens, entry.samples) for entry in batch.scheduled]


def test_a_plan_builds_on_what_steps_in_flight_compute_and_sample(harness) -> None:
    h = harness(max_num_batched_tokens=8)
    request = h.add("a", 12)
    assert [spans(h.plan()) for _ in range(4)] == [[(0, 0, 8, False)], [(0, 8, 4, True)], [(0, 12, 1, True)], [(0, 13, 1, True)]]
    sequence = request.sequences[0]
    assert (sequence.num_computed, sequence.num_in_flight, sequence.num_pending) == (14, 14, 3)
    for token in (None, 7, 8, 9):
        h.answer({} if token is None else {0: token})
    assert sequence.token_ids[12:] == [7, 8, 9]
    assert (sequence.num_computed, sequence.num_in_flight, sequence.num_pending) == (14, 0, 0)
    assert spans(h.plan()) == [(0, 14, 1, True)]


def test_pages_are_taken_for_what_is_in_flight(harness) -> None:
    h = harness()
    h.add("a", 3)
    tables = [(entry.table_start, entry.block_ids) for entry in (h.plan().scheduled[0] for _ in range(3))]
    assert tables == [(0, [0]), (0, []), (1, [1])]


@pytest.mark.parametrize("limits", [{"max_model_len": 8}, {"max_tokens": 3}])
def test_a_sequence_whose_last_token_is_pending_is_left_out(harness, limits: dict[str, int]) -> None:
    h = harness(max_model_len=limits.get("max_model_len", 200))
    request = h.add("a", 5, max_tokens=limits.get("max_tokens", 50))
    for _ in range(3):
        h.plan()
    assert h.scheduler.schedule() is None, "nothing else runs"
    h.add("b", 2)
    assert spans(h.plan()) == [(1, 0, 2, True)]
    ends = [[(p.sequence.seq_id, p.sequence.finish_reason) for p in h.answer()] for _ in range(4)]
    assert ends == [[(0, None)], [(0, None)], [(0, FinishReason.LENGTH)], [(1, None)]]
    assert request.sequences[0].num_output_tokens == 3


def test_the_place_of_a_sequence_whose_last_token_is_pending_is_not_given_away_yet(harness) -> None:
    h = harness(max_num_seqs=1)
    h.add("a", 2, max_tokens=1)
    h.add("b", 2, max_tokens=1)
    h.plan()
    assert h.scheduler.schedule() is None
    h.answer()
    batch = h.plan()
    assert (batch.dropped, spans(batch)) == ([0], [(1, 0, 2, True)])


@pytest.mark.parametrize("token", [2, None])
def test_the_token_computed_too_many_is_thrown_away(harness, token: int | None) -> None:
    """``token`` ends the sequence: the end-of-sequence token, or none at all."""
    h = harness()
    request = h.add("a", 7)
    h.plan()
    h.plan()
    (progress,) = h.answer({0: token})
    assert progress.sequence.status is SequenceStatus.FINISHED and h.kv.num_free_blocks == h.kv.num_blocks
    assert h.scheduler.schedule() is None and not h.scheduler.has_work()
    assert h.answer({0: 9}) == []
    assert request.sequences[0].num_output_tokens == (token is not None)
    h.add("b", 3)
    assert h.plan().dropped == [0]


def test_an_abort_frees_the_pages_at_once_and_its_steps_are_ignored(harness) -> None:
    h = harness(num_blocks=4)
    h.add("a", 12, max_tokens=4)
    h.plan()
    h.plan()
    assert h.kv.num_free_blocks == 0 and h.scheduler.abort("a") and h.kv.num_free_blocks == 4
    h.add("b", 12, max_tokens=4)
    batch = h.plan()
    assert (batch.dropped, spans(batch)) == ([0], [(1, 0, 12, True)]), "in the pages that steps in flight still write"
    assert h.answer() == h.answer() == []
    assert [progress.sequence.seq_id for progress in h.answer()] == [1]


def test_the_prefix_cache_learns_only_what_is_computed_and_known(harness) -> None:
    h = harness()
    h.add("a", list(range(10, 17)))
    h.plan()  # fills block 0
    h.plan()  # fills block 1 with a token that nobody knows yet
    h.add("b", [*range(10, 17), 9, 1])
    assert spans(h.plan())[-1] == (1, 0, 9, True), "nothing is in yet"
    h.answer({0: 9})
    h.add("c", [*range(10, 17), 9, 1])
    assert spans(h.plan())[-1] == (2, 4, 5, True), "block 0 is in"
    h.answer()
    h.add("d", [*range(10, 17), 9, 1])
    assert spans(h.plan())[-1] == (3, 8, 1, True)


def test_nobody_is_preempted_while_a_step_is_in_flight(harness) -> None:
    h = harness(num_blocks=4)
    a, b = h.add("a", 3, max_tokens=10), h.add("b", 3, max_tokens=10)
    for _ in range(6):
        h.plan()
    assert h.kv.num_free_blocks == 0 and h.scheduler.schedule() is None, "each needs a third block"
    for _ in range(5):
        h.answer()
        assert h.scheduler.schedule() is None and not h.scheduler.preemptions
    h.answer()
    batch = h.plan()
    assert batch.dropped == [1] and spans(batch) == [(0, 8, 1, True)]
    assert (b.sequences[0].num_pending, b.sequences[0].num_in_flight, b.sequences[0].num_output_tokens) == (0, 0, 6)
    assert a.sequences[0].num_output_tokens == 6


def test_a_fork_may_start_while_its_parent_is_in_flight(harness) -> None:
    h = harness(prefix_caching=False)
    request = h.add("a", 10, n=2)
    h.plan()
    h.plan()
    assert h.scheduler.num_running == 1, "the sibling waits for the leader's first token"
    h.answer()
    batch = h.plan()
    assert spans(batch) == [(0, 11, 1, True), (1, 9, 1, True)]
    tables = [h.kv.block_table(sequence) for sequence in request.sequences]
    assert batch.block_copies == [(tables[0][2], tables[1][2])]


def test_siblings_that_start_in_one_step_do_not_fork_from_each_other(harness) -> None:
    """What the step is to compute is there only after its copies were made."""
    h = harness(prefix_caching=False)
    h.add("a", 10, n=3)
    h.step(token=2)
    assert spans(h.plan()) == [(1, 0, 10, True), (2, 0, 10, True)]


def test_only_simple_requests_are_planned_ahead(harness) -> None:
    h = harness()
    h.add("a", 3)
    h.add("b", 3, logprobs=0, max_tokens=1)
    h.plan()
    assert not h.scheduler.plans_ahead
    h.answer()
    assert h.scheduler.plans_ahead
    h.add("c", 3, logprobs=0)
    h.plan()
    h.scheduler.abort("c")
    assert h.scheduler.plans_ahead


@pytest.mark.parametrize(
    ("params", "simple"),
    [
        ({}, True),
        ({"temperature": 0.0, "n": 2, "stop_token_ids": [3], "ignore_eos": True}, True),
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "seed": 3, "stop": ["x"]}, True),
        ({"min_tokens": 2}, False),
        ({"min_tokens": 2, "ignore_eos": True}, True),
        ({"min_tokens": 2, "ignore_eos": True, "stop_token_ids": [3]}, False),
        ({"logit_bias": {3: 1.0}}, False),
        ({"allowed_token_ids": [3]}, False),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"logprobs": 0}, False),
        ({"prompt_logprobs": 0}, False),
        ({"structured_outputs": StructuredOutputs(regex="a")}, False),
    ],
)
def test_which_requests_are_simple(params: dict[str, object], simple: bool) -> None:
    assert Request("a", [1], SamplingParams(**params), 0, (2,)).simple is simple  # type: ignore[arg-type]
    assert not Request("a", [1], SamplingParams(**params), 0, (2,), ((4, 5),)).simple  # type: ignore[arg-type]


def test_the_audit_counts_the_pages_of_steps_in_flight(harness) -> None:
    h = harness()
    request = h.add("a", 8)
    h.plan()
    h.plan()
    h.scheduler.audit()
    request.sequences[0].num_computed += 8
    with pytest.raises(PoolError, match="has computed 17 tokens in 3 blocks"):
        h.scheduler.audit()
