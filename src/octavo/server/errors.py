"""From exceptions to HTTP: one table of statuses. ``error_shapes`` has how each API spells them."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import (
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    MemoryPlanError,
    ModelLoadError,
    ModelNotFoundError,
    NotReadyError,
    OctavoError,
    QueueFullError,
)
from octavo.log import get_logger
from octavo.server.error_shapes import ErrorBody, ErrorDetail, spell
from octavo.server.request_id import request_id_of

logger = get_logger(__name__)


class ContentTypeError(OctavoError):
    """The body is not declared as JSON (HTTP 415)."""


class BodyTooLargeError(OctavoError):
    """The body is longer than the server takes (HTTP 413)."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is larger than {limit} bytes, this server's limit (--max-body-bytes).")


class AuthenticationError(OctavoError):
    """The key is missing or wrong (HTTP 401)."""


class NotAvailableError(OctavoError):
    """The route is that of a feature this version does not have (HTTP 501)."""


class HttpError(msgspec.Struct):
    """An exception as HTTP sends it."""

    status: int
    body: ErrorBody
    headers: dict[str, str] = {}


_START_UP_ERRORS = (ModelLoadError, ConfigError, MemoryPlanError)


def describe(error: BaseException, request_id: str = "") -> HttpError:
    """The one table from exceptions to statuses.

    Args:
        error: any exception; those that are not Octavo's own reveal nothing.
        request_id: what a client is to quote where the fault is the server's.
    """
    text = str(error)
    match error:
        case InvalidRequestError():
            return _http(400, error.message, "invalid_request_error", error.param, error.code)
        case AuthenticationError():
            return _http(401, text, "authentication_error", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        case ModelNotFoundError():
            return _http(404, text, "not_found_error", "model", "model_not_found")
        case BodyTooLargeError():
            return _http(413, text, "invalid_request_error", code="body_too_large", headers={"Connection": "close"})
        case ContentTypeError():
            return _http(415, text, "invalid_request_error", code="unsupported_media_type")
        case QueueFullError():
            return _http(429, text, "rate_limit_error", code="queue_full", headers={"Retry-After": str(error.retry_after)})
        case NotAvailableError():
            return _http(501, text, "not_implemented_error", code="not_available")
        case NotReadyError():
            return _http(503, text, "service_unavailable_error", code=error.phase, headers={"Retry-After": str(error.retry_after)})
        case _ if isinstance(error, _START_UP_ERRORS):
            return _http(503, f"The model could not be loaded: {text}", "service_unavailable_error", code="failed")
        case EngineDeadError():
            return _http(500, f"{text} Request id: {request_id}.", "internal_error", code="engine_dead")
        case _:
            return _http(500, f"Internal error. The server's log has the details under request id {request_id}.", "internal_error")


def _http(
    status: int, message: str, kind: str, param: str | None = None, code: str | int | None = None, headers: dict[str, str] | None = None
) -> HttpError:
    return HttpError(status, ErrorBody(ErrorDetail(message, kind, param, code if code is not None else status)), headers or {})


def response(error: HttpError, scope: Scope) -> Response:
    """The HTTP answer, spelled as the API of the request's route has it."""
    return Response(_body(error, scope), error.status, error.headers, "application/json")


def _body(error: HttpError, scope: Scope) -> bytes:
    return msgspec.json.encode(spell(error.status, error.body, scope["path"].removeprefix(scope.get("root_path", ""))))


async def answer_octavo_error(request: Request, error: Exception) -> Response:
    """Exception handler of all ``OctavoError``."""
    found = describe(error, request_id_of(request.scope))
    if found.status == 500:
        logger.error("request %s failed: %s", request_id_of(request.scope), error)
    if isinstance(error, BodyTooLargeError):
        return _UnreadBodyResponse(_body(found, request.scope), found.status, found.headers, "application/json")
    return response(found, request.scope)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Exception handler of Starlette's own: unknown routes and wrong methods."""
    assert isinstance(error, HTTPException), "registered for this class alone"
    path = request.scope["path"]
    if error.status_code == 404:
        message = f"There is no route {request.method} {path}; /docs lists those there are."
    elif error.status_code == 405:
        message = f"{request.method} is not allowed on {path}; use {(error.headers or {}).get('Allow', 'another method')}."
    else:
        message = str(error.detail)
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    return response(_http(error.status_code, message, kind, headers=dict(error.headers or {})), request.scope)


async def answer_nobody(request: Request, error: Exception) -> Response:
    """Exception handler of ``ClientDisconnectedError``: the answer goes nowhere; 499 is what logs of proxies call it."""
    return Response(status_code=499)


class _UnreadBodyResponse(Response):
    """Answers a client that is still writing: the rest of what it writes is read and dropped for a moment, because closing
    the connection on unread data would reset it before the client has read the answer."""

    MOST_BYTES = 64 * 2**20
    MOST_SECONDS = 2.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.MOST_SECONDS):
                await self._discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self, receive: Receive) -> None:
        left = self.MOST_BYTES
        while left > 0:
            message = await receive()
            if not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))


class InternalErrors:
    """ASGI middleware that logs what nobody expected, under the request's id, and tells the client the id alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            request_id = request_id_of(scope)
            logger.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise
            await response(describe(error, request_id), scope)(scope, receive, send)
