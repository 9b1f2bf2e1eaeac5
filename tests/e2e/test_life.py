"""A server's life: up at once, waiting requests, a dead engine, a drain, a bad model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from serving import LONG_ANSWER, SHORT_ANSWER, children, engine_pids, serving

SMALL = ("--kv-cache-memory-bytes", "128M", "--max-model-len", "1024")
HIDDEN = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
"""What a start that is to fail does not see: the hub and, where there is one, a GPU."""


def test_early_requests_wait_while_health_says_503(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL, wait=False) as server:

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{server.url}/health").status_code in (200, 503)
            return False

        server.wait_until(answers, 30, "an open port")
        health = httpx.get(f"{server.url}/health")
        assert health.status_code == 503, "the model cannot have been loaded by now"
        assert health.json()["phase"] in ("starting", "downloading", "loading")
        early = httpx.post(f"{server.url}/generate", json=SHORT_ANSWER, timeout=120)
        assert early.status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200


async def test_a_dead_engine_fails_running_requests_and_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL) as server:
        (pid,) = engine_pids(server)
        async with httpx.AsyncClient(timeout=120) as client:
            whole = asyncio.ensure_future(client.post(f"{server.url}/generate", json=LONG_ANSWER))
            streamed = asyncio.ensure_future(
                client.post(f"{server.url}/v1/completions", json={"prompt": "Count:", "max_tokens": 900, "stream": True})
            )
            await server.reach("vllm:num_requests_running", 2)
            os.kill(pid, signal.SIGKILL)
            failed, broken = await whole, await streamed
            assert failed.status_code == 500
            assert "engine" in failed.json()["error"]["message"].lower()
            events = [line for line in broken.text.splitlines() if line]
            assert '"error"' in events[-2]
            assert events[-1] == "data: [DONE]"
            refused = await client.get(f"{server.url}/health")
            assert refused.status_code == 503
            assert refused.json()["phase"] == "restarting"
        server.wait_ready()
        assert engine_pids(server) != [pid]
        assert httpx.post(f"{server.url}/generate", json=SHORT_ANSWER, timeout=60).status_code == 200


async def test_two_ranks_answer_and_a_dead_one_is_named_and_comes_back(tmp_path: Path) -> None:
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    flags = ("--tensor-parallel-size", "2", "--served-model-name", "x")
    with serving(tmp_path, *SMALL, *flags) as server:
        (engine,) = engine_pids(server)
        ranks = children(engine, b"octavo.executor.worker")
        assert len(ranks) == 2
        async with httpx.AsyncClient(timeout=120) as client:
            answer = (await client.post(f"{server.url}/v1/chat/completions", json=question)).json()
            assert answer["model"] == "x"
            assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
            whole = asyncio.ensure_future(client.post(f"{server.url}/generate", json=LONG_ANSWER))
            await server.reach("vllm:num_requests_running")
            os.kill(ranks[1], signal.SIGKILL)
            failed = await whole
            assert failed.status_code == 500
            assert "of 2" in failed.json()["error"]["message"]
            assert f"process {ranks[1]}" in failed.json()["error"]["message"]
        server.wait_until(lambda: engine_pids(server) not in ([], [engine]), 60, "a new engine")
        server.wait_ready()
        assert httpx.post(f"{server.url}/generate", json=SHORT_ANSWER, timeout=60).status_code == 200
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


async def test_one_of_two_engines_dies_and_the_other_serves(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL, "--data-parallel-size", "2") as server:
        pids = engine_pids(server)
        assert len(pids) == 2
        async with httpx.AsyncClient(timeout=120) as client:
            both = [asyncio.ensure_future(client.post(f"{server.url}/generate", json=LONG_ANSWER)) for _ in range(2)]
            await server.reach("vllm:num_requests_running", 2)
            text = (await client.get(f"{server.url}/metrics")).text
            assert all(f'vllm:num_requests_running{{engine="{number}",model_name=' in text for number in (0, 1))
            os.kill(pids[0], signal.SIGKILL)
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            assert (await client.get(f"{server.url}/health")).status_code == 200
            assert (await client.post(f"{server.url}/generate", json=SHORT_ANSWER)).status_code == 200
            assert sorted([answer.status_code for answer in await asyncio.gather(*both)]) == [200, 500]
        server.wait_until(lambda: len(set(engine_pids(server)) - {pids[0]}) == 2, 60, "a new engine")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL) as server:
        async with httpx.AsyncClient(timeout=120) as client:
            running = asyncio.ensure_future(client.post(f"{server.url}/generate", json=LONG_ANSWER | {"max_tokens": 200}))
            await server.reach("vllm:num_requests_running")
            server.process.terminate()
            late = None
            with contextlib.suppress(httpx.TransportError):
                for _ in range(100):
                    late = await client.post(f"{server.url}/generate", json=SHORT_ANSWER)
                    if late.status_code != 200:
                        break
                    await asyncio.sleep(0.01)
            assert late is None or late.status_code == 503
            answer = await running
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 200
        assert server.process.wait(timeout=20) == 0


def test_no_engine_outlives_a_killed_server(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL) as server:
        (pid,) = engine_pids(server)
        server.process.kill()
        server.process.wait()
        end = time.monotonic() + 10
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < end, "the engine still runs"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model", "no/such-model-anywhere"), "no/such-model-anywhere"),
        (("--max-model-len", "99999999"), "99999999"),
        (("--kv-cache-memory-bytes", "900000G"), "free"),
        (("--pipeline-parallel-size", "31"), "more than the model's 30 layers"),
        (("--tensor-parallel-size", "10"), "4 ranks cannot share 3 of them"),
        (("--device", "cuda"), "--device cuda: torch sees no usable GPU"),
    ],
)
def test_a_start_that_cannot_succeed_ends_with_one_clear_line(flags: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "octavo.entrypoints.api_server", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | HIDDEN)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert said in done.stderr.strip().splitlines()[-1]


def test_the_process_stays_within_its_plan(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL) as server:
        (pid,) = engine_pids(server)
        body = {"prompt": ["word " * 700 + str(i) for i in range(24)], "max_tokens": 16, "temperature": 0.8, "top_p": 0.9}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
        assert answer.status_code == 200, answer.text
        peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
        metrics = httpx.get(f"{server.url}/metrics").text.splitlines()
        total = next(line for line in metrics if line.startswith("octavo:memory_plan_bytes") and 'part="total"' in line)
        assert int(peak.split()[1]) * 1024 <= float(total.rsplit(" ", 1)[1])
