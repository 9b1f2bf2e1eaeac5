"""One client's connection, with a bound on all that it can make the server hold or wait for.

uvicorn's protocol parses; what is added here are the limits that it lacks: the head's size, the time that a request may take to come
in, and the time that a client may leave an answer unread.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo.server.error_shapes import ErrorBody, ErrorDetail

MAX_HEAD_BYTES = 64 * 2**10
"""Largest request line and headers together."""
MAX_HEADERS = 200
MAX_UNREAD_BYTES = 64 * 2**20
"""Most of a body that comes in after its request has been answered, which is thrown away; then the connection is closed."""
LINGER_SECONDS = 2.0
"""How long a client whose request was refused unread may go on sending."""
_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits.

    Attributes:
        head_seconds: how long a connection may take until a whole head has come.
        body_seconds: how long a body may pause.
        write_seconds: how long a client may read nothing while an answer waits.
    """

    head_seconds = 30.0
    body_seconds = 30.0
    write_seconds = 60.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._head_bytes = 0
        self._heads = 0  # read whole so far
        self._unread_bytes = 0
        self._refused = False
        self._incoming: asyncio.TimerHandle | None = None
        self._outgoing: asyncio.TimerHandle | None = None

    # ---- the connection's life ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self._stop_waiting_for_the_reader()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        in_head, heads = self._in_head, self._heads
        super().data_received(data)
        # All of it is a head's only if no body ended in it and no head: what follows those is less than one read, and is let pass.
        if in_head and self._in_head and self._heads == heads and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()

    # ---- a request's parts -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._refused:
            return
        super().on_message_begin()
        self._in_head, self._head_bytes, self._unread_bytes = True, 0, 0
        self._expect(self.head_seconds)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._in_head = False
        self._heads += 1
        if (
            len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES
            or len(self.headers) > MAX_HEADERS
        ):
            self._refuse_head()
            return
        super().on_headers_complete()
        self._expect(self.body_seconds)

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        super().on_body(body)
        self._expect(self.body_seconds)
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.transport.abort()

    def on_message_complete(self) -> None:
        if self._refused:
            return
        self._expect(None)
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    # ---- clients that take their time --------------------------------------------------------------------------------

    def _expect(self, seconds: float | None) -> None:
        """More has to come in within that time; None: nothing has to."""
        if self._incoming is not None:
            self._incoming.cancel()
        self._incoming = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        answering = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if self._refused:
            self.transport.abort()
        elif self.flow.read_paused or (self._in_head and self.cycle is not None and not self.cycle.response_complete):
            self._expect(self.head_seconds)  # it is the server that is not reading, or still at work on the request before
        elif answering:
            self.transport.abort()
        else:
            self._refuse(408, "The request did not come in whole in time.", "request_timeout")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._outgoing = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting_for_the_reader()

    def _stop_waiting_for_the_reader(self) -> None:
        if self._outgoing is not None:
            self._outgoing.cancel()
            self._outgoing = None

    def timeout_keep_alive_handler(self) -> None:
        """As uvicorn's; a client that has not read its answer by now is not waited for."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    # ---- refusals that no route sees ---------------------------------------------------------------------------------

    def _refuse_head(self) -> None:
        limits = f"{MAX_HEAD_BYTES // 2**10} KiB and {MAX_HEADERS} headers"
        self._refuse(431, f"The request line and the headers are too large; at most {limits} are taken.", "headers_too_large")

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to what is no HTTP, in the API's own shape."""
        if not self._refused:
            self._refuse(400, "The request is not valid HTTP.", "invalid_http")

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: an offer to upgrade may be passed over, and is no news for the log."""

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._refused = True
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(ErrorBody(ErrorDetail(message, "invalid_request_error", None, code)))
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, _PHRASES[status], len(body)) + body)
        # What the client still sends is read for a moment: closing over unread bytes resets the connection, and the answer with it.
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._expect(LINGER_SECONDS)
        else:
            self.transport.close()
