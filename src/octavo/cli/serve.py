"""``octavo serve``: bind the port, then import and load what answers on it; on a host above 0, run ranks for the server on host 0."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from octavo import log
from octavo.config import EngineOptions, ServerOptions
from octavo.errors import OctavoError

BACKLOG = 2048


def serve(engine: EngineOptions, server: ServerOptions) -> int:
    """Serve until a signal.

    Args:
        engine: the engine's options. server: the server's.

    Returns:
        The process's exit code.

    Raises:
        OctavoError: the address cannot be listened on.
    """
    if engine.hosts.node_rank > 0:
        from octavo.executor.host_agent import run_host

        log.configure(f"host {engine.hosts.node_rank}")
        return run_host(engine, server.shutdown_timeout)
    log.configure("server")
    listener = listen(server)  # before the imports: from here on clients are not refused, they wait
    url = address(listener, server)
    print(f"octavo: listening on {url} (the model is loading; requests wait in line)", flush=True)
    try:
        from octavo.server.http_server import run

        return run(listener, engine, server, lambda name: print(f"octavo: ready: {name} at {url}", flush=True))
    finally:
        listener.close()
        if server.uds is not None:
            Path(server.uds).unlink(missing_ok=True)


def listen(server: ServerOptions) -> socket.socket:
    """A listening socket.

    Raises:
        OctavoError: naming the address and the reason.
    """
    where = server.uds if server.uds is not None else f"{server.host}:{server.port}"
    try:
        return _listen_unix(server.uds) if server.uds is not None else _listen_tcp(server.host, server.port)
    except OSError as error:
        advice = "; another --port is free with --port 0" if error.errno == errno.EADDRINUSE and server.uds is None else ""
        raise OctavoError(f"Cannot listen on {where}: {os.strerror(error.errno) if error.errno else error}{advice}.") from None


def _listen_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, sockaddr = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(sockaddr[:2], family=family, backlog=BACKLOG)


def _listen_unix(path: str) -> socket.socket:
    """A socket file that a server which was killed left behind is replaced; a live server's is not."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).exists() and stat.S_ISSOCK(Path(path).stat().st_mode) and not _answers(path):
            Path(path).unlink()
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0


def address(listener: socket.socket, server: ServerOptions) -> str:
    """Where the server answers, as a URL."""
    if server.uds is not None:
        return f"unix:{server.uds}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if server.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
