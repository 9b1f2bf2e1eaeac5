"""Ray places the ranks: on a cluster of its own on this host, and on a cluster of two hosts that runs already."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import ANSWER, answers_again, ask, fails_within
from serving import engine_pids, free_port, serving, wait_gone, workers
from two_hosts import OtherHost, other_host, why_not

pytest.importorskip("ray", reason="Ray is an optional extra and is not installed")

SMALL = ("--kv-cache-memory-bytes", "128M", "--max-model-len", "1024", "-tp", "2", "--distributed-executor-backend", "ray")


def ranks_of(agents: bytes) -> list[int]:
    """Ranks whose parent is an agent that Ray runs: those of tests beside this one are not."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and agents in (entry / "cmdline").read_bytes():
                found += workers(int(entry.name))
    return sorted(found)


async def test_a_cluster_of_its_own_begins_and_ends_with_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL, RAY_ADDRESS="local") as server:
        assert ask(server) == ANSWER
        (engine,) = engine_pids(server)
        ranks = ranks_of(b"ray::_Agent")
        assert workers(engine) == [] and len(ranks) == 2
        said = await fails_within(server, lambda: os.kill(ranks[1], signal.SIGKILL))
        assert f"rank 1 of 2 (host 0, process {ranks[1]}) ended with signal SIGKILL" in said
        wait_gone([engine, *ranks], 5)
        answers_again(server, 60)
        assert ask(server) == ANSWER
        ranks = ranks_of(b"ray::_Agent")
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        wait_gone(ranks, 5)


def test_a_model_that_a_host_cannot_find_is_told_in_the_last_line(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL, "--model", "no/such-model-anywhere", wait=False, RAY_ADDRESS="local", HF_HUB_OFFLINE="1") as server:
        assert server.process.wait(timeout=60) != 0
        assert "no/such-model-anywhere" in server.log().strip().splitlines()[-1]


def test_a_cluster_that_is_not_there_is_told_in_the_last_line(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL, wait=False, RAY_ADDRESS=f"127.0.0.1:{free_port()}") as server:
        assert server.process.wait(timeout=60) != 0
        assert "Cannot reach the Ray cluster" in server.log().strip().splitlines()[-1]


@contextlib.contextmanager
def cluster(host: OtherHost, folder: Path) -> Iterator[str]:
    """Ray on both hosts, a CPU on each; yields its address."""
    address = f"{host.here}:{free_port()}"
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    here = [*ray, "--head", "--node-ip-address", host.here, "--port", address.rpartition(":")[2], "--include-dashboard", "false"]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "ray.log").open("wb"))
        head = subprocess.Popen([*here, "--temp-dir", str(folder)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        stack.callback(head.wait)
        stack.callback(head.terminate)
        end = time.monotonic() + 60
        while b"Ray runtime started" not in (folder / "ray.log").read_bytes():
            assert time.monotonic() < end and head.poll() is None, (folder / "ray.log").read_text()
            time.sleep(0.2)
        stack.enter_context(host.running(*ray, "--address", address, "--node-ip-address", host.there))
        yield address


@pytest.mark.skipif(bool(reason := why_not()), reason=reason)
async def test_two_hosts_of_a_cluster_share_the_ranks_and_outlive_a_cut_link(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    folder = tmp_path_factory.mktemp("r")  # a short name: Ray puts sockets below it
    two = ("--nnodes", "2", "--threads", "1")
    with other_host(folder) as host, cluster(host, folder) as address, serving(folder, *SMALL, *two, RAY_ADDRESS=address) as server:
        assert ask(server) == ANSWER
        ranks = ranks_of(b"ray::_Agent")
        assert len({Path(f"/proc/{rank}/ns/net").readlink() for rank in ranks}) == 2, "one on each host"
        said = await fails_within(server, host.cut)
        assert "no sign of life" in said and "host" in said
        host.mend()
        answers_again(server, 120)
        assert ask(server) == ANSWER
