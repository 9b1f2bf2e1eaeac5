"""An id for every HTTP request: the client's ``X-Request-Id`` where it brings a sane one, echoed in the answer and in the log."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SANE = re.compile(rb"[!-~]{1,128}")
_KEY = "octavo.request_id"


def request_id_of(scope: Scope) -> str:
    """The id that ``RequestIds`` gave this request."""
    return str(scope.get(_KEY, ""))


class RequestIds:
    """ASGI middleware that names each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        own = given if _SANE.fullmatch(given) else secrets.token_hex(12).encode()
        scope[_KEY] = own.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", own)]
            await send(message)

        await self._app(scope, receive, send_with_id)
