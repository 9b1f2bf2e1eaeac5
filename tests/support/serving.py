"""A real server on a real socket, for end-to-end tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 120.0  # the first start on a machine also fetches the model

LONG_ANSWER = {"prompt": "Count to a thousand:", "raw": True, "max_tokens": 900, "ignore_eos": True, "temperature": 0}
SHORT_ANSWER = {"prompt": "Hello", "max_tokens": 4}


@dataclass
class Server:
    """A running server and what it has printed."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over its labels."""
        text = httpx.get(f"{self.url}/metrics").text
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert values, f"no metric {name} in:\n{text}"
        return sum(map(float, values))

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what} did not come about within {seconds} s; the server printed:\n{self.log()}"
            time.sleep(0.05)

    async def reach(self, name: str, number: int = 1, seconds: float = 30) -> None:
        """Wait, while the test's own requests go on, until a metric is at least so much."""
        end = time.monotonic() + seconds
        while self.metric(name) < number:
            assert time.monotonic() < end, f"{name} did not reach {number} within {seconds} s; the server printed:\n{self.log()}"
            await asyncio.sleep(0.01)

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"the server exited with {self.process.returncode}:\n{self.log()}"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/health").status_code == 200
            return False

        self.wait_until(ready, seconds, "readiness")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path, *flags: str, wait: bool = True, **variables: str) -> Iterator[Server]:
    """Run ``python -m octavo.entrypoints.api_server`` with the flags on a free port; stopped at the end whatever happens."""
    port = free_port()
    log_file = folder / f"server-{port}.log"
    command = [sys.executable, "-m", "octavo.entrypoints.api_server", "--port", str(port), *flags]
    with log_file.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | variables)
    server = Server(f"http://127.0.0.1:{port}", process, log_file)
    try:
        if wait:
            server.wait_ready()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def engine_pids(server: Server) -> list[int]:
    """Live children of the server that run the engine."""
    return children(server.process.pid, b"octavo.engine.process")


def workers(parent: int) -> list[int]:
    """Live ranks that a process has started, in their order."""
    return children(parent, b"octavo.executor.worker")


def wait_gone(pids: list[int], seconds: float) -> None:
    """Until none of them runs; one may remain as a zombie, while its parent is stopped."""
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]:
        assert time.monotonic() < end, f"{left} still run"
        time.sleep(0.05)


def children(parent: int, module: bytes) -> list[int]:
    """A process's live children that run a module."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            whose = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if whose == parent and module in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(found)
