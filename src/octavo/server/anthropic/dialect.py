"""From a chat's answers to Anthropic's: messages, and streams of events."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from octavo.frontend.outputs import RequestOutput
from octavo.server.anthropic.answers import (
    AnthropicUsage,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    MessageDelta,
    MessagesResponse,
    MessageStart,
    MessageStop,
    StopDelta,
    TextBlock,
    TextDelta,
)
from octavo.server.chat import ChatDialect
from octavo.server.error_shapes import anthropic_error
from octavo.server.generation import Generation, Piece
from octavo.server.responses import ChatChunkChoice
from octavo.server.stream import Framing, named_event

EVENTS = Framing("text/event-stream", named_event, b"", lambda error: named_event(anthropic_error(error.status, error.body)))


class MessagesDialect:
    """Says in Anthropic's words what a chat says.

    Args:
        chat: the chat that the request was put as; it has one choice.
        name: the served name.
    """

    def __init__(self, chat: ChatDialect, name: str) -> None:
        self.job = chat.job
        self._chat = chat
        self._name = name
        self._begun = False
        self._text_open = False
        self._stop = StopDelta(None, None)

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[msgspec.Struct]:
        """The message's start with the first news, then what is new of its text."""
        if not self._begun:
            self._begun = True
            yield MessageStart(self._message([], generation))
        for chunk in self._chat.chunks(piece, generation):
            for choice in chunk.choices:
                yield from self._news(choice)

    def closing(self, generation: Generation) -> Iterator[msgspec.Struct]:
        """The end of the text and of the message."""
        if self._text_open:
            yield ContentBlockStop(0)
        yield MessageDelta(self._stop, usage_of(generation))
        yield MessageStop()

    def result(self, outputs: list[RequestOutput], generation: Generation) -> MessagesResponse:
        """The whole message."""
        choice = self._chat.result(outputs, generation).choices[0]
        self._stop = _stop(choice.finish_reason, choice.stop_reason)
        return self._message([TextBlock(choice.message.content)] if choice.message.content else [], generation)

    def _news(self, choice: ChatChunkChoice) -> Iterator[msgspec.Struct]:
        if choice.delta.content:
            if not self._text_open:
                self._text_open = True
                yield ContentBlockStart(0, TextBlock(""))
            yield ContentBlockDelta(0, TextDelta(choice.delta.content))
        if choice.finish_reason is not None:
            self._stop = _stop(choice.finish_reason, choice.stop_reason)

    def _message(self, content: list[TextBlock], generation: Generation) -> MessagesResponse:
        stop, usage = self._stop, usage_of(generation)
        return MessagesResponse(self.job.request_id, self._name, content, stop.stop_reason, stop.stop_sequence, usage)


def usage_of(generation: Generation) -> AnthropicUsage:
    """The usage so far."""
    cached = generation.cached_tokens
    return AnthropicUsage(generation.prompt_tokens - cached, generation.completion_tokens, cache_read_input_tokens=cached)


def _stop(finish_reason: str | None, stop_reason: object) -> StopDelta:
    if finish_reason == "stop" and isinstance(stop_reason, str):
        return StopDelta("stop_sequence", stop_reason)
    return StopDelta("max_tokens" if finish_reason == "length" else "end_turn", None)
