"""From a chat's answers to Anthropic's: messages, and streams of events."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from octavo.frontend.outputs import RequestOutput
from octavo.server.anthropic.answers import (
    AnswerBlock,
    AnthropicUsage,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    MessageDelta,
    MessagesResponse,
    MessageStart,
    MessageStop,
    StopDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from octavo.server.chat import ChatDialect
from octavo.server.error_shapes import anthropic_error
from octavo.server.generation import Generation, Piece
from octavo.server.responses import ChatChunkChoice
from octavo.server.stream import Framing, named_event
from octavo.server.via_chat import arguments_object

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
        self._open: str | None = None  # the kind of the block that is being sent
        self._blocks = 0
        self._called = False
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
        """The end of the last block and of the message."""
        yield from self._close()
        yield MessageDelta(self._stop, usage_of(generation))
        yield MessageStop()

    def result(self, outputs: list[RequestOutput], generation: Generation) -> MessagesResponse:
        """The whole message."""
        choice = self._chat.result(outputs, generation).choices[0]
        message, blocks = choice.message, list[AnswerBlock]()
        if message.reasoning_content:
            blocks.append(ThinkingBlock(message.reasoning_content))
        if message.content:
            blocks.append(TextBlock(message.content))
        for call in message.tool_calls or ():
            blocks.append(ToolUseBlock(call.id, str(call.function.name), arguments_object(call.function.arguments)))
        self._stop = _stop(choice.finish_reason, choice.stop_reason, called=bool(message.tool_calls))
        return self._message(blocks, generation)

    def _news(self, choice: ChatChunkChoice) -> Iterator[msgspec.Struct]:
        if choice.delta.reasoning_content:
            yield from self._begin("thinking", ThinkingBlock(""))
            yield ContentBlockDelta(self._blocks - 1, ThinkingDelta(choice.delta.reasoning_content))
        if choice.delta.content:
            yield from self._begin("text", TextBlock(""))
            yield ContentBlockDelta(self._blocks - 1, TextDelta(choice.delta.content))
        for call in choice.delta.tool_calls or ():
            self._called = True
            if call.id:
                yield from self._begin(f"tool_use {call.index}", ToolUseBlock(call.id, str(call.function.name), {}))
            if call.function.arguments:
                yield ContentBlockDelta(self._blocks - 1, InputJsonDelta(call.function.arguments))
        if choice.finish_reason is not None:
            self._stop = _stop(choice.finish_reason, choice.stop_reason, called=self._called)

    def _begin(self, kind: str, block: AnswerBlock) -> Iterator[msgspec.Struct]:
        """Have a block of this kind open: the one that is, or a new one."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        yield ContentBlockStart(self._blocks, block)
        self._blocks += 1

    def _close(self) -> Iterator[msgspec.Struct]:
        if self._open is not None:
            self._open = None
            yield ContentBlockStop(self._blocks - 1)

    def _message(self, content: list[AnswerBlock], generation: Generation) -> MessagesResponse:
        stop, usage = self._stop, usage_of(generation)
        return MessagesResponse(self.job.request_id, self._name, content, stop.stop_reason, stop.stop_sequence, usage)


def usage_of(generation: Generation) -> AnthropicUsage:
    """The usage so far."""
    cached = generation.cached_tokens
    return AnthropicUsage(generation.prompt_tokens - cached, generation.completion_tokens, cache_read_input_tokens=cached)


def _stop(finish_reason: str | None, stop_reason: object, *, called: bool) -> StopDelta:
    if called and finish_reason != "length":
        return StopDelta("tool_use", None)
    if finish_reason == "stop" and isinstance(stop_reason, str):
        return StopDelta("stop_sequence", stop_reason)
    return StopDelta("max_tokens" if finish_reason == "length" else "end_turn", None)
