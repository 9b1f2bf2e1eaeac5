"""From a chat's answers to responses: whole, and as streams of numbered events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from octavo.frontend.outputs import RequestOutput
from octavo.server.chat import ChatDialect
from octavo.server.errors import HttpError
from octavo.server.generation import Generation, Piece
from octavo.server.openai_responses import answers
from octavo.server.openai_responses.protocol import ResponsesRequest
from octavo.server.stream import Framing, named_event


class ResponsesDialect:
    """Says as a response what a chat says.

    Args:
        body: the request. chat: what it was put as; it has one choice.
        name: the served name.
    """

    def __init__(self, body: ResponsesRequest, chat: ChatDialect, name: str) -> None:
        self.job = chat.job
        self._body = body
        self._chat = chat
        self._name = name
        self._item_id = f"msg_{chat.job.request_id.removeprefix('resp_')}"
        self._numbers = itertools.count()
        self._texts: list[str] = []
        self._begun = False
        self._message_open = False
        self._reason: str | None = None

    @property
    def framing(self) -> Framing:
        """Numbered events; a failure is the last one."""
        return Framing("text/event-stream", named_event, b"", self._frame_error)

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[msgspec.Struct]:
        """The response's start with the first news, then what is new of its text."""
        if not self._begun:
            self._begun = True
            yield answers.ResponseCreated(next(self._numbers), self._response("in_progress", []))
            yield answers.ResponseInProgress(next(self._numbers), self._response("in_progress", []))
        for chunk in self._chat.chunks(piece, generation):
            for choice in chunk.choices:
                if choice.delta.content:
                    yield from self._text(choice.delta.content)
                self._reason = choice.finish_reason or self._reason

    def closing(self, generation: Generation) -> Iterator[msgspec.Struct]:
        """The whole text, message and response."""
        if not self._message_open:
            yield from self._open()
        text, place = "".join(self._texts), (self._item_id, 0, 0)
        response = self._whole(text, generation)
        yield answers.OutputTextDone(next(self._numbers), *place, text)
        yield answers.ContentPartDone(next(self._numbers), *place, answers.OutputText(text))
        yield answers.OutputItemDone(next(self._numbers), 0, response.output[0])
        end = answers.ResponseIncomplete if response.status == "incomplete" else answers.ResponseCompleted
        yield end(next(self._numbers), response)

    def result(self, outputs: list[RequestOutput], generation: Generation) -> answers.ResponsesResponse:
        """The whole response."""
        choice = self._chat.result(outputs, generation).choices[0]
        self._reason = choice.finish_reason
        return self._whole(choice.message.content or "", generation)

    def _text(self, text: str) -> Iterator[msgspec.Struct]:
        if not self._message_open:
            yield from self._open()
        self._texts.append(text)
        yield answers.OutputTextDelta(next(self._numbers), self._item_id, 0, 0, text)

    def _open(self) -> Iterator[msgspec.Struct]:
        self._message_open = True
        yield answers.OutputItemAdded(next(self._numbers), 0, answers.OutputMessage(self._item_id, "in_progress", []))
        yield answers.ContentPartAdded(next(self._numbers), self._item_id, 0, 0, answers.OutputText(""))

    def _whole(self, text: str, generation: Generation) -> answers.ResponsesResponse:
        status = "incomplete" if self._reason == "length" else "completed"
        made = self._response(status, [answers.OutputMessage(self._item_id, status, [answers.OutputText(text)])])
        made.usage = _usage(generation)
        if status == "incomplete":
            made.incomplete_details = answers.IncompleteDetails("max_output_tokens")
        else:
            made.completed_at = int(time.time())
        return made

    def _response(self, status: str, output: list[answers.OutputMessage]) -> answers.ResponsesResponse:
        body, params = self._body, self.job.params
        return answers.ResponsesResponse(
            self.job.request_id,
            self.job.created,
            self._name,
            status,
            output,
            params.temperature,
            params.top_p,
            answers.TextAnswer(_format(body)),
            body.instructions,
            body.max_output_tokens,
            body.metadata or {},
        )

    def _frame_error(self, error: HttpError) -> bytes:
        failed = self._response("failed", [])
        failed.error = answers.ResponseError("server_error", error.body.error.message)
        return named_event(answers.ResponseFailed(next(self._numbers), failed))


def _format(body: ResponsesRequest) -> answers.TextFormatAnswer:
    asked = body.text.format if body.text is not None else None
    if asked is None or asked.type != "json_schema":
        return answers.TextFormatAnswer(asked.type if asked is not None else "text")
    return answers.TextFormatAnswer(asked.type, asked.name or UNSET, asked.description, asked.schema_ or UNSET, True)


def _usage(generation: Generation) -> answers.ResponseUsage:
    read, made = generation.prompt_tokens, generation.completion_tokens
    return answers.ResponseUsage(
        read, answers.InputTokensDetails(generation.cached_tokens), made, answers.OutputTokensDetails(), read + made
    )
