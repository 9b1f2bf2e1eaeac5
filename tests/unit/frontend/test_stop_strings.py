"""Stop strings against the obvious answer on the whole text."""

from __future__ import annotations

import codecs
from typing import Any

import pytest
from byte_model import EOS, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from octavo.frontend.stop_strings import SequenceText, StopStrings, TextDelta
from octavo.sampling_params import SamplingParams

TOKENIZER = byte_tokenizer()  # a token a byte; 256 is </s>

letters = st.text("ab", max_size=24) | st.text("aé😀", max_size=12)
stops = st.lists(st.text("ab", min_size=1, max_size=5) | st.text("aé😀", min_size=1, max_size=3), min_size=1, max_size=4)


def first_stop(text: str, stop: list[str], after: int = 0) -> tuple[int, str] | None:
    """End and string of the stop that counts: the earliest end past ``after``, then the longest. Slow and plain."""
    for end in range(after + 1, len(text) + 1):
        found = [candidate for candidate in stop if text[:end].endswith(candidate)]
        if found:
            return end, max(found, key=len)
    return None


def must_hold(text: str, stop: list[str]) -> int:
    """Characters at the text's end that may be the beginning of a stop string."""
    lengths = [length for candidate in stop for length in range(1, len(candidate)) if text.endswith(candidate[:length])]
    return max(lengths, default=0)


# ---- StopStrings: text in pieces -------------------------------------------------------------------------------------


@given(text=letters, stop=stops, cuts=st.lists(st.integers(0, 24), max_size=6), include=st.booleans())
def test_any_cut_of_a_text_stops_where_the_whole_text_does(text: str, stop: list[str], cuts: list[int], include: bool) -> None:
    cuts = sorted(min(cut, len(text)) for cut in cuts)
    filter_ = StopStrings(stop, include)
    wanted = first_stop(text, stop)
    shown = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        new, stopped = filter_.push(text[start:end])
        shown += new
        if stopped is not None:
            assert wanted is not None
            assert stopped == wanted[1]
            assert wanted[0] <= end
            assert shown == text[: wanted[0] if include else wanted[0] - len(stopped)]
            return
        assert wanted is None or end < wanted[0]
        held = 0 if include else must_hold(text[:end], stop)
        assert shown == text[: end - held], "exactly what may become a stop string is held back"
    assert wanted is None
    assert shown + filter_.flush() == text


def test_of_stops_that_end_together_the_longest_counts() -> None:
    assert StopStrings(["b", "ab"]).push("xab") == ("x", "ab")


def test_a_stop_that_ends_first_counts_even_if_another_began_before() -> None:
    assert StopStrings(["abcd", "bc"]).push("abcd") == ("a", "bc")


def test_an_unarmed_stop_string_is_text_and_may_overlap_one_that_counts() -> None:
    filter_ = StopStrings(["aa"])
    assert filter_.push("aa", armed=False) == ("a", None)
    assert filter_.push("a") == ("", "aa")


def test_a_huge_stop_string_costs_only_what_matches_of_it() -> None:
    filter_ = StopStrings(["a" * 1_000_000 + "b", "b" * 1_000_000])
    assert filter_.push("x" * 10) == ("x" * 10, None)
    assert filter_.push("a" * 50) == ("", None)
    assert filter_.push("c") == ("a" * 50 + "c", None)
    assert all(len(pattern._borders) <= 52 for patterns in filter_._starts.values() for pattern in patterns)


# ---- SequenceText: tokens --------------------------------------------------------------------------------------------


def run(tokens: list[int], sizes: list[int], ended_by_token: bool = False, **params: Any) -> list[TextDelta]:
    """Push tokens in portions of the given sizes, the rest with the end."""
    text = SequenceText(TOKENIZER, SamplingParams(max_tokens=None, **params), TOKENIZER.encode("prompt"))
    deltas, start = [], 0
    for size in sizes:
        deltas.append(text.push(tokens[start : start + size]))
        if deltas[-1].stop is not None:
            return deltas
        start += size
    return [*deltas, text.push(tokens[start:], finished=True, ended_by_token=ended_by_token)]


@given(
    data=st.text("ab", max_size=20).map(str.encode) | st.text("aé😀", max_size=8).map(str.encode) | st.binary(max_size=12),
    stop=stops | st.just([]),
    sizes=st.lists(st.integers(0, 5), max_size=8),
    include=st.booleans(),
    min_tokens=st.integers(0, 12),
    by_token=st.booleans(),
)
def test_any_cut_of_tokens_gives_the_whole_texts_answer(
    data: bytes, stop: list[str], sizes: list[int], include: bool, min_tokens: int, by_token: bool
) -> None:
    tokens = list(data) + [EOS] * by_token
    deltas = run(tokens, sizes, by_token, stop=stop, include_stop_str_in_output=include, min_tokens=min_tokens)
    text, used = "".join(delta.text for delta in deltas), sum(delta.num_tokens_used for delta in deltas)
    whole = data.decode("utf-8", "replace")
    # The text that the first min_tokens tokens complete: no stop string that ends in it counts.
    settled = TextByTokens(data).up_to(min_tokens)
    wanted = first_stop(whole, stop, after=settled)
    if wanted is None:
        assert (text, used, deltas[-1].stop) == (whole, len(tokens), None)
        return
    end, stopped = wanted
    assert deltas[-1].stop == stopped
    assert text == whole[: end if include else end - len(stopped)]
    assert used == min(TextByTokens(data).tokens_for(end) or len(tokens), len(tokens))


class TextByTokens:
    """How much text each number of byte tokens makes certain, by Python's own incremental decoder."""

    def __init__(self, data: bytes) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.lengths = [0]
        for byte in data:
            self.lengths.append(self.lengths[-1] + len(decoder.decode(bytes([byte]))))
        self.tail = len(decoder.decode(b"", final=True))

    def up_to(self, tokens: int) -> int:
        """Characters certain after that many tokens; an incomplete character at the end comes with the last token."""
        return self.lengths[tokens] if tokens < len(self.lengths) - 1 else self.lengths[-1] + self.tail

    def tokens_for(self, end: int) -> int | None:
        """Tokens that make the first ``end`` characters certain; None if only the end of the sequence does."""
        return next((index for index, length in enumerate(self.lengths) if length >= end), None)


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    deltas = run(list(b"one STOP two"), [5, 3], stop=["STOP"])
    assert [(delta.text, delta.stop) for delta in deltas] == [("one ", None), ("", "STOP")]
    assert sum(delta.num_tokens_used for delta in deltas) == len("one STOP")


def test_tokens_behind_the_stop_in_the_same_push_are_not_the_answers() -> None:
    assert run(list(b"one STOP two"), [12], stop=["STOP"]) == [TextDelta("one ", 8, "STOP")]


def test_held_text_is_given_out_at_the_end() -> None:
    deltas = run(list(b"one STO"), [7], stop=["STOP"])
    assert deltas == [TextDelta("one ", 7), TextDelta("STO", 0)]


def test_a_stop_token_is_counted_but_not_shown() -> None:
    assert run([*b"hi", EOS], [], ended_by_token=True) == [TextDelta("hi", 3)]
    assert run([*b"hi", ord("!")], [], ended_by_token=True) == [TextDelta("hi", 3)]


def test_a_stop_token_is_shown_where_asked_and_not_hidden_as_special() -> None:
    shown = {"include_stop_str_in_output": True, "skip_special_tokens": False}
    assert run([*b"hi", EOS], [], ended_by_token=True, **shown)[-1].text == "hi</s>"
    assert run([*b"hi", EOS], [], ended_by_token=True, include_stop_str_in_output=True)[-1].text == "hi"
    assert run([*b"hi", EOS], [], ended_by_token=True, skip_special_tokens=False)[-1].text == "hi"
    assert run([*b"hi!"], [], ended_by_token=True, include_stop_str_in_output=True)[-1].text == "hi!"


def test_the_last_token_is_shown_where_length_ended_the_sequence() -> None:
    assert run(list(b"hi!"), [])[-1].text == "hi!"


def test_a_stop_string_before_the_stop_token_wins() -> None:
    assert run([*b"hi!", EOS], [], ended_by_token=True, stop=["!"]) == [TextDelta("hi", 3, "!")]


@pytest.mark.parametrize(("min_tokens", "text"), [(0, ""), (1, "a"), (2, "aa"), (3, "aaa."), (4, "aaa."), (5, "aaa.a")])
def test_no_stop_string_counts_within_the_first_min_tokens(min_tokens: int, text: str) -> None:
    assert "".join(delta.text for delta in run(list(b"aaa.a"), [2], stop=["a"], min_tokens=min_tokens)) == text


def test_a_broken_character_at_the_end_may_be_a_stop_string_after_min_tokens() -> None:
    broken = list("😀".encode()[:2])
    assert run(broken, [], stop=["\ufffd"]) == [TextDelta("", 2, "\ufffd")]
    assert run(broken, [], stop=["\ufffd"], min_tokens=2) == [TextDelta("\ufffd", 2)]


def test_nothing_follows_the_end() -> None:
    text = SequenceText(TOKENIZER, SamplingParams(stop=["x"]), [])
    assert text.push(list(b"ax")).stop == "x"
    assert text.push(list(b"more"), finished=True) == TextDelta("", 0, "x")
    text = SequenceText(TOKENIZER, SamplingParams(), [])
    assert text.push(list(b"a"), finished=True) == TextDelta("a", 1)
    assert text.push(list(b"b")) == TextDelta("", 0)


def test_no_text_is_made_where_none_is_wanted() -> None:
    text = SequenceText(TOKENIZER, SamplingParams(detokenize=False), [])
    assert text.push(list(b"abc"), finished=True) == TextDelta("", 3)
