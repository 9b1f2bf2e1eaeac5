"""From a chat's answers to Ollama's, whole or as JSON lines."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from octavo.frontend.outputs import RequestOutput
from octavo.server.chat import ChatDialect
from octavo.server.error_shapes import OllamaErrorBody
from octavo.server.generation import Generation, Piece
from octavo.server.ollama.answers import OllamaAnswer, OllamaCalledFunction, OllamaMessageAnswer, OllamaToolCallAnswer, timestamp
from octavo.server.responses import ToolCall, ToolCallFunction
from octavo.server.stream import JSON_LINES, Framing
from octavo.server.via_chat import arguments_object

LINES = Framing(
    JSON_LINES.media_type, JSON_LINES.frame, JSON_LINES.end, lambda error: JSON_LINES.frame(OllamaErrorBody(error.body.error.message))
)


class OllamaDialect:
    """Says in Ollama's words what a chat says.

    Args:
        chat: the chat that the request was put as; it has one choice.
        name: the served name.
        arrival: when the request came, on ``time.monotonic``'s clock. loaded: when its model was there.
        as_message: whether texts come as a chat's messages.
    """

    def __init__(self, chat: ChatDialect, name: str, arrival: float, loaded: float, *, as_message: bool) -> None:
        self.job = chat.job
        self._chat = chat
        self._name = name
        self._arrival = arrival
        self._loaded = loaded
        self._as_message = as_message
        self._reason = "stop"
        self._call: ToolCall | None = None  # the one that is being made
        self._calls = 0

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[OllamaAnswer]:
        """A line with what is new of thought and text, and one for each call that is whole."""
        for chunk in self._chat.chunks(piece, generation):
            for choice in chunk.choices:
                delta = choice.delta
                if delta.content or delta.reasoning_content:
                    yield self._line(delta.content or "", delta.reasoning_content or "", done=False)
                for call in delta.tool_calls or ():
                    if call.id:
                        yield from self._whole_call()
                        self._call = ToolCall(call.id, ToolCallFunction(call.function.name))
                        self._calls += 1
                    if self._call is not None:
                        self._call.function.arguments += call.function.arguments
                if choice.finish_reason is not None:
                    yield from self._whole_call()
                self._end(choice.finish_reason)

    def closing(self, generation: Generation) -> Iterator[OllamaAnswer]:
        """The last line, with the counts and times."""
        yield self._last("", generation)

    def result(self, outputs: list[RequestOutput], generation: Generation) -> msgspec.Struct:
        """The whole answer."""
        choice = self._chat.result(outputs, generation).choices[0]
        self._end(choice.finish_reason)
        line = self._last(choice.message.content or "", generation, choice.message.reasoning_content or "")
        if choice.message.tool_calls and line.message:
            line.message.tool_calls = [_call(index, call) for index, call in enumerate(choice.message.tool_calls)]
        return line

    def _end(self, reason: str | None) -> None:
        """Ollama knows stop and length; calls end an answer like any other."""
        self._reason = "stop" if reason == "tool_calls" else reason or self._reason

    def _whole_call(self) -> Iterator[OllamaAnswer]:
        if self._call is not None:
            line, call, self._call = self._line("", done=False), self._call, None
            if line.message:
                line.message.tool_calls = [_call(self._calls - 1, call)]
            yield line

    def _line(self, text: str, thinking: str = "", *, done: bool) -> OllamaAnswer:
        line = OllamaAnswer(self._name, timestamp(time.time()), done)
        if self._as_message:
            line.message = OllamaMessageAnswer(text, thinking=thinking or UNSET)
        else:
            line.response, line.thinking = text, thinking or UNSET
        return line

    def _last(self, text: str, generation: Generation, thinking: str = "") -> OllamaAnswer:
        line, now, times = self._line(text, thinking, done=True), time.monotonic(), generation.times
        scheduled = first = self._loaded
        if times is not None and times.first_token:
            scheduled, first = times.first_scheduled, times.first_token
        line.done_reason = self._reason
        line.total_duration = _nanoseconds(now - self._arrival)
        line.load_duration = _nanoseconds(self._loaded - self._arrival)
        line.prompt_eval_count = generation.prompt_tokens
        line.prompt_eval_duration = _nanoseconds(first - scheduled)
        line.eval_count = generation.completion_tokens
        line.eval_duration = _nanoseconds((times.finished if times is not None and times.finished else now) - first)
        return line


def _call(index: int, call: ToolCall) -> OllamaToolCallAnswer:
    return OllamaToolCallAnswer(call.id, OllamaCalledFunction(index, str(call.function.name), arguments_object(call.function.arguments)))


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
