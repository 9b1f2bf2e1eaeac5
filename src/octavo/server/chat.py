"""``POST /v1/chat/completions``: OpenAI's chat dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.frontend.outputs import CompletionOutput, RequestOutput, SequenceDelta
from octavo.sampling_params import SamplingParams
from octavo.server.chat_answer import AnswerPart, AnswerReader, CallPart, plan_answer
from octavo.server.chat_form import answer_form
from octavo.server.explain import explain_of
from octavo.server.generation import Generation, Job, Piece
from octavo.server.logprobs import chat_logprobs, prompt_logprobs_by_id
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ToolCall,
    ToolCallDelta,
    ToolCallFunction,
)
from octavo.server.sampling import beam_length_penalty, sampling_params
from octavo.server.stream import usage_of
from octavo.server.stream_options import StreamUsage
from octavo.server.structured_fields import form_field
from octavo.server.tool_fields import NamedTool, offered

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel


class ChatDialect:
    """Says what was generated for one request.

    Args:
        body: the request. prompt: its messages, as the chat template made them text.
        model: what is served, under ``name``.
        request_id: of the HTTP request.
        max_logprobs: the server's limit.

    Raises:
        InvalidRequestError: naming the field at fault.
    """

    def __init__(self, body: ChatCompletionRequest, prompt: str, model: ServedModel, name: str, request_id: str, max_logprobs: int) -> None:
        self._body = body
        self._name = name
        self._token_bytes = model.tokenizer.token_bytes
        self._usage = StreamUsage(body)
        self._top = body.top_logprobs or 0
        tools = offered(body)
        several = body.parallel_tool_calls is not False
        self._plan = plan_answer(model, prompt, frozenset(tool["function"]["name"] for tool in tools), several=several)
        self._readers: dict[int, AnswerReader] = {}
        params = _params(body, model, max_logprobs)
        params.shown_special_tokens = self._plan.marks
        params.structured_outputs = answer_form(params.structured_outputs, tools, body.tool_choice, model, prompt, several=several)
        self.job = Job(
            f"chatcmpl-{body.request_id or request_id}",
            [prompt],
            params,
            caps_default=body.max_tokens is None and body.max_completion_tokens is None,
            add_special_tokens=bool(body.add_special_tokens),
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            length_penalty=beam_length_penalty(body, params),
            form_field=form_field(body) or ("tools" if params.structured_outputs is not None else None),
        )

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[ChatCompletionChunk]:
        """One chunk a choice that has something new to show; its first one names the role."""
        for delta in piece.sequences:
            if delta.index not in self._readers:
                self._readers[delta.index] = self._plan.reader()
                yield self._chunk([ChatChunkChoice(delta.index, ChatDelta("assistant", ""))], generation, usage=self._usage.in_chunks)
            part = self._read(self._readers[delta.index], delta.text, last=delta.finish_reason is not None)
            choice = self._chunk_choice(delta, part)
            if part or choice.logprobs or delta.finish_reason or choice.token_ids:
                yield self._chunk([choice], generation, usage=self._usage.in_chunks)
        if piece.prompt_logprobs is not None and self._body.prompt_logprobs is not None:
            chunk = self._chunk([], generation, usage=self._usage.in_chunks)
            chunk.prompt_logprobs = prompt_logprobs_by_id(piece.prompt_logprobs, self._body.prompt_logprobs)
            yield chunk

    def closing(self, generation: Generation) -> Iterator[ChatCompletionChunk]:
        """The usage and the explanation, where they were asked for."""
        if self._usage.at_end or self._body.explain:
            chunk = self._chunk([], generation, usage=self._usage.at_end)
            chunk.explain = explain_of(self._body, generation)
            yield chunk

    def result(self, outputs: list[RequestOutput], generation: Generation) -> ChatCompletionResponse:
        """All answers at once."""
        output = outputs[0]
        choices = [self._whole_choice(made) for made in output.outputs]
        made = ChatCompletionResponse(self.job.request_id, self.job.created, self._name, choices, usage_of(generation))
        made.explain = explain_of(self._body, generation)
        if self._body.prompt_logprobs is not None:
            made.prompt_logprobs = prompt_logprobs_by_id(output.prompt_logprobs or [], self._body.prompt_logprobs)
        if self._body.return_token_ids:
            made.prompt_token_ids = output.prompt_token_ids
        return made

    def _whole_choice(self, made: CompletionOutput) -> ChatChoice:
        reader = self._plan.reader()
        part = self._read(reader, made.text, last=True)
        message = ChatMessage(part.content or (None if part else ""))
        if part.reasoning:
            message.reasoning_content = part.reasoning
        if part.calls:
            message.tool_calls = [ToolCall(call.id or "", ToolCallFunction(call.name or "", call.arguments)) for call in part.calls]
        reason = self._finish_reason(made.finish_reason, reader)
        choice = ChatChoice(made.index, message, self._logprobs(made), reason, made.stop_reason)
        if self._body.return_token_ids:
            choice.token_ids = made.token_ids
        return choice

    def _chunk_choice(self, delta: SequenceDelta, part: AnswerPart) -> ChatChunkChoice:
        reason = self._finish_reason(delta.finish_reason, self._readers[delta.index])
        choice = ChatChunkChoice(delta.index, ChatDelta(), self._logprobs(delta), reason)
        if part.content:
            choice.delta.content = part.content
        if part.reasoning:
            choice.delta.reasoning_content = part.reasoning
        if part.calls:
            choice.delta.tool_calls = [_call_delta(call) for call in part.calls]
        if delta.finish_reason is not None:
            choice.stop_reason = delta.stop_reason
        if self._body.return_token_ids:
            choice.token_ids = delta.token_ids
        return choice

    def _read(self, reader: AnswerReader, text: str, *, last: bool) -> AnswerPart:
        part = reader.read(text, last=last)
        if self._body.include_reasoning is False:
            part.reasoning = ""
        return part

    def _finish_reason(self, reason: str | None, reader: AnswerReader) -> str | None:
        """An answer that ends with calls says so, unless the client named the function: that is OpenAI's rule."""
        calls = reason == "stop" and reader.called and not isinstance(self._body.tool_choice, NamedTool)
        return "tool_calls" if calls else reason

    def _chunk(self, choices: list[ChatChunkChoice], generation: Generation, *, usage: bool) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk(self.job.request_id, self.job.created, self._name, choices)
        if usage:
            chunk.usage = usage_of(generation)
        if self._body.return_token_ids and choices and choices[0].delta.role:
            chunk.prompt_token_ids = generation.streams[0].prompt_token_ids
        return chunk

    def _logprobs(self, made: CompletionOutput | SequenceDelta) -> ChatLogprobs | None:
        if not made.logprobs:
            return None
        return chat_logprobs(made.logprobs, self._top, self._token_bytes, as_ids=bool(self._body.return_tokens_as_token_ids))


def _call_delta(call: CallPart) -> ToolCallDelta:
    delta = ToolCallDelta(call.index, ToolCallFunction(arguments=call.arguments))
    if call.id is not None and call.name is not None:
        delta.id, delta.type, delta.function.name = call.id, "function", call.name
    return delta


def _params(body: ChatCompletionRequest, model: ServedModel, max_logprobs: int) -> SamplingParams:
    if body.top_logprobs is not None and body.top_logprobs != 0 and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
    if max_logprobs != -1 and body.top_logprobs is not None and not 0 <= body.top_logprobs <= max_logprobs:
        raise InvalidRequestError(
            f"top_logprobs must be an integer in [0, {max_logprobs}], this server's limit (--max-logprobs); got {body.top_logprobs}.",
            "top_logprobs",
        )
    overrides = {}
    if body.max_completion_tokens is not None:
        if body.max_tokens not in (None, body.max_completion_tokens):
            raise InvalidRequestError("max_tokens is the older name of max_completion_tokens; the two differ.", "max_tokens")
        overrides["max_tokens"] = body.max_completion_tokens
    return sampling_params(
        body,
        model.sampling_defaults,
        default_max_tokens=None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        max_logprobs=max_logprobs,
        **overrides,
    )
