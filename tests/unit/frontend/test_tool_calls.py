"""Calls in text: what each format's parser finds, the same for every split of the text."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.frontend.tool_calls.events import CallArguments, CallBegun, Text
from octavo.frontend.tool_calls.generic import GenericParser
from octavo.frontend.tool_calls.hermes import HermesParser
from octavo.frontend.tool_calls.llama import LlamaParser
from octavo.frontend.tool_calls.mistral import MistralParser
from octavo.frontend.tool_calls.parser import ToolCallParser

NAMES = frozenset({"get_weather", "get_time", "get"})
PARIS = '{"city": "Paris"}'
ODD = '{"a": "}\\"{[", "b": [1, {"c": null}], "d": "é\\\\"}'

Found = tuple[str, list[tuple[str, str]]]


def parse(parser: ToolCallParser, pieces: list[str]) -> Found:
    """The text, and (name, arguments) of each call."""
    text, calls = "", []
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    for event in events:
        match event:
            case Text(more):
                text += more
            case CallBegun(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case CallArguments(index, more):
                assert index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + more)
    return text, calls


def call(name: str = "get_weather", arguments: str = PARIS, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


CASES: list[tuple[type[ToolCallParser], str, Found]] = [
    (HermesParser, "Just text.\n", ("Just text.\n", [])),
    (HermesParser, "", ("", [])),
    (HermesParser, " \n ", (" \n ", [])),
    (HermesParser, f"<tool_call>\n{call()}\n</tool_call>", ("", [("get_weather", PARIS)])),
    (HermesParser, f"<tool_call>{call(arguments=ODD)}</tool_call>", ("", [("get_weather", ODD)])),
    (
        HermesParser,
        f"I look.\n<tool_call>\n{call()}\n</tool_call>\n<tool_call>\n{call('get_time', '{}')}\n</tool_call>\n",
        ("I look.", [("get_weather", PARIS), ("get_time", "{}")]),
    ),
    (HermesParser, f"<tool_call>{call('steal')}</tool_call>", (f"<tool_call>{call('steal')}</tool_call>", [])),
    (HermesParser, "a <tool_call> tag", ("a <tool_call> tag", [])),
    (HermesParser, "ends in <tool_c", ("ends in <tool_c", [])),
    (HermesParser, "<tool_call>not json</tool_call> then text", ("<tool_call>not json</tool_call> then text", [])),
    (HermesParser, f"<tool_call>no <tool_call>{call()}</tool_call>", ("<tool_call>no", [("get_weather", PARIS)])),
    (HermesParser, f'<tool_call>{{"arguments": {PARIS}, "name": "get"}}</tool_call>', ("", [("get", PARIS)])),
    (HermesParser, '<tool_call>{"name": "get"}</tool_call>', ("", [("get", "{}")])),
    (HermesParser, f'<tool_call>{{"id": [1], "x": 2, "name": "get", "y": "z", "arguments": {PARIS}}}</tool_call>', ("", [("get", PARIS)])),
    (HermesParser, '<tool_call>{"name": "get_weather", "arguments": {"city": "Par', ("", [("get_weather", '{"city": "Par')])),
    (HermesParser, f"<tool_call>{call()}", ("", [("get_weather", PARIS)])),
    (HermesParser, f"<tool_call>{call()[:-1]}", ("", [("get_weather", PARIS)])),
    (HermesParser, f"<tool_call>{call()} oops", (" oops", [("get_weather", PARIS)])),
    (HermesParser, '<tool_call>{"name": "get_we', ('<tool_call>{"name": "get_we', [])),
    (
        HermesParser,
        '<tool_call>{"name": "get", "arguments": "{}"}</tool_call>',
        ('<tool_call>{"name": "get", "arguments": "{}"}</tool_call>', []),
    ),
    (MistralParser, f"[TOOL_CALLS][{call()}, {call('get', '{}')}]", ("", [("get_weather", PARIS), ("get", "{}")])),
    (MistralParser, f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]get[ARGS]{{}}", ("", [("get_weather", PARIS), ("get", "{}")])),
    (MistralParser, f"Well. [TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{PARIS}", ("Well.", [("get_weather", PARIS)])),
    (MistralParser, f"[TOOL_CALLS] get_weather{PARIS}", ("", [("get_weather", PARIS)])),
    (MistralParser, "[TOOL_CALLS]other[ARGS]{}", ("[TOOL_CALLS]other[ARGS]{}", [])),
    (MistralParser, "[TOOL_CALLS]get_", ("[TOOL_CALLS]get_", [])),
    (MistralParser, "[TOOL_CALLS][]", ("[TOOL_CALLS][]", [])),
    (LlamaParser, call(key="parameters"), ("", [("get_weather", PARIS)])),
    (LlamaParser, f"<|python_tag|>{call(key='parameters')}; {call('get', '{}')}", ("", [("get_weather", PARIS), ("get", "{}")])),
    (LlamaParser, '{"a": 1}', ('{"a": 1}', [])),
    (LlamaParser, f"Like so: {call()}", (f"Like so: {call()}", [])),
    (LlamaParser, f"\n{call()} and more", (" and more", [("get_weather", PARIS)])),
    (GenericParser, f" \n{call()}\n", ("", [("get_weather", PARIS)])),
    (GenericParser, f"[{call()},\n {call('get', '{}')}]", ("", [("get_weather", PARIS), ("get", "{}")])),
    (GenericParser, f"{call()}\n{call('get', '{}')}", ("", [("get_weather", PARIS), ("get", "{}")])),
    (GenericParser, f"```json\n{call()}\n```", ("", [("get_weather", PARIS)])),
    (GenericParser, f"So:\n```json\n[{call()}]\n```\nDone.", ("So:\nDone.", [("get_weather", PARIS)])),
    (GenericParser, "```json\n[1, 2]\n```", ("```json\n[1, 2]\n```", [])),
    (GenericParser, "[1, 2]", ("[1, 2]", [])),
    (GenericParser, "  {not json", ("  {not json", [])),
]


@pytest.mark.parametrize(("parser", "text", "found"), CASES)
def test_what_is_found_whole_and_by_characters(parser: type[ToolCallParser], text: str, found: Found) -> None:
    assert parse(parser(NAMES), [text]) == found
    assert parse(parser(NAMES), list(text)) == found


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(edges)]


MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "```json", "```", *'\n []{};,":\\']
PARTS = [call(), call("get", "{}"), call("no"), call(arguments=ODD, key="parameters"), "get_weather", PARIS, ODD, "name", "text"]
BITS = MARKS + PARTS


@given(st.lists(st.sampled_from(BITS) | st.text(max_size=3), max_size=12).map("".join), st.lists(st.integers(0, 500), max_size=12))
def test_any_split_finds_the_same_and_no_call_loses_nothing(text: str, places: list[int]) -> None:
    for kind in (HermesParser, MistralParser, LlamaParser, GenericParser):
        whole = parse(kind(NAMES), [text])
        assert parse(kind(NAMES), cut(text, places)) == whole
        assert parse(kind(NAMES), list(text)) == whole
        assert all(name in NAMES for name, _ in whole[1])
        if not whole[1]:
            assert whole[0] == text


@given(
    st.dictionaries(st.text(max_size=5), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists), max_size=4),
    st.integers(1, 9),
)
def test_arguments_come_back_as_they_were(arguments: dict[str, Any], size: int) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    for kind, text in (
        (HermesParser, f"<tool_call>\n{call(arguments=written)}\n</tool_call>"),
        (MistralParser, f"[TOOL_CALLS]get_weather[ARGS]{written}"),
        (LlamaParser, call(arguments=written, key="parameters")),
        (GenericParser, call(arguments=written)),
    ):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert parse(kind(NAMES), pieces) == ("", [("get_weather", written)])
