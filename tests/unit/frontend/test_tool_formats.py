"""Which format a model has, the grammars that hold it to calls, and tools in plain words."""

from __future__ import annotations

import itertools
import json
from typing import Any

import llguidance
import pytest

from octavo.frontend.tool_calls.events import CallArguments, CallBegun, Text
from octavo.frontend.tool_calls.formats import GENERIC, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, ToolFormat, find_tool_format
from octavo.frontend.tool_calls.grammar import calls_grammar, quoted
from octavo.frontend.tool_calls.prompt import describe_tools

STYLES = [HERMES, MISTRAL, MISTRAL_NAMED, LLAMA, GENERIC]
FUNCTIONS: list[dict[str, Any]] = [
    {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    {"name": "stop"},
]
PARIS = '{"city": "Paris"}'
ONE = {
    "hermes": f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>',
    "mistral": f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {PARIS}}}]',
    "mistral_named": f"[TOOL_CALLS]get_weather[ARGS]{PARIS}",
    "llama": f'{{"name": "get_weather", "parameters": {PARIS}}}',
    "generic": f'{{"name": "get_weather", "arguments": {PARIS}}}',
}
TWO = {
    "hermes": ONE["hermes"] + '\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
    "mistral": ONE["mistral"][:-1] + ', {"name": "stop", "arguments": {}}]',
    "mistral_named": ONE["mistral_named"] + "[TOOL_CALLS]stop[ARGS]{}",
    "llama": ONE["llama"] + '; {"name": "stop", "parameters": {}}',
    "generic": f'[{ONE["generic"]}, {{"name": "stop", "arguments": {{}}}}]',
}


@pytest.fixture(scope="module")
def bytes_tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer("byte")


def accepts(tokenizer: llguidance.LLTokenizer, grammar: str, text: str) -> bool:
    """Whether the whole text is of the grammar."""
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(grammar))
    assert not matcher.get_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_grammar_takes_calls_in_its_format_alone(bytes_tokenizer: llguidance.LLTokenizer, style: ToolFormat) -> None:
    single = calls_grammar(FUNCTIONS, style, quoted, several=False)
    several = calls_grammar(FUNCTIONS, style, quoted, several=True)
    one, two = ONE[style.name], TWO[style.name]
    assert accepts(bytes_tokenizer, single, one) and accepts(bytes_tokenizer, several, one)
    assert accepts(bytes_tokenizer, several, two) and not accepts(bytes_tokenizer, single, two)
    for wrong in (one.replace("Paris", "Oslo"), one.replace("get_weather", "steal"), one[:-1], "Hello", ""):
        assert not accepts(bytes_tokenizer, several, wrong), wrong
    either = calls_grammar(FUNCTIONS, style, quoted, several=True, answer='%json {"type": "boolean"}')
    assert (
        accepts(bytes_tokenizer, either, one) and accepts(bytes_tokenizer, either, "true") and not accepts(bytes_tokenizer, either, "yes")
    )


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_the_parser_reads_what_the_grammar_takes(style: ToolFormat) -> None:
    parser = style.parser(frozenset({"get_weather", "stop"}))
    events = [event for character in TWO[style.name] for event in parser.feed(character)] + parser.finish()
    assert not [event for event in events if isinstance(event, Text)]
    assert [event.name for event in events if isinstance(event, CallBegun)] == ["get_weather", "stop"]
    arguments = itertools.groupby((event for event in events if isinstance(event, CallArguments)), lambda event: event.index)
    assert [json.loads("".join(event.text for event in group)) for _, group in arguments] == [{"city": "Paris"}, {}]


@pytest.mark.parametrize(
    ("template", "tokens", "style"),
    [
        ("{{ tools }} <tool_call>", (), HERMES),
        ("{{ tools }} <tool_call><function=", (), GENERIC),
        ("{{ tools }} [TOOL_CALLS]", (), MISTRAL),
        ("{{ tools }} [TOOL_CALLS] [ARGS]", (), MISTRAL_NAMED),
        ("{{ tools }}", ("[TOOL_CALLS]",), MISTRAL),
        ("{{ tools }} <|python_tag|>", (), LLAMA),
        ("{{ tools }}", ("<|python_tag|>",), LLAMA),
        ("{{ tools }}", (), GENERIC),
        ("{{ messages }}", ("<tool_call>",), GENERIC),
        ("", (), GENERIC),
    ],
)
def test_the_format_is_told_from_template_and_vocabulary(template: str, tokens: tuple[str, ...], style: ToolFormat) -> None:
    assert find_tool_format(template, lambda text: text in tokens) is style


def test_tools_in_plain_words_leave_the_messages_alone() -> None:
    messages = [{"role": "user", "content": "hi"}]
    told = describe_tools(messages, [{"type": "function", "function": FUNCTIONS[0]}])
    assert messages == [{"role": "user", "content": "hi"}] and told[1:] == messages
    assert told[0]["role"] == "system" and '"get_weather"' in told[0]["content"]
    parts = describe_tools([{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}], [{"function": FUNCTIONS[1]}])
    assert parts[0]["content"].startswith("Be kind.\n\n")
    assert describe_tools([{"role": "tool", "content": [{"type": "text", "text": "21"}], "name": "f"}], []) == [
        {"role": "user", "content": "The function f returned:\n21"}
    ]
