"""``POST /v1/chat/completions``: OpenAI's chat dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.frontend.outputs import CompletionOutput, RequestOutput, SequenceDelta
from octavo.sampling_params import SamplingParams
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
)
from octavo.server.sampling import sampling_params
from octavo.server.stream import usage_of
from octavo.server.stream_options import StreamUsage
from octavo.server.structured_fields import form_field

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
        self.job = Job(
            f"chatcmpl-{body.request_id or request_id}",
            [prompt],
            _params(body, model, max_logprobs),
            caps_default=body.max_tokens is None and body.max_completion_tokens is None,
            add_special_tokens=bool(body.add_special_tokens),
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            form_field=form_field(body),
        )
        self._begun: set[int] = set()

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[ChatCompletionChunk]:
        """One chunk a choice that has something new to show; its first one names the role."""
        for delta in piece.sequences:
            if delta.index not in self._begun:
                self._begun.add(delta.index)
                yield self._chunk([ChatChunkChoice(delta.index, ChatDelta("assistant", ""))], generation, usage=self._usage.in_chunks)
            choice = self._chunk_choice(delta)
            if delta.text or choice.logprobs or delta.finish_reason or choice.token_ids:
                yield self._chunk([choice], generation, usage=self._usage.in_chunks)
        if piece.prompt_logprobs is not None and self._body.prompt_logprobs is not None:
            chunk = self._chunk([], generation, usage=self._usage.in_chunks)
            chunk.prompt_logprobs = prompt_logprobs_by_id(piece.prompt_logprobs, self._body.prompt_logprobs)
            yield chunk

    def closing(self, generation: Generation) -> Iterator[ChatCompletionChunk]:
        """The usage, where it was asked for."""
        if self._usage.at_end:
            yield self._chunk([], generation, usage=True)

    def result(self, outputs: list[RequestOutput], generation: Generation) -> ChatCompletionResponse:
        """All answers at once."""
        output = outputs[0]
        choices = [self._whole_choice(made) for made in output.outputs]
        made = ChatCompletionResponse(self.job.request_id, self.job.created, self._name, choices, usage_of(generation))
        if self._body.prompt_logprobs is not None:
            made.prompt_logprobs = prompt_logprobs_by_id(output.prompt_logprobs or [], self._body.prompt_logprobs)
        if self._body.return_token_ids:
            made.prompt_token_ids = output.prompt_token_ids
        return made

    def _whole_choice(self, made: CompletionOutput) -> ChatChoice:
        choice = ChatChoice(made.index, ChatMessage(made.text), self._logprobs(made), made.finish_reason, made.stop_reason)
        if self._body.return_token_ids:
            choice.token_ids = made.token_ids
        return choice

    def _chunk_choice(self, delta: SequenceDelta) -> ChatChunkChoice:
        choice = ChatChunkChoice(delta.index, ChatDelta(), self._logprobs(delta), delta.finish_reason)
        if delta.text:
            choice.delta.content = delta.text
        if delta.finish_reason is not None:
            choice.stop_reason = delta.stop_reason
        if self._body.return_token_ids:
            choice.token_ids = delta.token_ids
        return choice

    def _chunk(self, choices: list[ChatChunkChoice], generation: Generation, *, usage: bool) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk(self.job.request_id, self.job.created, self._name, choices)
        if usage:
            chunk.usage = usage_of(generation)
        if self._body.return_token_ids and choices and choices[0].delta.role:
            chunk.prompt_token_ids = generation.streams[0].prompt_token_ids
        return chunk

    def _logprobs(self, made: CompletionOutput | SequenceDelta) -> ChatLogprobs | None:
        return chat_logprobs(made.logprobs, self._top, self._token_bytes) if made.logprobs else None


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
