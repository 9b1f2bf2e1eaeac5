"""From a chat's answers to Ollama's, whole or as JSON lines."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from octavo.frontend.outputs import RequestOutput
from octavo.server.chat import ChatDialect
from octavo.server.error_shapes import OllamaErrorBody
from octavo.server.generation import Generation, Piece
from octavo.server.ollama.answers import OllamaAnswer, OllamaMessageAnswer, timestamp
from octavo.server.stream import JSON_LINES, Framing

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

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[OllamaAnswer]:
        """A line with what is new of the text."""
        for chunk in self._chat.chunks(piece, generation):
            for choice in chunk.choices:
                if choice.delta.content:
                    yield self._line(choice.delta.content, done=False)
                self._reason = choice.finish_reason or self._reason

    def closing(self, generation: Generation) -> Iterator[OllamaAnswer]:
        """The last line, with the counts and times."""
        yield self._last("", generation)

    def result(self, outputs: list[RequestOutput], generation: Generation) -> msgspec.Struct:
        """The whole answer."""
        choice = self._chat.result(outputs, generation).choices[0]
        self._reason = choice.finish_reason or self._reason
        return self._last(choice.message.content or "", generation)

    def _line(self, text: str, *, done: bool) -> OllamaAnswer:
        line = OllamaAnswer(self._name, timestamp(time.time()), done)
        if self._as_message:
            line.message = OllamaMessageAnswer(text)
        else:
            line.response = text
        return line

    def _last(self, text: str, generation: Generation) -> OllamaAnswer:
        line, now, times = self._line(text, done=True), time.monotonic(), generation.times
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


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
