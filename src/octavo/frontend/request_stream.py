"""The reader's end of a submitted request: an async iterator of deltas that never makes the engine wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from octavo.frontend.input_processor import PreparedRequest
from octavo.frontend.output_processor import OutputCollector, merge_deltas
from octavo.frontend.outputs import RequestDelta

_MERGE_AT = 32
"""Unread deltas are folded into one when there are that many: their memory stays near that of the tokens themselves."""


class DeltaChannel:
    """What waits to be read of one request. Written by the client's listening task, read by one reader, both on one event loop."""

    def __init__(self) -> None:
        self._unread: list[RequestDelta] = []
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self.closed = False

    def put(self, delta: RequestDelta) -> None:
        """Add a delta; one that finishes the request closes the channel."""
        self._unread.append(delta)
        if len(self._unread) >= _MERGE_AT:
            self._unread = [merge_deltas(self._unread)]
        self.closed = self.closed or delta.finished
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Close the channel; the reader gets what is unread and then the error."""
        self._error = error
        self.closed = True
        self._news.set()

    async def read(self) -> RequestDelta | None:
        """All that is unread as one delta; None at the end.

        Raises:
            Exception: what ``fail`` was given.
        """
        while not self._unread and not self.closed:
            self._news.clear()
            await self._news.wait()
        if self._unread:
            unread, self._unread = self._unread, []
            return merge_deltas(unread)
        if self._error is not None:
            raise self._error
        return None


class RequestStream:
    """The deltas of one request, in order; the last has ``finished`` set. Deltas that were not read in time come merged.

    Iterate it once. Dropping it, or ``aclose``, aborts a request that still runs.

    Attributes:
        request_id: the client's name for the request.
        prompt: the text the model sees; None where token ids were sent.
        prompt_token_ids: what the model sees.
        engine: the number of the engine that it went to.
    """

    def __init__(
        self, request_id: str, request: PreparedRequest, channel: DeltaChannel, abort: Callable[[], None], engine: int = 0
    ) -> None:
        self.request_id = request_id
        self.prompt = request.prompt
        self.prompt_token_ids = request.prompt_token_ids
        self.engine = engine
        self._params = request.params
        self._channel = channel
        self._abort = abort
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> RequestDelta:
        """The next delta.

        Raises:
            EngineDeadError: the engine process died while the request ran.
            StopAsyncIteration: the request has ended.
        """
        delta = await self._channel.read()
        if delta is None:
            raise StopAsyncIteration
        return delta

    def collector(self) -> OutputCollector:
        """What folds this stream's deltas into a ``RequestOutput``."""
        return OutputCollector(
            self.request_id, self.prompt, self.prompt_token_ids, self._params.n, wants_logprobs=self._params.logprobs is not None
        )

    def abort(self) -> None:
        """End the request now and free its pages; the reader gets one last delta that says ``abort``. Idempotent."""
        if not self._channel.closed:
            self._abort()

    async def aclose(self) -> None:
        """Be done with the stream: abort what still runs."""
        self.abort()

    def __del__(self) -> None:
        # The collector may run this in any thread, and after the loop is gone, when there is nothing left to abort.
        if not self._channel.closed:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._abort)
