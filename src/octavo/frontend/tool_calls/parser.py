"""The parser that all formats share: text until a call opens, then the format's own reader, then text again.

Whatever the pieces in which a text comes, the events together say the same: what is not yet certain is held back, and nothing that
was said is taken back. A streamed answer and a whole one are made by the same parser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from octavo.frontend.tool_calls.call_object import SPACE, CallSink, NotACallError, Reader, read_call, skip_space
from octavo.frontend.tool_calls.events import CallArguments, CallBegun, Event, Text, append


class ToolCallParser(ABC):
    """Reads one answer.

    Text that only looks like a call (malformed, or of a tool that was not offered) comes out as text. White space around calls is
    part of neither.

    Args:
        names: of the tools on offer.

    Attributes:
        openers: what stands before a call, anywhere in the text.
        starts: characters that begin a call without an opener, at the start of the answer only.
    """

    openers: tuple[str, ...] = ()
    starts: str = ""

    def __init__(self, names: frozenset[str]) -> None:
        self._sink = CallSink(names, self._begin, self._argue, self._settle)
        self._events: list[Event] = []
        self._calls = 0
        self._text = ""  # not yet looked at, or held back
        self._at_start = True
        self._reader: Reader | None = None
        self._opening = ""  # the opener and the space before it
        self._unsettled: list[str] = []  # what the reader was sent and may still turn out to be text
        self._settled = False  # whether the reader has made a call

    @abstractmethod
    def read(self, sink: CallSink, opener: str) -> Reader:
        """The format's reader of what follows an opener: one or several calls and what closes them."""

    def feed(self, text: str) -> list[Event]:
        """Take in the next piece of the answer; returns what it makes certain."""
        self._text += text
        while self._text and self._step():
            pass
        return self._take()

    def finish(self) -> list[Event]:
        """The answer has ended: what was held back is let go."""
        while self._reader is not None and not self._settled:
            self._give_up()
            while self._text and self._step():
                pass
        # An answer cut short after its arguments lacks no more than brackets, and white space after calls is no text.
        left = self._text if self._reader is None else ""
        if left and (left.strip() or not self._calls):
            append(self._events, Text(left))
        self._text = ""
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _step(self) -> bool:
        """Get on with the text; False when more of it has to come first."""
        return self._read_text() if self._reader is None else self._read_calls()

    def _read_text(self) -> bool:
        if self._at_start:
            begun = self._text.lstrip()
            if not begun:
                return False
            self._at_start = False
            if begun[0] in self.starts:
                space, self._text = self._text[: -len(begun)], begun
                return self._open("", space)
        found = [(at, opener) for opener in self.openers if (at := self._text.find(opener)) >= 0]
        if found:
            at, opener = min(found)
            text = self._text[:at].rstrip(SPACE)
            if text:
                append(self._events, Text(text))
            space, self._text = self._text[len(text) : at], self._text[at + len(opener) :]
            return self._open(opener, space)
        certain = len(self._text) - max((_overlap(self._text, opener) for opener in self.openers), default=0)
        certain = len(self._text[:certain].rstrip(SPACE)) if self.openers else certain
        if certain:
            append(self._events, Text(self._text[:certain]))
        self._text = self._text[certain:]
        return False

    def _open(self, opener: str, space: str) -> bool:
        self._opening, self._unsettled, self._settled = space + opener, [], False
        self._reader = self.read(self._sink, opener)
        next(self._reader)
        return True

    def _read_calls(self) -> bool:
        assert self._reader is not None
        for at, character in enumerate(self._text, 1):
            self._unsettled.append(character)
            try:
                self._reader.send(character)
            except StopIteration:
                self._reader = None
            except NotACallError:
                self._text = self._text[at:]
                self._give_up()
                return True
            if self._reader is None:
                self._text = self._text[at:]
                return True
        self._text = ""
        return False

    def _give_up(self) -> None:
        """It was no call, or what follows the last call is none: back to text. The opener will not be taken for one again."""
        if not self._settled and self._opening:
            append(self._events, Text(self._opening))
        self._text = "".join(self._unsettled) + self._text
        self._reader = None

    def _begin(self, name: str) -> None:
        self._events.append(CallBegun(self._calls, name))
        self._calls += 1
        self._settle()

    def _argue(self, text: str) -> None:
        append(self._events, CallArguments(self._calls - 1, text))
        self._settle()

    def _settle(self) -> None:
        self._settled = True
        self._unsettled.clear()


def read_list(sink: CallSink) -> Reader:
    """The rest of a JSON list of at least one call, after its bracket; returns the closing one.

    Raises:
        NotACallError: something in it is no call.
    """
    character = "["
    while character != "]":
        yield from read_call(sink, (yield from skip_space()))
        character = yield from skip_space()
        if character not in ",]":
            raise NotACallError
    return character


def _overlap(text: str, opener: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``opener``."""
    return next((size for size in range(min(len(text), len(opener) - 1), 0, -1) if text.endswith(opener[:size])), 0)
