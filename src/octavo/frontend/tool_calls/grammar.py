"""Grammars that make a model call: in its own format, with arguments that fit the tool's schema. In llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from octavo.frontend.tool_calls import hermes, mistral
from octavo.frontend.tool_calls.formats import ToolFormat

Spell = Callable[[str], str]
"""A mark of the format as Lark: the text in quotes (``quoted``), or the special token that it is."""

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""What a function without ``parameters`` takes, as OpenAI has it."""
_AS_MODELS_WRITE: dict[str, Any] = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""White space where models put it, and nowhere else: none can go on for ever."""


def calls_grammar(functions: Sequence[dict[str, Any]], style: ToolFormat, spell: Spell, *, several: bool, answer: str | None = None) -> str:
    """A grammar of one call or more.

    Args:
        functions: those that may be called, with ``name`` and perhaps ``parameters``, a JSON schema; at least one.
        style: how the model writes calls.
        spell: see ``Spell``.
        several: whether more than one call may be made.
        answer: what may stand instead of calls, as the right side of a rule; None: a call is required.
    """
    rules = [f"start: {'calls | answer' if answer else 'calls'}", f"calls: {_calls(style, spell, several=several)}"]
    if answer:
        rules.append(f"answer: {answer}")
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(functions))))
    for index, function in enumerate(functions):
        arguments = "%json " + json.dumps((function.get("parameters") or _NO_ARGUMENTS) | _AS_MODELS_WRITE)
        rules.append(f"call_{index}: {_call(function['name'], arguments, style, spell)}")
    return "\n".join(rules)


def quoted(text: str) -> str:
    """A text as a Lark literal."""
    return json.dumps(text, ensure_ascii=False)


def _calls(style: ToolFormat, spell: Spell, *, several: bool) -> str:
    """The calls, with what stands around and between them."""
    one, between, before, after = "call", ", ", "", ""
    match style.name:
        case "hermes":
            one, between = f'{spell(hermes.OPEN)} "\\n" call "\\n" {spell(hermes.CLOSE)}', "\n"
        case "mistral":
            before, after = f'{spell(mistral.OPEN)} "["', '"]"'
        case "mistral_named":
            one, between = f"{spell(mistral.OPEN)} call", ""
        case "llama":
            between = "; "
        case _ if several:
            return f'call | "[" call ({quoted(between)} call)+ "]"'
    rest = f"({quoted(between)} {one})*" if between else f"({one})*"
    return " ".join(part for part in (before, one, rest if several else "", after) if part)


def _call(name: str, arguments: str, style: ToolFormat, spell: Spell) -> str:
    if style.name == "mistral_named":
        return f"{quoted(name)} {spell(mistral.ARGUMENTS)} {arguments}"
    key = "parameters" if style.name == "llama" else "arguments"
    head = f'{{"name": {json.dumps(name)}, "{key}": '
    return f"{quoted(head)} {arguments} {quoted('}')}"
