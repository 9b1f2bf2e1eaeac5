"""What a client and an operator see of a process that dies or is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest
from faults import answers_again, fails_within
from serving import LONG_ANSWER, engine_pids, serving, wait_gone, workers

SMALL = ("--kv-cache-memory-bytes", "128M", "--max-model-len", "1024")
SILENCE = 15.0
"""Seconds without a sign of life after which a process is given up."""


@pytest.mark.parametrize("kind", ["engine", "rank"])
async def test_one_that_is_stopped_is_given_up_and_replaced(tmp_path: Path, kind: str) -> None:
    with serving(tmp_path, *SMALL, "-tp", "2") as server:
        (engine,) = engine_pids(server)
        ranks = workers(engine)
        victim = engine if kind == "engine" else ranks[1]
        said = await fails_within(server, lambda: os.kill(victim, signal.SIGSTOP))
        assert "has shown no sign of life for 15 s" in said
        assert f"process {victim}" in said.replace(")", "")
        wait_gone([engine, *ranks], 10)
        answers_again(server)


@pytest.mark.parametrize("kind", ["engine", "rank"])
def test_one_that_dies_while_it_starts_is_named_in_the_last_line(tmp_path: Path, kind: str) -> None:
    with serving(tmp_path, *SMALL, "-tp", "2", wait=False) as server:
        server.wait_until(lambda: bool(engine_pids(server)), 60, "an engine")
        (engine,) = engine_pids(server)
        server.wait_until(lambda: len(workers(engine)) == 2, 60, "ranks")
        ranks = workers(engine)
        os.kill(engine if kind == "engine" else ranks[1], signal.SIGKILL)
        assert server.process.wait(timeout=20) != 0
        last = server.log().strip().splitlines()[-1]
        assert (f"engine process {engine}" if kind == "engine" else f"rank 1 of 2 (process {ranks[1]})") in last, server.log()
        assert "ended with signal SIGKILL" in last
        wait_gone([engine, *ranks], 10)


def test_no_process_outlives_a_killed_server(tmp_path: Path) -> None:
    """Not even one that is stopped."""
    with serving(tmp_path, *SMALL, "-tp", "2") as server:
        (engine,) = engine_pids(server)
        ranks = workers(engine)
        os.kill(ranks[0], signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        wait_gone([engine, *ranks], 10)


async def test_a_server_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Its engine and ranks were well all the time, and so it takes them to be."""
    with serving(tmp_path, *SMALL, "-tp", "2") as server:
        (engine,) = engine_pids(server)
        async with httpx.AsyncClient(timeout=SILENCE + 120) as client:
            running = asyncio.ensure_future(client.post(f"{server.url}/generate", json=LONG_ANSWER))
            await server.reach("vllm:num_requests_running")
            os.kill(server.process.pid, signal.SIGSTOP)
            await asyncio.sleep(SILENCE + 2)
            os.kill(server.process.pid, signal.SIGCONT)
            answer = await running
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == LONG_ANSWER["max_tokens"]
        assert engine_pids(server) == [engine]


async def test_all_that_were_stopped_go_on(tmp_path: Path) -> None:
    """As a container is paused: nobody holds against the others the time in which nobody ran."""
    with serving(tmp_path, *SMALL, "-tp", "2") as server:
        (engine,) = engine_pids(server)
        all_of_them = [server.process.pid, engine, *workers(engine)]
        async with httpx.AsyncClient(timeout=SILENCE + 120) as client:
            running = asyncio.ensure_future(client.post(f"{server.url}/generate", json=LONG_ANSWER))
            await server.reach("vllm:num_requests_running")
            for pid in all_of_them:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(SILENCE + 2)
            for pid in all_of_them:
                os.kill(pid, signal.SIGCONT)
            answer = await running
        assert answer.status_code == 200
        assert engine_pids(server) == [engine]
