"""Mistral: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]``, or since 2025 ``[TOOL_CALLS]name[ARGS]{...}``, once a call."""

from __future__ import annotations

from octavo.frontend.tool_calls.call_object import CallSink, NotACallError, Reader, read_arguments, skip_space
from octavo.frontend.tool_calls.parser import ToolCallParser, read_list

OPEN, CALL_ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class MistralParser(ToolCallParser):
    """Calls after a mark that is one token; nothing closes them."""

    openers = (OPEN,)

    def read(self, sink: CallSink, opener: str) -> Reader:
        character = yield from skip_space()
        if character == "[":
            return (yield from read_list(sink))
        return (yield from _read_named(sink, character))


def _read_named(sink: CallSink, first: str) -> Reader:
    """A name, perhaps ``[CALL_ID]...`` and ``[ARGS]``, and the arguments."""
    head, character = "", first
    while character != "{":
        head += character
        name, bracket, _ = head.partition("[")
        if (bracket and name.strip() not in sink.names) or not any(known.startswith(name.strip()) for known in sink.names):
            raise NotACallError
        character = yield
    name = head.partition("[")[0].strip()
    if name not in sink.names:
        raise NotACallError
    sink.begun(name)
    return (yield from read_arguments(sink, character))
