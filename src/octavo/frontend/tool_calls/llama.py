"""Llama 3: the whole answer is ``{"name": ..., "parameters": {...}}``, perhaps several with ``;`` between, perhaps after a mark."""

from __future__ import annotations

from octavo.frontend.tool_calls.call_object import CallSink, NotACallError, Reader, read_call, skip_space
from octavo.frontend.tool_calls.parser import ToolCallParser

OPEN = "<|python_tag|>"


class LlamaParser(ToolCallParser):
    """Calls at the start of the answer."""

    openers = (OPEN,)
    starts = "{"

    def read(self, sink: CallSink, opener: str) -> Reader:
        character = yield from skip_space()
        while True:
            yield from read_call(sink, character)
            if (yield from skip_space()) != ";":
                raise NotACallError
            character = yield from skip_space()
