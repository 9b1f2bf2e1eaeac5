"""One call written as a JSON object, ``{"name": ..., "arguments": {...}}``, read a character at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator

ARGUMENT_KEYS = ("arguments", "parameters")
"""What the families call a call's arguments."""
SPACE = " \t\r\n"

Reader = Generator[None, str, str]
"""Is sent characters; returns the first one that is no longer its own."""


class NotACallError(Exception):
    """The text is no call, from the last character sent on."""


class CallSink:
    """Where a call goes while it is read.

    Args:
        names: of the tools on offer.
        begun: told a call's name once it is certain that it is one.
        arguments: told the pieces of its arguments.
        settled: told that everything read so far belongs to the call, whatever follows.
    """

    def __init__(
        self, names: frozenset[str], begun: Callable[[str], None], arguments: Callable[[str], None], settled: Callable[[], None]
    ) -> None:
        self.names = names
        self.begun = begun
        self.arguments = arguments
        self.settled = settled


def skip_space() -> Reader:
    """Spaces and line ends; returns the first other character."""
    while (character := (yield)) in SPACE:
        pass
    return character


def read_literal(literal: str, first: str) -> Reader:
    """Exactly these characters, of which ``first`` was already sent; returns the last.

    Raises:
        NotACallError: something else.
    """
    character = first
    for index, expected in enumerate(literal):
        if index:
            character = yield
        if character != expected:
            raise NotACallError
    return character


def read_arguments(sink: CallSink, first: str) -> Reader:
    """A JSON object that is handed on as it comes; returns its closing brace.

    Only its nesting is followed. What a model gets wrong inside is the client's to see: nothing is dropped or mended.

    Raises:
        NotACallError: it does not begin like an object.
    """
    if first != "{":
        raise NotACallError
    depth, inside, escaped = 0, False, False
    character = first
    while True:
        sink.arguments(character)
        if inside:
            inside = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            inside = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if depth == 0:
                return character
        character = yield


def read_call(sink: CallSink, first: str) -> Reader:
    """A call as a JSON object, of which ``first`` was already sent; returns its closing brace.

    The call is begun once its name and the opening of its arguments are read; arguments that stand before the name wait for it.
    Other members are skipped.

    Raises:
        NotACallError: it is no JSON object, has no name, or calls a tool that is not on offer.
    """
    if first != "{":
        raise NotACallError
    name: str | None = None
    waiting: list[str] = []
    read = False
    character = yield from skip_space()
    while character != "}":
        key = yield from _read_string(character)
        yield from read_literal(":", (yield from skip_space()))
        character = yield from skip_space()
        if key == "name":
            name = yield from _read_string(character)
            if name not in sink.names:
                raise NotACallError
            character = yield from skip_space()
        elif key in ARGUMENT_KEYS and not read:
            read = True
            if name is None:
                held = CallSink(sink.names, sink.begun, waiting.append, sink.settled)
                yield from read_arguments(held, character)
            else:
                if character != "{":
                    raise NotACallError
                sink.begun(name)
                yield from read_arguments(sink, character)
                sink.settled()
            character = yield from skip_space()
        else:
            character = yield from _skip_value(character)
        if character == ",":
            character = yield from skip_space()
        elif character != "}":
            raise NotACallError
    if name is None:
        raise NotACallError
    if waiting or not read:
        sink.begun(name)
        sink.arguments("".join(waiting) or "{}")
    sink.settled()
    return character


def _read_string(first: str) -> Reader:
    """A JSON string; returns its value."""
    if first != '"':
        raise NotACallError
    raw, escaped = [first], False
    while True:
        character = yield
        raw.append(character)
        if character == '"' and not escaped:
            break
        escaped = character == "\\" and not escaped
    try:
        return str(json.loads("".join(raw)))
    except ValueError:
        raise NotACallError from None


def _skip_value(first: str) -> Reader:
    """Any JSON value; returns the first character after it that is no space."""
    if first == '"':
        yield from _read_string(first)
        return (yield from skip_space())
    if first in "{[":
        yield from read_arguments(CallSink(frozenset(), lambda _: None, lambda _: None, lambda: None), "{")
        return (yield from skip_space())
    character = first
    while character not in ",}":
        if character in '"{[:':
            raise NotACallError
        character = yield
    return character
