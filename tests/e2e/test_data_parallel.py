"""Two engines in one server: one engine's tokens, whichever answers; both are used; one's death is its own requests' alone."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
from serving import LONG_ANSWER, SHORT_ANSWER, Server, engine_pids, serving

SMALL = ("--dtype", "float32", "--quantization", "none", "--kv-cache-memory-bytes", "128M", "--max-model-len", "1024", "--threads", "2")
BODIES = [{"prompt": f"Name {count} animals.", "max_tokens": 24, "temperature": 0, "ignore_eos": True} for count in range(2, 10)]


async def texts(server: Server) -> list[str]:
    async with httpx.AsyncClient(timeout=120) as client:
        answers = await asyncio.gather(*(client.post(f"{server.url}/generate", json=body) for body in BODIES))
    assert [answer.status_code for answer in answers] == [200] * len(BODIES)
    return [answer.json()["text"][0] for answer in answers]


def generated(server: Server) -> dict[str, float]:
    """Tokens by engine."""
    lines = [line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line.startswith("vllm:generation_tokens_total{")]
    return {line.split('engine="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


async def test_both_engines_answer_as_one_would_and_one_may_die(tmp_path: Path) -> None:
    with serving(tmp_path, *SMALL) as server:
        expected = await texts(server)
    with serving(tmp_path, *SMALL, "-dp", "2") as server:
        assert await texts(server) == expected
        by_engine = generated(server)
        assert by_engine.keys() == {"0", "1"} and min(by_engine.values()) >= 24, by_engine
        async with httpx.AsyncClient(timeout=60) as client:
            running = [
                asyncio.ensure_future(client.post(f"{server.url}/generate", json=LONG_ANSWER | {"max_tokens": 100})) for _ in range(2)
            ]
            await server.reach("vllm:num_requests_running", 2)
            os.kill(engine_pids(server)[0], signal.SIGKILL)
            assert sorted(answer.status_code for answer in await asyncio.gather(*running)) == [200, 500]
            assert (await client.post(f"{server.url}/generate", json=SHORT_ANSWER)).status_code == 200
