"""uvicorn around the app: serve, tell when it is ready, drain on a signal, fail when the engine does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from octavo.config import EngineOptions, ServerOptions
from octavo.errors import ConfigError, OctavoError
from octavo.frontend.client import EngineClient
from octavo.log import get_logger
from octavo.server.app import build_app
from octavo.server.connection import BoundedHttpProtocol

logger = get_logger(__name__)

KEEP_ALIVE_SECONDS = 65
"""Longer than the minute after which common proxies drop idle connections, so that none is reused while it is being closed."""
LAST_WRITES_SECONDS = 5
"""How long answers that are whole get to reach slow clients, after draining."""
FAILURE_POLL_SECONDS = 1.0


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT drains, the second stops at once; either way the exit is an ordinary one.

    Args:
        config: uvicorn's.
        client: the engine's client.
        timeout: seconds that running requests get to finish.
    """

    def __init__(self, config: uvicorn.Config, client: EngineClient, timeout: float) -> None:
        super().__init__(config)
        self._client = client
        self._timeout = timeout
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replaces uvicorn's, which would end the process by the signal that stopped it."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.on_signal)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def on_signal(self) -> None:
        """Drain; when draining already, stop."""
        if self._draining is None:
            logger.info("shutting down: running requests get %.0f s to finish; a second signal stops at once", self._timeout)
            self._draining = asyncio.create_task(self._drain())
            return
        logger.info("stopping at once")
        self._draining.cancel()
        self.should_exit = self.force_exit = True
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _drain(self) -> None:
        """The port goes on answering (503, and what still runs) until the engine is done."""
        await self._client.drain(self._timeout)
        await self._client.shutdown()
        self.should_exit = True


def configure(app: FastAPI, server: ServerOptions) -> uvicorn.Config:
    """How uvicorn serves the app."""
    return uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        root_path=server.root_path,
        ssl_keyfile=server.ssl_keyfile,
        ssl_certfile=server.ssl_certfile,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=LAST_WRITES_SECONDS,
    )


def run(listener: socket.socket, engine: EngineOptions, server: ServerOptions, on_ready: Callable[[str], None]) -> int:
    """Serve until a signal or the engine's failure.

    Args:
        listener: bound and listening.
        engine: the engine's options. server: the server's.
        on_ready: called once with the served name, when the first request can be computed.

    Returns:
        The process's exit code: 0 after a signal, 1 when the engine failed.

    Raises:
        ConfigError: the TLS files cannot be used, or traces not made.
    """
    client = EngineClient(engine)
    config = configure(build_app(client, engine, server), server)
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--ssl-certfile {server.ssl_certfile} and --ssl-keyfile {server.ssl_keyfile} cannot be used: {error}") from None
    http = DrainingServer(config, client, server.shutdown_timeout)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(_serve(http, client, listener, server, on_ready))


async def _serve(
    http: DrainingServer, client: EngineClient, listener: socket.socket, server: ServerOptions, on_ready: Callable[[str], None]
) -> int:
    watch = asyncio.create_task(_watch(http, client, server, on_ready))
    try:
        await http.serve(sockets=[listener])
    finally:
        watch.cancel()
        await client.shutdown()
    return 1 if client.phase == "failed" else 0


async def _watch(http: DrainingServer, client: EngineClient, server: ServerOptions, on_ready: Callable[[str], None]) -> None:
    """Tell when the engine is ready, and end the process once it has failed for good (the client's log line says why)."""
    with contextlib.suppress(OctavoError):
        await client.wait_ready()
        assert client.model is not None, "a ready client has a model"
        on_ready(server.served_model_name[0] if server.served_model_name else client.model.name)
    while client.phase != "failed":  # noqa: ASYNC110 (the client has no event for it, and a second is soon enough)
        await asyncio.sleep(FAILURE_POLL_SECONDS)
    http.should_exit = True
