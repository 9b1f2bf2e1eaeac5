"""The one path from a checked request to its tokens, whatever the dialect: submit, follow, count, and abort when nobody listens."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from octavo.engine.messages import RequestTimes
from octavo.errors import EngineDeadError, InvalidRequestError, NotReadyError
from octavo.frontend.beam_stream import submit_beams
from octavo.frontend.outputs import PositionLogprobs, RequestDelta, RequestOutput, SequenceDelta
from octavo.log import get_logger
from octavo.sampling_params import SamplingParams
from octavo.server.request_log import log_end
from octavo.server.request_metrics import RequestFollower
from octavo.server.service import Service

if TYPE_CHECKING:
    from octavo.frontend.client import RequestStream

logger = get_logger(__name__)

MAX_PROMPTS = 1024
"""Most prompts in one request."""


@dataclass(slots=True)
class Job:
    """What a dialect asks for.

    Attributes:
        request_id: as the answer shows it, such as ``chatcmpl-...``.
        prompts: texts or token ids; at least one.
        params: how to sample.
        caps_default: whether ``params.max_tokens`` is a default, which then yields to what the context leaves; a number that the
            client asked for and the context cannot hold is refused.
        add_special_tokens: whether tokenising a text adds the model's special tokens.
        length_penalty: of a beam search ``params.n`` wide; None is no beam search.
        form_field: the field of the request that ``params.structured_outputs`` comes from, for errors.
    """

    request_id: str
    prompts: Sequence[str | list[int]]
    params: SamplingParams
    caps_default: bool
    add_special_tokens: bool
    priority: int
    cache_salt: str
    length_penalty: float | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    form_field: str | None = None


@dataclass(slots=True)
class Piece:
    """News of one prompt: what its choices got, in a stream of all prompts' news.

    Attributes:
        prompt: index of the prompt; its choices are ``prompt * n`` and those after it.
        sequences: what is new of its sequences.
        prompt_logprobs: once, before or with the first text.
    """

    prompt: int
    sequences: list[SequenceDelta]
    prompt_logprobs: list[PositionLogprobs | None] | None


class Generation:
    """A job under way. ``async with`` it: whatever has not ended at the exit is aborted at once.

    Args:
        route: the path that the request came by, for the log.

    Attributes:
        streams, followers: one a prompt.
        prompt_tokens, completion_tokens, cached_tokens: the usage so far, over all prompts.
        times: of the prompt that ended last, as far as the engine told; None before.
    """

    def __init__(self, service: Service, job: Job, route: str = "") -> None:
        self.job = job
        self._route = route
        self.streams: list[RequestStream] = []
        self.times: RequestTimes | None = None
        self._service = service
        self.followers: list[RequestFollower] = []
        self._open = False

    @property
    def prompt_tokens(self) -> int:
        return sum(len(stream.prompt_token_ids) for stream in self.streams)

    @property
    def completion_tokens(self) -> int:
        return sum(follower.generated for follower in self.followers)

    @property
    def cached_tokens(self) -> int:
        return sum(follower.cached for follower in self.followers)

    async def start(self) -> None:
        """Submit every prompt; returns once all are accepted.

        Raises:
            InvalidRequestError: a prompt or parameter the model cannot take.
            QueueFullError, NotReadyError: none of the prompts was kept.
        """
        job = self.job
        if not 1 <= len(job.prompts) <= MAX_PROMPTS:
            raise InvalidRequestError(f"prompt must hold 1 to {MAX_PROMPTS} prompts; got {len(job.prompts)}.", "prompt")
        self._service.in_flight += 1
        self._open = True
        try:
            for prompt in job.prompts:
                # A client may send the same request id twice; the engine's has to be unique.
                engine_id = f"{job.request_id}-{secrets.token_hex(4)}"
                arrival = time.monotonic()
                stream = await self._submit(prompt, engine_id)
                self.streams.append(stream)
                self.followers.append(self._follow(engine_id, stream, arrival))
        except BaseException:
            self.close()
            raise

    def _follow(self, engine_id: str, stream: RequestStream, arrival: float) -> RequestFollower:
        service, span, prompt_tokens = self._service, None, len(stream.prompt_token_ids)
        if service.tracing is not None:
            span = service.tracing.begin(self.job.request_id, next(iter(service.names), ""), self.job.params, prompt_tokens, arrival)
        return RequestFollower(service.metrics.engines[stream.engine], engine_id, prompt_tokens, arrival, span)

    async def _submit(self, prompt: str | list[int], engine_id: str) -> RequestStream:
        job = self.job
        client = self._service.client
        if job.length_penalty is None:
            begin: Callable[..., Awaitable[RequestStream]] = client.submit
        else:
            begin = functools.partial(submit_beams, client, length_penalty=job.length_penalty)
        submit = functools.partial(
            begin,
            prompt=prompt,
            request_id=engine_id,
            priority=job.priority,
            cache_salt=job.cache_salt,
            add_special_tokens=job.add_special_tokens,
        )
        try:
            return await submit(params=job.params)
        except InvalidRequestError as error:
            if error.param == "structured_outputs":
                error.param = job.form_field or error.param
            if not job.caps_default or error.param != "max_tokens":
                raise
            return await submit(params=msgspec.structs.replace(job.params, max_tokens=None))

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close("error" if isinstance(error, EngineDeadError) else "abort")

    def close(self, reason: str = "abort") -> None:
        """Abort what has not ended, and count it under ``reason``. Idempotent."""
        for stream, follower in zip(self.streams, self.followers, strict=True):
            if not follower.ended:
                stream.abort()
                follower.end(reason, None)
                self._log(follower)
        if self._open:
            self._open = False
            self._service.in_flight -= 1

    async def pieces(self) -> AsyncIterator[Piece]:
        """All news, in the order in which they come.

        Raises:
            InvalidRequestError: the engine refused the request. EngineDeadError: it failed.
            NotReadyError: it was stopped before the answer was whole.
        """
        if len(self.streams) == 1:
            async for delta in self.streams[0]:
                yield self._take(0, delta)
                if delta.finished:
                    break
            if not self.followers[0].ended:
                raise self._cut_short()
            return
        async for index, delta in _merged(self.streams):
            yield self._take(index, delta)
        if not all(follower.ended for follower in self.followers):
            raise self._cut_short()

    async def collect(self) -> list[RequestOutput]:
        """Wait for the end and return one output a prompt.

        Raises:
            InvalidRequestError, EngineDeadError, NotReadyError: as ``pieces``.
        """
        collectors = [stream.collector() for stream in self.streams]
        async for piece in self.pieces():
            collectors[piece.prompt].add(RequestDelta("", piece.sequences, piece.prompt_logprobs))
        return [collector.output() for collector in collectors]

    def _take(self, index: int, delta: RequestDelta) -> Piece:
        follower = self.followers[index]
        follower.take(delta)
        if follower.ended:
            self._log(follower)
        self.times = delta.times or self.times
        for sequence in delta.sequences:
            if sequence.finish_reason == "error":
                if isinstance(sequence.stop_reason, str):  # the engine refused the request, and says why
                    raise InvalidRequestError(sequence.stop_reason)
                raise EngineDeadError("The engine failed while it worked on this request; it can be sent again.")
            if sequence.finish_reason == "abort":
                raise self._cut_short()
        return Piece(index, delta.sequences, delta.prompt_logprobs)

    def _log(self, follower: RequestFollower) -> None:
        if self._service.options.enable_log_requests:
            log_end(self._route, next(iter(self._service.names), ""), self.job.params, self.job.length_penalty, follower)

    def _cut_short(self) -> NotReadyError:
        phase = self._service.client.phase
        return NotReadyError(f"The request was stopped before its answer was whole (the server is {phase}).", phase, 1)


async def _merged(streams: list[RequestStream]) -> AsyncIterator[tuple[int, RequestDelta]]:
    """The deltas of several streams as they come, each with its stream's index."""
    queue: asyncio.Queue[tuple[int, RequestDelta | BaseException | None]] = asyncio.Queue()

    async def pump(index: int, stream: RequestStream) -> None:
        try:
            async for delta in stream:
                queue.put_nowait((index, delta))
        except Exception as error:
            queue.put_nowait((index, error))
        else:
            queue.put_nowait((index, None))

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            index, news = await queue.get()
            if news is None:
                running -= 1
            elif isinstance(news, BaseException):
                raise news
            else:
                yield index, news
    finally:
        for task in tasks:
            task.cancel()
