"""What a parser finds in a model's text: text for the reader, calls begun, and pieces of their arguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Text:
    """Text that is no call."""

    text: str


@dataclass(slots=True)
class CallBegun:
    """The model calls a tool that it was offered; ``index`` counts the calls of one answer from 0."""

    index: int
    name: str


@dataclass(slots=True)
class CallArguments:
    """The next piece of a call's arguments, which together are JSON text."""

    index: int
    text: str


Event = Text | CallBegun | CallArguments


def append(events: list[Event], event: Event) -> None:
    """Add an event, joined with the last one where both are pieces of one text."""
    last = events[-1] if events else None
    if isinstance(last, Text) and isinstance(event, Text):
        last.text += event.text
        return
    if isinstance(last, CallArguments) and isinstance(event, CallArguments) and last.index == event.index:
        last.text += event.text
        return
    events.append(event)
