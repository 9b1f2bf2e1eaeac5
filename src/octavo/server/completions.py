"""``POST /v1/completions``: OpenAI's legacy dialect, verbatim prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from msgspec import UNSET

from octavo.errors import InvalidRequestError
from octavo.frontend.outputs import CompletionOutput, PositionLogprobs, RequestOutput, SequenceDelta
from octavo.sampling_params import SamplingParams
from octavo.server.generation import Generation, Job, Piece
from octavo.server.logprobs import LegacyLogprobs, prompt_logprobs_by_id
from octavo.server.protocol import CompletionRequest, Prompts
from octavo.server.responses import CompletionChoice, CompletionLogprobs, CompletionResponse
from octavo.server.sampling import sampling_params
from octavo.server.stream import usage_of
from octavo.server.stream_options import StreamUsage
from octavo.server.structured_fields import form_field

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel

DEFAULT_MAX_TOKENS = 16


class CompletionDialect:
    """Says what was generated for one request. Choices are numbered prompt by prompt.

    Args:
        body: the request.
        model: what is served, under ``name``.
        request_id: of the HTTP request.
        max_logprobs: the server's limit.

    Raises:
        InvalidRequestError: naming the field at fault.
    """

    def __init__(self, body: CompletionRequest, model: ServedModel, name: str, request_id: str, max_logprobs: int) -> None:
        self._body = body
        self._model = model
        self._name = name
        self._usage = StreamUsage(body)
        # With echo and max_tokens 0 only the prompt is wanted (its scores, mostly). The engine makes one token, which is dropped.
        self._only_prompt = bool(body.echo) and body.max_tokens == 0
        params = self._params(max_logprobs)
        self._n = params.n
        self.job = Job(
            f"cmpl-{body.request_id or request_id}",
            _prompts(body.prompt),
            params,
            caps_default=body.max_tokens is None,
            add_special_tokens=body.add_special_tokens is not False,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            form_field=form_field(body),
        )
        self._legacy: dict[int, LegacyLogprobs] = {}
        self._prompt_logprobs: dict[int, list[PositionLogprobs | None]] = {}

    def chunks(self, piece: Piece, generation: Generation) -> Iterator[CompletionResponse]:
        """One chunk a choice that has something new to show."""
        if piece.prompt_logprobs is not None:
            self._prompt_logprobs[piece.prompt] = piece.prompt_logprobs
        for delta in piece.sequences:
            choice = self._choice(piece.prompt, delta, generation)
            if choice.text or choice.logprobs or choice.finish_reason or choice.token_ids:
                yield self._response([choice], generation, usage=self._usage.in_chunks)

    def closing(self, generation: Generation) -> Iterator[CompletionResponse]:
        """The usage, where it was asked for."""
        if self._usage.at_end:
            yield self._response([], generation, usage=True)

    def result(self, outputs: list[RequestOutput], generation: Generation) -> CompletionResponse:
        """All choices at once."""
        choices: list[CompletionChoice] = []
        for prompt, output in enumerate(outputs):
            if output.prompt_logprobs is not None:
                self._prompt_logprobs[prompt] = output.prompt_logprobs
            choices.extend(self._choice(prompt, made, generation) for made in output.outputs)
        return self._response(choices, generation, usage=True)

    def _params(self, max_logprobs: int) -> SamplingParams:
        body = self._body
        overrides: dict[str, Any] = {"max_tokens": 1} if self._only_prompt else {}
        if body.echo and body.logprobs is not None:
            wanted = (body.logprobs, body.prompt_logprobs or 0)
            overrides["prompt_logprobs"] = -1 if -1 in wanted else max(wanted)
        return sampling_params(
            body,
            self._model.sampling_defaults,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            logprobs=body.logprobs,
            max_logprobs=max_logprobs,
            **overrides,
        )

    def _choice(self, prompt: int, delta: SequenceDelta | CompletionOutput, generation: Generation) -> CompletionChoice:
        """What is new of one choice; its first news starts with the prompt where that is to be echoed."""
        body, index = self._body, prompt * self._n + delta.index
        first = index not in self._legacy
        legacy = self._legacy.setdefault(index, LegacyLogprobs(body.logprobs or 0))
        choice = CompletionChoice(index, delta.text, None, delta.finish_reason, delta.stop_reason)
        token_ids, positions = delta.token_ids, delta.logprobs or []
        if self._only_prompt:
            choice.text, token_ids, positions = "", [], []
            choice.finish_reason, choice.stop_reason = "length" if delta.finish_reason else None, None
        if first and body.echo:
            choice.text = self._prompt_text(prompt, generation) + choice.text
        if body.logprobs is not None:
            choice.logprobs = self._logprobs(prompt, legacy, positions, generation, with_prompt=first and bool(body.echo))
        if first and body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs_by_id(self._prompt_logprobs.get(prompt, []), body.prompt_logprobs)
        if body.return_token_ids:
            choice.token_ids = token_ids
            choice.prompt_token_ids = generation.streams[prompt].prompt_token_ids if first else UNSET
        return choice

    def _logprobs(
        self, prompt: int, legacy: LegacyLogprobs, positions: list[PositionLogprobs], generation: Generation, *, with_prompt: bool
    ) -> CompletionLogprobs | None:
        if not with_prompt:
            return legacy.shape(positions) if positions else None
        first_token = self._model.tokenizer.token_text(generation.streams[prompt].prompt_token_ids[0])
        return legacy.shape([*self._prompt_logprobs.get(prompt, [None]), *positions], first_token)

    def _prompt_text(self, prompt: int, generation: Generation) -> str:
        stream = generation.streams[prompt]
        return stream.prompt if stream.prompt is not None else self._model.tokenizer.decode(stream.prompt_token_ids)

    def _response(self, choices: list[CompletionChoice], generation: Generation, *, usage: bool) -> CompletionResponse:
        made = CompletionResponse(self.job.request_id, self.job.created, self._name, choices)
        if usage:
            made.usage = usage_of(generation)
            if self._only_prompt:
                made.usage.completion_tokens, made.usage.total_tokens = 0, made.usage.prompt_tokens
        return made


def _prompts(prompt: Prompts) -> Sequence[str | list[int]]:
    """The field's four forms as one list."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("prompt must not be empty.", "prompt")
    is_one = isinstance(prompt[0], int)
    return cast("Sequence[str | list[int]]", [prompt] if is_one else prompt)
