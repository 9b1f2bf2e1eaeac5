"""``POST /generate``: Octavo's own short dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import UNSET

from octavo.frontend.outputs import CompletionOutput, PositionLogprobs, RequestOutput, SequenceDelta
from octavo.server.generation import Generation, Job, Piece
from octavo.server.logprobs import logprobs_by_id, prompt_logprobs_by_id
from octavo.server.protocol import GenerateRequest
from octavo.server.responses import GenerateChunk, GenerateResponse, IdLogprobs
from octavo.server.sampling import sampling_params
from octavo.server.stream import usage_of
from octavo.server.stream_options import StreamUsage
from octavo.server.structured_fields import form_field

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel

DEFAULT_MAX_TOKENS = 16


class GenerateDialect:
    """Says what was generated for one request.

    Args:
        body: the request.
        prompt: what the model is to see: token ids, or text that is templated already unless it is to be taken ``verbatim``.
        model: what is served, under ``name``.
        request_id: of the HTTP request.
        max_logprobs: the server's limit.

    Raises:
        InvalidRequestError: naming the field at fault.
    """

    def __init__(
        self,
        body: GenerateRequest,
        prompt: str | list[int],
        model: ServedModel,
        name: str,
        request_id: str,
        max_logprobs: int,
        *,
        verbatim: bool,
    ) -> None:
        self._body = body
        self._name = name
        self._usage = StreamUsage(body)
        params = sampling_params(
            body, model.sampling_defaults, default_max_tokens=DEFAULT_MAX_TOKENS, logprobs=body.logprobs, max_logprobs=max_logprobs
        )
        self._n = params.n
        self._finish_reasons: list[str | None] = [None] * params.n
        self._begun = False
        self.job = Job(
            f"gen-{body.request_id or request_id}",
            [prompt],
            params,
            caps_default=body.max_tokens is None,
            add_special_tokens=verbatim,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            form_field=form_field(body),
        )

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[GenerateChunk]:
        """One line with what is new of each text."""
        body, chunk = self._body, GenerateChunk([""] * self._n, self._name)
        parts: list[SequenceDelta | None] = [None] * self._n
        for delta in piece.sequences:
            chunk.text[delta.index] = delta.text
            parts[delta.index] = delta
            self._finish_reasons[delta.index] = delta.finish_reason or self._finish_reasons[delta.index]
        if body.logprobs is not None:
            chunk.logprobs = [self._logprobs(part) for part in parts]
        if body.return_token_ids:
            chunk.token_ids = [part.token_ids if part is not None else [] for part in parts]
            if not self._begun:
                chunk.prompt_token_ids = generation.streams[0].prompt_token_ids
        if body.prompt_logprobs is not None and piece.prompt_logprobs is not None:
            chunk.prompt_logprobs = prompt_logprobs_by_id(piece.prompt_logprobs, body.prompt_logprobs)
        if self._usage.in_chunks:
            chunk.usage = usage_of(generation, details=False)
        self._begun = True
        if any(chunk.text) or chunk.logprobs or chunk.token_ids or chunk.prompt_logprobs:
            yield chunk

    def closing(self, generation: Generation) -> Iterator[GenerateChunk]:
        """The last line: the usage, and why each text ended."""
        options = self._body.stream_options
        usage = usage_of(generation, details=False) if options is None or options.include_usage is not False else UNSET
        yield GenerateChunk([""] * self._n, self._name, usage, self._finish_reasons)

    def result(self, outputs: list[RequestOutput], generation: Generation) -> GenerateResponse:
        """All texts at once."""
        body, output = self._body, outputs[0]
        made = GenerateResponse([sequence.text for sequence in output.outputs], usage_of(generation, details=False), self._name)
        if body.logprobs is not None:
            made.logprobs = [self._logprobs(sequence) for sequence in output.outputs]
        if body.prompt_logprobs is not None:
            made.prompt_logprobs = prompt_logprobs_by_id(output.prompt_logprobs or [], body.prompt_logprobs)
        if body.return_token_ids:
            made.token_ids = [sequence.token_ids for sequence in output.outputs]
            made.prompt_token_ids = output.prompt_token_ids
        return made

    def _logprobs(self, made: SequenceDelta | CompletionOutput | None) -> list[IdLogprobs]:
        positions: list[PositionLogprobs] = (made.logprobs if made is not None else None) or []
        return logprobs_by_id(positions, self._body.logprobs or 0)
