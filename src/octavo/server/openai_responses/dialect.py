"""From a chat's answers to responses: whole, and as streams of numbered events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from octavo.frontend.outputs import RequestOutput
from octavo.server.chat import ChatDialect
from octavo.server.errors import HttpError
from octavo.server.generation import Generation, Piece
from octavo.server.openai_responses import answers
from octavo.server.openai_responses.protocol import ResponsesRequest
from octavo.server.responses import ChatDelta, ToolCallDelta
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
        self._numbers = itertools.count()
        self._items: list[answers.OutputItem] = []
        self._open = False  # whether the last item is still growing
        self._begun = False
        self._reason: str | None = None

    @property
    def framing(self) -> Framing:
        """Numbered events; a failure is the last one."""
        return Framing("text/event-stream", named_event, b"", self._frame_error)

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[msgspec.Struct]:
        """The response's start with the first news, then what is new of its items."""
        if not self._begun:
            self._begun = True
            yield answers.ResponseCreated(next(self._numbers), self._response("in_progress", []))
            yield answers.ResponseInProgress(next(self._numbers), self._response("in_progress", []))
        for chunk in self._chat.chunks(piece, generation):
            for choice in chunk.choices:
                yield from self._news(choice.delta)
                self._reason = choice.finish_reason or self._reason

    def closing(self, generation: Generation) -> Iterator[msgspec.Struct]:
        """The end of the last item, and the whole response."""
        if not self._items:
            yield from self._text("")
        yield from self._close()
        response = self._whole(self._items, generation)
        end = answers.ResponseIncomplete if response.status == "incomplete" else answers.ResponseCompleted
        yield end(next(self._numbers), response)

    def result(self, outputs: list[RequestOutput], generation: Generation) -> answers.ResponsesResponse:
        """The whole response."""
        choice = self._chat.result(outputs, generation).choices[0]
        self._reason, message = choice.finish_reason, choice.message
        if message.reasoning_content:
            self._add(answers.ReasoningItem(self._id("rs"), "", [answers.ReasoningText(message.reasoning_content)]))
        calls = message.tool_calls or []
        if message.content or not (calls or message.reasoning_content):
            self._add(answers.OutputMessage(self._id("msg"), "", [answers.OutputText(message.content or "")]))
        for call in calls:
            self._add(answers.FunctionCallItem(self._id("fc"), call.id, str(call.function.name), call.function.arguments, ""))
        return self._whole(self._items, generation)

    # ---- items -------------------------------------------------------------------------------------------------------

    def _news(self, delta: ChatDelta) -> Iterator[msgspec.Struct]:
        if delta.reasoning_content:
            yield from self._thought(delta.reasoning_content)
        if delta.content:
            yield from self._text(delta.content)
        for call in delta.tool_calls or ():
            yield from self._call(call)

    def _thought(self, text: str) -> Iterator[msgspec.Struct]:
        if not (self._open and isinstance(self._items[-1], answers.ReasoningItem)):
            yield from self._begin(answers.ReasoningItem(self._id("rs"), "in_progress", []))
        item = self._items[-1]
        assert isinstance(item, answers.ReasoningItem)
        item.content = [answers.ReasoningText(item.content[0].text + text if item.content else text)]
        yield answers.ReasoningTextDelta(next(self._numbers), item.id, self._place, 0, text)

    def _text(self, text: str) -> Iterator[msgspec.Struct]:
        if not (self._open and isinstance(self._items[-1], answers.OutputMessage)):
            item = answers.OutputMessage(self._id("msg"), "in_progress", [])
            yield from self._begin(item)
            yield answers.ContentPartAdded(next(self._numbers), item.id, self._place, 0, answers.OutputText(""))
            item.content = [answers.OutputText("")]
        last = self._items[-1]
        assert isinstance(last, answers.OutputMessage)
        last.content[0].text += text
        if text:
            yield answers.OutputTextDelta(next(self._numbers), last.id, self._place, 0, text)

    def _call(self, call: ToolCallDelta) -> Iterator[msgspec.Struct]:
        if call.id:
            yield from self._begin(answers.FunctionCallItem(self._id("fc"), call.id, str(call.function.name), "", "in_progress"))
        item = self._items[-1]
        assert isinstance(item, answers.FunctionCallItem)
        if call.function.arguments:
            item.arguments += call.function.arguments
            yield answers.ArgumentsDelta(next(self._numbers), item.id, self._place, call.function.arguments)

    def _begin(self, item: answers.OutputItem) -> Iterator[msgspec.Struct]:
        yield from self._close()
        self._add(item)
        self._open = True
        # The event is written before the item grows.
        yield answers.OutputItemAdded(next(self._numbers), self._place, msgspec.structs.replace(item))

    def _close(self) -> Iterator[msgspec.Struct]:
        """The end of the item that is growing, if one is."""
        if not self._open:
            return
        self._open = False
        item, place = self._items[-1], self._place
        item.status = "incomplete" if self._reason == "length" else "completed"
        match item:
            case answers.OutputMessage(id=name, content=[part]):
                yield answers.OutputTextDone(next(self._numbers), name, place, 0, part.text)
                yield answers.ContentPartDone(next(self._numbers), name, place, 0, part)
            case answers.ReasoningItem(id=name, content=[thought]):
                yield answers.ReasoningTextDone(next(self._numbers), name, place, 0, thought.text)
            case answers.FunctionCallItem():
                yield answers.ArgumentsDone(next(self._numbers), item.id, place, item.name, item.arguments)
        yield answers.OutputItemDone(next(self._numbers), place, item)

    def _add(self, item: answers.OutputItem) -> None:
        if self._items:
            self._items[-1].status = "completed"
        self._items.append(item)

    @property
    def _place(self) -> int:
        return len(self._items) - 1

    def _id(self, kind: str) -> str:
        """An id for the next item, which tells its kind; the first one's needs no number."""
        number = f"_{len(self._items)}" if self._items else ""
        return f"{kind}_{self.job.request_id.removeprefix('resp_')}{number}"

    # ---- the response ------------------------------------------------------------------------------------------------

    def _whole(self, items: list[answers.OutputItem], generation: Generation) -> answers.ResponsesResponse:
        status = "incomplete" if self._reason == "length" else "completed"
        items[-1].status = status
        made = self._response(status, items)
        made.usage = _usage(generation)
        if status == "incomplete":
            made.incomplete_details = answers.IncompleteDetails("max_output_tokens")
        else:
            made.completed_at = int(time.time())
        return made

    def _response(self, status: str, output: list[answers.OutputItem]) -> answers.ResponsesResponse:
        body, params = self._body, self.job.params
        made = answers.ResponsesResponse(
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
        made.tools = [tool.model_dump() for tool in body.tools or ()]
        made.tool_choice = _choice(body)
        made.parallel_tool_calls = body.parallel_tool_calls is not False
        made.reasoning.effort = body.reasoning.effort if body.reasoning is not None else None
        return made

    def _frame_error(self, error: HttpError) -> bytes:
        failed = self._response("failed", [])
        failed.error = answers.ResponseError("server_error", error.body.error.message)
        return named_event(answers.ResponseFailed(next(self._numbers), failed))


def _choice(body: ResponsesRequest) -> str | dict[str, Any]:
    choice = body.tool_choice
    if choice is None:
        return "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


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
