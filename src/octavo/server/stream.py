"""The one way in which a generation becomes an HTTP answer: whole, or as a stream of server-sent events or JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.errors import OctavoError
from octavo.frontend.outputs import RequestOutput
from octavo.log import get_logger
from octavo.server.disconnect import ClientDisconnectedError, WhileConnected
from octavo.server.errors import HttpError, describe, response
from octavo.server.generation import Generation, Job, Piece
from octavo.server.request_id import request_id_of
from octavo.server.responses import PromptTokensDetails, Usage
from octavo.server.service import Service

logger = get_logger(__name__)

_encode = msgspec.json.Encoder().encode


class Dialect(Protocol):
    """One API's way of saying what was generated."""

    job: Job

    def chunks(self, piece: Piece, generation: Generation) -> Iterable[msgspec.Struct]:
        """What a stream says of a piece."""
        ...

    def closing(self, generation: Generation) -> Iterable[msgspec.Struct]:
        """What a stream says when all has been generated."""
        ...

    def result(self, outputs: list[RequestOutput], generation: Generation) -> msgspec.Struct:
        """The whole answer, given one output a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream separates its chunks, and how it says that it failed (the same way, where ``frame_error`` is None)."""

    media_type: str
    frame: Callable[[msgspec.Struct], bytes]
    end: bytes
    frame_error: Callable[[HttpError], bytes] | None = None


EVENTS = Framing("text/event-stream", lambda chunk: b"data: " + _encode(chunk) + b"\n\n", b"data: [DONE]\n\n")
JSON_LINES = Framing("application/x-ndjson", lambda chunk: _encode(chunk) + b"\n", b"")


def named_event(chunk: msgspec.Struct) -> bytes:
    """A server-sent event under the name that the chunk's struct is tagged with."""
    return b"event: %s\ndata: %s\n\n" % (str(chunk.__struct_config__.tag).encode(), _encode(chunk))


def usage_of(generation: Generation, *, details: bool = True) -> Usage:
    """The usage so far; ``details`` adds how much of the prompt was cached."""
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    usage = Usage(prompt, completion, prompt + completion)
    if details:
        usage.prompt_tokens_details = PromptTokensDetails(generation.cached_tokens)
    return usage


def json_response(body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A whole answer."""
    return Response(_encode(body), status, headers, "application/json")


async def answer(request: Request, service: Service, dialect: Dialect, framing: Framing | None) -> Response:
    """Generate what a dialect asks for.

    Args:
        request: whose body has been read.
        framing: how to stream; None for a whole answer.

    Raises:
        OctavoError: nothing was generated, and why.
        ClientDisconnectedError: the client went away; what ran for it was aborted.
    """
    generation = Generation(service, dialect.job, request.scope["route"].path)
    async with WhileConnected(request.receive):
        await generation.start()
        if framing is not None:
            return _StreamResponse(generation, dialect, framing)
        async with generation:
            return json_response(dialect.result(await generation.collect(), generation))


class _StreamResponse(Response):
    """Sends a generation while it is made.

    The status goes out with the first chunk, so that a failure before it is an ordinary error answer, with its own status.
    """

    def __init__(self, generation: Generation, dialect: Dialect, framing: Framing) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type=framing.media_type)
        del self.headers["content-length"]
        self._generation = generation
        self._dialect = dialect
        self._framing = framing
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            try:
                async with WhileConnected(receive):
                    await self._send_chunks(send)
            except ClientDisconnectedError:
                return
            except Exception as error:
                await self._send_error(error, scope, receive, send)

    async def _send_chunks(self, send: Send) -> None:
        frame = self._framing.frame
        async for piece in self._generation.pieces():
            if body := b"".join(map(frame, self._dialect.chunks(piece, self._generation))):
                await self._write(send, body)
        body = b"".join(map(frame, self._dialect.closing(self._generation))) + self._framing.end
        await self._write(send, body, more=False)

    async def _send_error(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = request_id_of(scope)
        if isinstance(error, OctavoError):
            logger.error("request %s failed: %s", request_id, error)
        else:
            logger.error("request %s failed", request_id, exc_info=error)
        found = describe(error, request_id)
        if self._started:
            frame_error = self._framing.frame_error or (lambda error: self._framing.frame(error.body))
            await self._write(send, frame_error(found) + self._framing.end, more=False)
        else:
            await response(found, scope)(scope, receive, send)

    async def _write(self, send: Send, body: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})
