"""From the engine's updates to deltas and outputs: text, stop strings, log probabilities, the best of several."""

from __future__ import annotations

from typing import Any

import pytest
from byte_model import EOS, byte_model
from hypothesis import given
from hypothesis import strategies as st

from octavo.batch import TokenLogprobs
from octavo.config import engine_options
from octavo.engine.messages import RequestTimes, SequenceUpdate
from octavo.frontend.input_processor import Ask, InputProcessor, PreparedRequest
from octavo.frontend.output_processor import OutputCollector, OutputProcessor, merge_deltas
from octavo.frontend.outputs import RequestDelta, RequestOutput
from octavo.sampling_params import SamplingParams

MODEL = byte_model(max_model_len=1024)
INPUTS = InputProcessor(MODEL, engine_options())
TIMES = RequestTimes(1.0, 2.0, 3.0, 4.0)


def prepared(**params: Any) -> PreparedRequest:
    return INPUTS.process([Ask("wire", "p", SamplingParams(**{"max_tokens": 100} | params))])[0]


def outputs(stream: bool = True, **params: Any) -> OutputProcessor:
    return OutputProcessor(prepared(**params), "r", MODEL.tokenizer, stream=stream)


def update(text: str = "", index: int = 0, **fields: Any) -> SequenceUpdate:
    return SequenceUpdate("wire", index, [*text.encode(), *fields.pop("more", [])], **fields)


def said(processor: OutputProcessor, *updates: SequenceUpdate) -> list[RequestDelta]:
    return [delta for one in updates if (delta := processor.update(one)) is not None]


def collected(deltas: list[RequestDelta], n: int = 1, wants_logprobs: bool = False) -> RequestOutput:
    collector = OutputCollector("r", "p", [112], n, wants_logprobs)
    for delta in deltas:
        collector.add(delta)
    return collector.output()


# ---- text and ends ---------------------------------------------------------------------------------------------------


def test_text_streams_and_the_last_delta_says_why_it_ended() -> None:
    processor = outputs()
    deltas = said(processor, update("ab"), update("c", finish_reason="length", times=TIMES))
    assert [delta.sequences[0].text for delta in deltas] == ["ab", "c"]
    assert [delta.finished for delta in deltas] == [False, True]
    assert deltas[-1].sequences[0].finish_reason == "length"
    assert deltas[-1].times == TIMES
    assert deltas[-1].request_id == "r"
    assert processor.finished


def test_the_token_that_ends_a_sequence_counts_but_is_no_text() -> None:
    (delta,) = said(outputs(), update("ab", more=[EOS], finish_reason="stop"))
    assert delta.sequences[0].text == "ab"
    assert delta.sequences[0].token_ids == [97, 98, EOS]
    assert delta.sequences[0].stop_reason is None


def test_a_stop_tokens_id_is_the_stop_reason() -> None:
    (delta,) = said(outputs(stop_token_ids=[ord("z")]), update("abz", finish_reason="stop", stop_reason=ord("z")))
    assert (delta.sequences[0].text, delta.sequences[0].stop_reason) == ("ab", ord("z"))


def test_detokenize_false_gives_tokens_without_text() -> None:
    (delta,) = said(outputs(detokenize=False), update("ab", finish_reason="length"))
    assert (delta.sequences[0].text, delta.sequences[0].token_ids) == ("", [97, 98])


def test_cached_tokens_are_those_of_the_sequence_that_computed_the_prompt() -> None:
    deltas = said(
        outputs(n=2), update("a", num_cached_tokens=1, finish_reason="length"), update("b", 1, num_cached_tokens=9, finish_reason="length")
    )
    assert collected(deltas, 2).num_cached_tokens == 1


def test_sequences_of_one_request_end_one_by_one() -> None:
    processor = outputs(n=2)
    first = said(processor, update("a"), update("x", 1), update("b", finish_reason="length"))
    assert not any(delta.finished for delta in first)
    last = said(processor, update("y", 1, finish_reason="length", times=TIMES))
    assert last[0].finished
    result = collected(first + last, 2)
    assert [(one.index, one.text) for one in result.outputs] == [(0, "ab"), (1, "xy")]


def test_a_rejected_request_ends_all_its_sequences_with_the_message() -> None:
    processor = outputs(n=2)
    (delta,) = said(processor, update(finish_reason="error", stop_reason="too big"))
    assert delta.finished
    assert [(one.index, one.finish_reason, one.stop_reason) for one in delta.sequences] == [
        (0, "error", "too big"),
        (1, "error", "too big"),
    ]
    assert processor.take_stopped() == [1]


def test_an_abort_ends_what_still_runs_and_lets_held_text_go() -> None:
    processor = outputs(n=2, stop=["STOP"])
    said(processor, update("done", finish_reason="length"), update("abST", 1))
    delta = processor.abort()
    assert delta.finished
    assert [(one.index, one.text, one.finish_reason) for one in delta.sequences] == [(1, "ST", "abort")]
    assert processor.finished
    assert delta.times is not None


# ---- stop strings ----------------------------------------------------------------------------------------------------


def test_a_stop_string_across_updates_ends_the_sequence_and_the_engine_is_to_be_told() -> None:
    processor = outputs(stop=["END"])
    deltas = said(processor, update("a"), update("E"), update("N"), update("Dxyz"))
    result = collected(deltas).outputs[0]
    assert (result.text, result.finish_reason, result.stop_reason) == ("a", "stop", "END")
    assert result.token_ids == list(b"aEND")
    assert "".join(delta.sequences[0].text for delta in deltas[:-1]) == "a"
    assert processor.finished
    assert processor.take_stopped() == [0]
    assert processor.take_stopped() == []


def test_updates_after_a_stop_string_are_ignored() -> None:
    processor = outputs(n=2, stop=["."])
    said(processor, update("a.b"))
    assert said(processor, update("more"), update("", finish_reason="abort")) == []
    assert not processor.finished


def test_logprobs_end_with_the_token_that_completes_the_stop_string() -> None:
    entries = [TokenLogprobs([byte], [-0.5], 1) for byte in b"a.bc"]
    (delta,) = said(outputs(stop=["."], logprobs=0), update("a.bc", logprobs=entries))
    assert [list(position) for position in delta.sequences[0].logprobs or []] == [[97], [46]]


def test_a_stop_string_in_the_engines_last_update_needs_no_word_to_the_engine() -> None:
    processor = outputs(stop=["."])
    (delta,) = said(processor, update("a.", finish_reason="length", times=TIMES))
    assert (delta.sequences[0].finish_reason, delta.sequences[0].stop_reason) == ("stop", ".")
    assert processor.take_stopped() == []


def test_a_stop_string_keeps_the_times_known_so_far() -> None:
    first = RequestTimes(1.0, 2.0, 3.0, 0.0, num_preemptions=2)
    deltas = said(outputs(stop=["."]), update("a", times=first), update("."))
    times = deltas[-1].times
    assert times is not None
    assert (times.arrival, times.first_scheduled, times.first_token, times.num_preemptions) == (1.0, 2.0, 3.0, 2)
    assert times.finished > 0.0


# ---- log probabilities -----------------------------------------------------------------------------------------------


def test_logprobs_name_the_sampled_token_first_and_the_likeliest_by_rank() -> None:
    entry = TokenLogprobs([99, 97, 98, 99], [-3.0, -1.0, -2.0, -3.0], 3)
    (delta,) = said(outputs(logprobs=3), update("c", logprobs=[entry], finish_reason="length"))
    (position,) = delta.sequences[0].logprobs or []
    assert [(token, one.logprob, one.rank, one.decoded_token) for token, one in position.items()] == [
        (99, -3.0, 3, "c"),
        (97, -1.0, 1, "a"),
        (98, -2.0, 2, "b"),
    ]


def test_no_logprobs_where_none_were_asked_for() -> None:
    (delta,) = said(outputs(), update("c", finish_reason="length"))
    assert delta.sequences[0].logprobs is None
    assert collected([delta]).outputs[0].cumulative_logprob is None


def test_cumulative_logprob_is_that_of_the_sampled_tokens() -> None:
    entries = [TokenLogprobs([97, 98], [-1.5, -0.5], 2), TokenLogprobs([98], [-0.25], 1)]
    deltas = said(outputs(logprobs=1), update("a", logprobs=entries[:1]), update("b", logprobs=entries[1:], finish_reason="length"))
    result = collected(deltas, wants_logprobs=True).outputs[0]
    assert result.cumulative_logprob == -1.75
    assert result.logprobs is not None
    assert len(result.logprobs) == 2


def test_prompt_logprobs_come_once_and_begin_with_none() -> None:
    entries = [TokenLogprobs([98], [-1.0], 1)]
    deltas = said(outputs(prompt_logprobs=0), update("a", prompt_logprobs=entries), update("b", finish_reason="length"))
    assert [delta.prompt_logprobs is not None for delta in deltas] == [True, False]
    positions = collected(deltas).prompt_logprobs
    assert positions is not None
    assert positions[0] is None
    assert list(positions[1] or {}) == [98]


# ---- the best of several ---------------------------------------------------------------------------------------------


def scored(text: str, index: int, logprob: float, **fields: Any) -> SequenceUpdate:
    return update(text, index, logprobs=[TokenLogprobs([byte], [logprob], 1) for byte in text.encode()], **fields)


def test_best_of_gives_the_best_means_at_the_end_and_nothing_before() -> None:
    processor = outputs(n=2, best_of=3)
    assert said(processor, scored("aaaa", 0, -1.0), scored("b", 1, -3.0, finish_reason="length")) == []
    assert said(processor, scored("a", 0, -1.0, finish_reason="length")) == []
    (delta,) = said(processor, scored("cc", 2, -0.5, finish_reason="length", times=TIMES))
    assert delta.finished
    assert delta.times == TIMES
    assert delta.num_discarded_tokens == 1
    # By the sum the long one would be last; by the mean it is second.
    assert [(one.index, one.text, one.logprobs) for one in delta.sequences] == [(0, "cc", None), (1, "aaaaa", None)]


def test_best_of_shows_logprobs_where_asked_for() -> None:
    processor = outputs(n=1, best_of=2, logprobs=0)
    said(processor, scored("a", 0, -2.0, finish_reason="length"))
    (delta,) = said(processor, scored("b", 1, -1.0, finish_reason="length"))
    assert [list(position) for position in delta.sequences[0].logprobs or []] == [[98]]


def test_best_of_aborted_gives_what_there_is() -> None:
    processor = outputs(n=1, best_of=2)
    said(processor, scored("ab", 1, -1.0))
    delta = processor.abort()
    assert [(one.index, one.text, one.finish_reason) for one in delta.sequences] == [(0, "ab", "abort")]


# ---- only the end counts ---------------------------------------------------------------------------------------------


def test_without_streaming_a_sequence_is_one_delta() -> None:
    processor = outputs(stream=False, logprobs=0)
    (delta,) = said(processor, scored("a", 0, -1.0), scored("b", 0, -1.0), scored("c", 0, -1.0, finish_reason="length"))
    assert (delta.sequences[0].text, delta.sequences[0].token_ids) == ("abc", [97, 98, 99])
    assert len(delta.sequences[0].logprobs or []) == 3


def test_without_streaming_a_stop_string_still_ends_a_sequence_early() -> None:
    processor = outputs(stream=False, stop=["."])
    said(processor, update("a"), update("."))
    assert processor.take_stopped() == [0]


def test_without_streaming_an_abort_keeps_what_was_generated() -> None:
    processor = outputs(stream=False)
    said(processor, update("ab"))
    assert processor.abort().sequences[0].text == "ab"


@given(text=st.text(min_size=1, max_size=30), cuts=st.lists(st.integers(1, 5), max_size=40))
def test_however_it_is_cut_the_text_is_the_same_streamed_or_not(text: str, cuts: list[int]) -> None:
    data = list(text.encode())
    updates = []
    for cut in [*cuts, len(data)]:
        if data:
            updates.append(SequenceUpdate("wire", 0, data[:cut]))
            data = data[cut:]
    updates[-1].finish_reason = "length"
    for stream in (True, False):
        assert collected(said(outputs(stream=stream), *updates)).outputs[0].text == text


# ---- merging and folding ---------------------------------------------------------------------------------------------


def test_merged_deltas_say_what_the_single_ones_said() -> None:
    entries = [TokenLogprobs([byte], [-1.0], 1) for byte in b"abc"]
    processor = outputs(n=2, logprobs=0, prompt_logprobs=0)
    deltas = said(
        processor,
        update("a", logprobs=entries[:1], prompt_logprobs=[], num_cached_tokens=5),
        update("b", logprobs=entries[1:2]),
        update("c", 1, logprobs=entries[2:], finish_reason="length"),
        update("", finish_reason="stop", more=[EOS], times=TIMES, num_cached_tokens=5),
    )
    assert len(deltas) == 4
    assert collected([merge_deltas(deltas)], 2, True) == collected(deltas, 2, True)
    assert collected([merge_deltas(deltas[:2]), merge_deltas(deltas[2:])], 2, True) == collected(deltas, 2, True)


def test_an_output_taken_early_is_not_changed_by_what_follows() -> None:
    collector = OutputCollector("r", "p", [112], 1, wants_logprobs=False)
    processor = outputs()
    for delta in said(processor, update("a")):
        collector.add(delta)
    early = collector.output()
    for delta in said(processor, update("b", finish_reason="length")):
        collector.add(delta)
    assert (early.outputs[0].text, early.outputs[0].token_ids, early.finished) == ("a", [97], False)
    late = collector.output()
    assert (late.outputs[0].text, late.finished) == ("ab", True)


@pytest.mark.parametrize("stream", [True, False])
def test_a_finished_request_has_times_even_if_the_engine_sent_none(stream: bool) -> None:
    processor = outputs(stream=stream, stop=["."])
    times = said(processor, update("."))[-1].times
    assert times is not None
    assert times.finished >= times.arrival > 0.0
