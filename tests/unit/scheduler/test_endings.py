"""How sequences end, and what is reported of each step."""

from __future__ import annotations

import pytest

from octavo.batch import SampledToken, StepResult, TokenLogprobs
from octavo.request import FinishReason, SequenceStatus


def run(h, request, tokens: list[int]):
    """Sample ``tokens`` one by one until the sequence ends; returns how many were taken, and how it ended."""
    sequence = request.sequences[0]
    for token in tokens:
        h.step(token=token)
        if sequence.status is SequenceStatus.FINISHED:
            break
    return sequence.token_ids[sequence.num_prompt_tokens :], sequence.finish_reason, sequence.stop_reason


@pytest.mark.parametrize(
    ("params", "tokens", "expected"),
    [
        ({}, [5, 2, 5], ([5, 2], FinishReason.STOP, None)),
        ({"ignore_eos": True, "max_tokens": 3}, [5, 2, 5, 5], ([5, 2, 5], FinishReason.LENGTH, None)),
        ({"stop_token_ids": [7]}, [5, 7], ([5, 7], FinishReason.STOP, 7)),
        ({"stop_token_ids": [2]}, [2], ([2], FinishReason.STOP, None)),
        ({"stop_token_ids": [2], "ignore_eos": True}, [2], ([2], FinishReason.STOP, 2)),
        ({"max_tokens": 2}, [5, 5, 5], ([5, 5], FinishReason.LENGTH, None)),
        ({"max_tokens": 2}, [5, 2], ([5, 2], FinishReason.STOP, None)),
        ({"min_tokens": 2}, [2, 2, 2, 2], ([2, 2, 2], FinishReason.STOP, None)),
        ({"min_tokens": 1, "stop_token_ids": [7]}, [7, 7, 7], ([7, 7], FinishReason.STOP, 7)),
        ({"min_tokens": 3, "max_tokens": 3}, [2, 2, 2], ([2, 2, 2], FinishReason.LENGTH, None)),
    ],
)
def test_a_sequence_ends_where_its_parameters_say(harness, params, tokens: list[int], expected) -> None:
    h = harness()
    assert run(h, h.add("a", 3, **params), tokens) == expected


def test_a_sequence_ends_at_the_context_limit(harness) -> None:
    h = harness(max_model_len=6)
    assert run(h, h.add("a", 3), [5] * 9) == ([5, 5, 5], FinishReason.LENGTH, None)


def test_ends_are_suppressed_for_the_worker_only_where_a_minimum_is_asked(harness) -> None:
    h = harness()
    h.add("a", 3, stop_token_ids=[8, 4])
    h.add("b", 3, stop_token_ids=[8, 4], min_tokens=1)
    h.add("c", 3, stop_token_ids=[8, 4], min_tokens=1, ignore_eos=True)
    assert [new.suppress_until_min for new in h.step().new] == [[], [2, 4, 8], [4, 8]]


def test_a_finished_sequence_frees_its_pages_and_leaves_their_content_findable(harness) -> None:
    h = harness()
    h.add("a", list(range(10, 19)), max_tokens=1)
    h.step()
    assert h.kv.usage == 0.0
    h.add("b", list(range(10, 19)))
    assert h.step().scheduled[0].num_computed == 8


def test_progress_names_those_that_got_a_token_in_batch_order(harness) -> None:
    h = harness(max_num_batched_tokens=8)
    h.add("a", 3)
    h.add("b", 20)
    h.plan()
    progress = h.answer({0: 11})
    assert [(p.sequence.seq_id, p.token_ids, p.logprobs, p.prompt_logprobs) for p in progress] == [(0, [11], None, None)]


def test_log_probabilities_of_a_token_are_passed_on(harness) -> None:
    h = harness()
    h.add("a", 3, logprobs=1)
    entry = TokenLogprobs([9, 4], [-0.5, -1.0], 1)
    (progress,) = h.scheduler.update(h.plan(), StepResult([SampledToken(0, 9, entry)]))
    assert progress.logprobs == [entry]


def prompt_result(batch, prompt: list[int]) -> StepResult:
    """What a runner gives back for a single sequence that asked for prompt log probabilities."""
    entry = batch.scheduled[0]
    nexts = prompt[entry.num_computed + 1 : entry.num_computed + entry.num_tokens + 1]
    sampled = [SampledToken(entry.seq_id, 9)] if entry.samples else []
    return StepResult(sampled, {entry.seq_id: [TokenLogprobs([token], [-1.0], 1) for token in nexts]})


def test_prompt_log_probabilities_are_gathered_over_chunks_and_given_once(harness) -> None:
    h = harness(max_num_batched_tokens=4)
    prompt = list(range(10, 20))
    h.add("a", prompt, prompt_logprobs=0)
    got = []
    for _ in range(5):
        batch = h.plan()
        got += h.scheduler.update(batch, prompt_result(batch, prompt))
    assert [p.prompt_logprobs is None for p in got] == [False, True, True]
    assert [entry.token_ids[0] for entry in got[0].prompt_logprobs] == prompt[1:]


def test_a_prompt_of_one_token_has_an_empty_list_of_prompt_log_probabilities(harness) -> None:
    h = harness()
    h.add("a", [10], prompt_logprobs=0)
    (progress,) = h.scheduler.update(h.plan(), StepResult([SampledToken(0, 9)]))
    assert progress.prompt_logprobs == []


def test_who_wants_prompt_log_probabilities_computes_every_prompt_token(harness) -> None:
    h = harness()
    prompt = list(range(10, 20))
    h.add("a", prompt)
    h.step()
    second = h.add("b", prompt, prompt_logprobs=0)
    entry = h.step().scheduled[1]
    assert (entry.num_computed, entry.num_tokens) == (0, 10)
    assert second.sequences[0].num_cached_tokens == 0
    h.add("c", prompt)
    assert h.step().scheduled[2].num_computed == 8, "its pages serve others"


def test_only_the_first_sequence_asks_the_worker_for_prompt_log_probabilities_and_only_once(harness) -> None:
    h = harness(num_blocks=7, prefix_caching=False)
    prompt = list(range(10, 18))
    h.add("a", prompt, prompt_logprobs=3, n=2, max_tokens=16)
    first, second = h.step(), h.step()
    assert [new.params.prompt_logprobs for new in first.new + second.new] == [3, None]
    lone = harness(num_blocks=7)
    lone.add("x", 8, max_tokens=16)
    lone.add("y", 8, max_tokens=16, prompt_logprobs=3)
    news = []
    while len(news) < 3:
        news += lone.step().new
    assert [(new.seq_id, new.params.prompt_logprobs) for new in news] == [(0, None), (1, 3), (1, None)]


def test_results_of_a_sequence_aborted_during_the_step_are_ignored(harness) -> None:
    h = harness()
    a, b = h.add("a", 5), h.add("b", 5)
    h.plan()
    assert h.scheduler.abort("a") == a.sequences
    assert [p.sequence for p in h.answer()] == b.sequences
    assert a.sequences[0].num_output_tokens == 0 and a.sequences[0].finish_reason is FinishReason.ABORT
    assert h.step().dropped == [0]
    assert h.kv.lookup(a.sequences[0]).num_tokens == 0, "pages of an ignored step are not findable"


def test_an_abort_of_a_waiting_request_is_no_news_for_the_worker(harness) -> None:
    h = harness(max_num_seqs=1)
    h.add("a", 5)
    b = h.add("b", 5)
    h.step()
    assert h.scheduler.abort("b") == b.sequences
    assert h.scheduler.num_waiting == 0
    assert h.step().dropped == []


def test_an_abort_ends_only_what_it_names_and_only_once(harness) -> None:
    h = harness()
    request = h.add("a", 5, n=3)
    h.step()
    h.step()
    assert h.scheduler.abort("a", (1, 7)) == [request.sequences[1]]
    assert h.scheduler.abort("a", (1,)) == []
    assert h.scheduler.abort("nobody") == []
    assert not request.finished
    assert h.scheduler.abort("a") == [request.sequences[0], request.sequences[2]]
    assert request.finished and h.scheduler.abort("a") == []
    assert h.kv.usage == 0.0
