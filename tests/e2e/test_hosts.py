"""Two hosts, by flags: the same tokens, and what becomes of requests when a process or the link between them fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from faults import ANSWER, BOUND, answers_again, ask, fails_within
from serving import LONG_ANSWER, SHORT_ANSWER, Server, engine_pids, free_port, serving, wait_gone, workers
from two_hosts import OtherHost, other_host, why_not

pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[OtherHost]:
    with other_host(tmp_path) as made:
        yield made


def flags(host: OtherHost, port: int, *more: str) -> list[str]:
    small = ["--kv-cache-memory-bytes", "128M", "--max-model-len", "1024", "--threads", "1"]
    return ["--nnodes", "2", "--master-addr", host.here, "--master-port", str(port), *small, *more]


def agent(process: subprocess.Popen[bytes]) -> int:
    """``ip netns exec`` becomes what it runs."""
    return process.pid


@pytest.mark.parametrize("layout", [("-tp", "2"), ("-pp", "2"), ("-tp", "2", "-pp", "2")], ids=" ".join)
def test_two_hosts_answer_as_one_and_leave_nothing_behind(host: OtherHost, tmp_path: Path, layout: tuple[str, ...]) -> None:
    port = free_port()
    with host.serving(*flags(host, port, *layout, "--node-rank", "1")) as there, serving(tmp_path, *flags(host, port, *layout)) as server:
        assert ask(server) == ANSWER
        half = len(layout) // 2
        (engine,) = engine_pids(server)
        assert [len(workers(engine)), len(workers(agent(there)))] == [half, half]
        there_pids = workers(agent(there))
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        wait_gone(there_pids, 20)
        assert there.poll() is None, "the host waits for the next engine"
        there.terminate()
        assert there.wait(timeout=20) == 0


async def test_hosts_that_are_told_to_stop_together_finish_what_runs(host: OtherHost, tmp_path: Path) -> None:
    port = free_port()
    with (
        host.serving(*flags(host, port, "-tp", "2", "--node-rank", "1")) as there,
        serving(tmp_path, *flags(host, port, "-tp", "2")) as server,
    ):
        async with httpx.AsyncClient(timeout=60) as client:
            body = LONG_ANSWER | {"max_tokens": 150}
            running = asyncio.ensure_future(client.post(f"{server.url}/generate", json=body))
            await server.reach("vllm:num_requests_running")
            there.terminate()
            server.process.terminate()
            answer = await running
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 150
        assert server.process.wait(timeout=20) == 0
        assert there.wait(timeout=20) == 0


async def test_a_cut_link_is_an_error_within_the_bound_and_mended_it_serves_again(host: OtherHost, tmp_path: Path) -> None:
    port = free_port()
    with host.serving(*flags(host, port, "-tp", "2", "--node-rank", "1")), serving(tmp_path, *flags(host, port, "-tp", "2")) as server:
        assert ask(server) == ANSWER
        said = await fails_within(server, host.cut)
        assert "no sign of life" in said and "host 1" in said
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()["phase"]) == (503, "restarting")
        refused = httpx.post(f"{server.url}/generate", json=SHORT_ANSWER)
        assert refused.status_code == 503
        host.mend()
        answers_again(server)
        assert ask(server) == ANSWER


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
async def test_any_process_may_die_or_stop_on_either_host(host: OtherHost, tmp_path: Path, how: signal.Signals) -> None:
    """One server lives through all of it, one fault after the other."""
    port = free_port()
    there_flags = flags(host, port, "-tp", "2", "--node-rank", "1")
    told = "ended with signal SIGKILL" if how == signal.SIGKILL else "has shown no sign of life"
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(host.serving(*there_flags))
        server = stack.enter_context(serving(tmp_path, *flags(host, port, "-tp", "2")))
        for victim, named in (
            (lambda: workers(agent(there))[0], "rank 1 of 2 (host 1"),
            (lambda: workers(engine_pids(server)[0])[0], "rank 0 of 2 (host 0, process {pid})"),
            (lambda: engine_pids(server)[0], "The engine process {pid}"),
            (lambda: agent(there), ""),
        ):
            answers_again(server)
            (engine,) = engine_pids(server)
            ranks = [*workers(engine), *workers(agent(there))]
            pid = victim()
            said = await fails_within(server, lambda pid=pid: os.kill(pid, how))
            assert not named or (named.format(pid=pid) in said and told in said), said
            wait_gone(ranks, 10)
        if how == signal.SIGSTOP:
            os.kill(agent(there), signal.SIGCONT)
        else:
            stack.enter_context(host.serving(*there_flags))
        answers_again(server)
        assert ask(server) == ANSWER


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
def test_a_host_may_die_or_stop_while_all_is_idle_and_while_its_ranks_start(host: OtherHost, tmp_path: Path, how: signal.Signals) -> None:
    port = free_port()
    there_flags = flags(host, port, "-tp", "2", "--node-rank", "1")

    def phase() -> str:
        return str(httpx.get(f"{server.url}/health").json()["phase"])

    with contextlib.ExitStack() as stack:
        there = stack.enter_context(host.serving(*there_flags))
        server = stack.enter_context(serving(tmp_path, *flags(host, port, "-tp", "2")))
        for moment in ("idle", "start-up"):
            if moment == "idle":
                answers_again(server)
            else:
                server.wait_until(lambda there=there: len(workers(agent(there))) == 1, 30, "a rank of the next start")
            ranks = [*workers(engine_pids(server)[0]), *workers(agent(there))]
            os.kill(agent(there), how)
            server.wait_until(lambda: phase() == "restarting", BOUND, "an end of what nobody waits for")
            wait_gone(ranks, BOUND)
            if how == signal.SIGSTOP:
                os.kill(agent(there), signal.SIGCONT)
            else:
                there = stack.enter_context(host.serving(*there_flags))
        answers_again(server)
        assert ask(server) == ANSWER


def test_a_host_that_does_not_fit_in_is_told_why(host: OtherHost, tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, *flags(host, port, "-tp", "2"), wait=False):
        with host.serving(*flags(host, port, "-pp", "2", "--node-rank", "1")) as there:
            assert there.wait(timeout=60) == 2
        assert "turns this host away: its nnodes, tensor_parallel_size and pipeline_parallel_size are [2, 1, 2]" in host.log()


def test_torchrun_places_the_hosts(tmp_path: Path) -> None:
    """Both on this host: torchrun's own store holds the engine's address."""
    port, master = free_port(), free_port()
    small = ["--kv-cache-memory-bytes", "128M", "--max-model-len", "1024", "--threads", "1", "-tp", "2", "--port", str(port)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    commands = [
        [*torchrun, "--master-port", str(master), "--node-rank", str(rank), "-m", "octavo.entrypoints.api_server", *small]
        for rank in (0, 1)
    ]
    with contextlib.ExitStack() as stack, (tmp_path / "log").open("wb") as out:
        started = [stack.enter_context(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)) for command in commands]
        stack.callback(lambda: [process.terminate() for process in started])
        server = Server(f"http://127.0.0.1:{port}", started[0], tmp_path / "log")
        server.wait_ready()
        assert ask(server) == ANSWER
