"""Reasoning taken apart from the answer: the same for every split of the text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.frontend.reasoning import KNOWN_TAGS, ReasoningSplitter, ReasoningTags, find_reasoning_tags

TAGS = ReasoningTags("<think>", "</think>")


def split(pieces: list[str], opened: bool) -> tuple[str, str]:
    splitter = ReasoningSplitter(TAGS, opened)
    parts = [splitter.feed(piece) for piece in pieces] + [splitter.finish()]
    return "".join(reasoning for reasoning, _ in parts), "".join(content for _, content in parts)


TEXTS = st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think>", " ", "\n", "a", "Two."]), max_size=12).map("".join)


@given(TEXTS, st.booleans(), st.lists(st.integers(0, 99), max_size=6))
def test_any_split_gives_the_same(text: str, opened: bool, places: list[int]) -> None:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    whole = split([text], opened)
    assert split([text[begin:end] for begin, end in itertools.pairwise(edges)], opened) == whole
    assert split(list(text), opened) == whole
    kept = "".join(whole).split()
    assert "".join(kept).replace("<think>", "").replace("</think>", "") in "".join(text.split()).replace("<think>", "").replace(
        "</think>", ""
    )


@given(st.text(alphabet="ab <\n", max_size=20), st.text(alphabet="ab <\n", max_size=20))
def test_both_parts_come_back_without_the_space_around_them(reasoning: str, content: str) -> None:
    for opened, text in ((False, f"<think>{reasoning}</think>{content}"), (True, f"{reasoning}</think>{content}")):
        assert split([text], opened) == (reasoning.strip(), content.lstrip())


@pytest.mark.parametrize(
    ("prompt", "opened"), [("<think>\n", True), ("<think></think>", False), ("x", False), ("<think>a</think><think>", True)]
)
def test_a_prompt_may_open_the_reasoning(prompt: str, opened: bool) -> None:
    assert TAGS.opened_by(prompt) is opened


def test_tags_are_found_in_template_or_vocabulary() -> None:
    assert find_reasoning_tags("... </think> ...", lambda text: False) == TAGS
    assert find_reasoning_tags("", lambda text: text in ("[THINK]", "[/THINK]")) == KNOWN_TAGS[1]
    assert find_reasoning_tags("", lambda text: text == "<think>") is None
