"""Any other model, told in its prompt to answer with JSON: one call or a list of them, perhaps in a fenced block."""

from __future__ import annotations

from octavo.frontend.tool_calls.call_object import CallSink, NotACallError, Reader, read_call, read_literal, skip_space
from octavo.frontend.tool_calls.parser import ToolCallParser, read_list

FENCE = "```"


class GenericParser(ToolCallParser):
    """Calls at the start of the answer, or in a fenced block anywhere in it."""

    openers = (f"{FENCE}json", f"{FENCE}tool_call")
    starts = "{["

    def read(self, sink: CallSink, opener: str) -> Reader:
        character = yield from skip_space()
        while True:
            if character == "[":
                yield from read_list(sink)
            else:
                yield from read_call(sink, character)
            character = yield from skip_space()
            if opener and character == FENCE[0]:
                return (yield from read_literal(FENCE, character))
            if character in ",;":
                character = yield from skip_space()
            elif character not in "{[":
                raise NotACallError
