"""The API key check: on every route but those that probes and scrapers need."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.errors import AuthenticationError, describe, response

OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/metrics"})


class ApiKeys:
    """ASGI middleware that asks for ``Authorization: Bearer KEY`` or ``x-api-key: KEY``.

    Keys are compared as digests and all of them each time, so that time tells nothing about them, their length included.

    Args:
        app: what is guarded.
        keys: any of them opens; at least one.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) not in OPEN_PATHS:
            given = _given_key(scope)
            if given is None or not self._opens(given):
                problem = "No API key was sent" if given is None else "The API key is wrong"
                error = AuthenticationError(f"{problem}; send one this server knows as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.")
                await response(describe(error), scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _opens(self, key: bytes) -> bool:
        digest = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def _given_key(scope: Scope) -> bytes | None:
    """The key a request brings: a bearer's, or as Anthropic's clients send it; another scheme is a wrong key. None where there is none."""
    headers = {name: value for name, value in reversed(scope["headers"]) if name in (b"authorization", b"x-api-key")}
    if (bearer := headers.get(b"authorization")) is not None:
        scheme, _, key = bearer.partition(b" ")
        return bytes(key.strip()) if scheme.lower() == b"bearer" else b""
    return headers.get(b"x-api-key")
