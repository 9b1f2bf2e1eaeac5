"""Hermes, Qwen and many others: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, once a call."""

from __future__ import annotations

from octavo.frontend.tool_calls.call_object import CallSink, Reader, read_call, read_literal, skip_space
from octavo.frontend.tool_calls.parser import ToolCallParser

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(ToolCallParser):
    """Calls in tags."""

    openers = (OPEN,)

    def read(self, sink: CallSink, opener: str) -> Reader:
        yield from read_call(sink, (yield from skip_space()))
        return (yield from read_literal(CLOSE, (yield from skip_space())))
