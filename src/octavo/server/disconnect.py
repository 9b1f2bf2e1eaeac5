"""Noticing at once that a client has gone, so that no token is computed for nobody."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive


class ClientDisconnectedError(Exception):
    """The client closed the connection; there is nobody to answer."""


class WhileConnected:
    """``async with WhileConnected(receive): ...`` cancels its body when the client goes and raises ``ClientDisconnectedError`` instead.

    Works like ``asyncio.timeout``: a watcher cancels the current task, and the exit turns that one cancellation into the error;
    a cancellation from elsewhere passes through.

    Args:
        receive: ASGI's, after the request's body has been read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "only coroutines of a task can be cancelled"
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watcher.cancel()
        if self._gone and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise ClientDisconnectedError from None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()
