"""Many clients, few pages: every request ends once, right, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator

import httpx
import openai
import pytest
from serving import Server, serving

PROMPTS = 200
POOL_TOKENS = 3072  # the requests below sum to several times that
TOKEN_BYTES = 30 * 2 * 3 * 64 * 4  # layers x (key, value) x heads x size x float32


@pytest.fixture(scope="module")
def tight_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--dtype", "float32", "--max-model-len", "512", "--kv-cache-memory-bytes", str(POOL_TOKENS * TOKEN_BYTES))
    with serving(tmp_path_factory.mktemp("tight"), *flags) as running:
        yield running


def requests() -> list[tuple[str, int]]:
    rng = random.Random(3)
    words = ["river", "stone", "cloud", "bread", "light", "paper", "north", "seven", "green", "music"]
    return [
        (f"Story {i}: " + " ".join(rng.choice(words) for _ in range(rng.randrange(2, 120))), rng.randrange(4, 40)) for i in range(PROMPTS)
    ]


async def stream_one(client: openai.AsyncOpenAI, prompt: str, new: int, leave_after: int | None) -> str | None:
    """The streamed text, or None where the client left midway."""
    stream = await client.completions.create(
        model=(await client.models.list()).data[0].id,
        prompt=prompt,
        max_tokens=new,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text, chunks = "", 0
    async for chunk in stream:
        text += chunk.choices[0].text if chunk.choices else ""
        chunks += 1
        if leave_after is not None and chunks >= leave_after:
            await stream.close()
            return None
    return text


async def test_two_hundred_streams_finish_right_some_cancelled(tight_server: Server) -> None:
    todo = requests()
    assert sum(len(prompt.split()) + new for prompt, new in todo) > 3 * POOL_TOKENS
    async with openai.AsyncOpenAI(base_url=f"{tight_server.url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        texts = await asyncio.gather(*(stream_one(client, prompt, new, 2 if i % 9 == 4 else None) for i, (prompt, new) in enumerate(todo)))
        tight_server.wait_until(lambda: tight_server.metric("vllm:num_requests_running") == 0, 10, "an idle engine")
        for i in range(0, PROMPTS, 17):  # alone, the same text
            if texts[i] is not None:
                assert await stream_one(client, *todo[i], None) == texts[i]
    assert sum(text is None for text in texts) == sum(1 for i in range(PROMPTS) if i % 9 == 4)
    tight_server.wait_until(lambda: tight_server.metric("vllm:kv_cache_usage_perc") == 0, 10, "an empty pool")


async def test_a_client_that_leaves_frees_its_pages(tight_server: Server) -> None:
    for streaming in (True, False):
        body = {"prompt": "Count to a thousand:", "raw": True, "max_tokens": 450, "ignore_eos": True, "temperature": 0, "stream": streaming}
        async with httpx.AsyncClient(timeout=60) as client:
            task = asyncio.ensure_future(client.post(f"{tight_server.url}/generate", json=body))
            await tight_server.reach("vllm:num_requests_running")
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        tight_server.wait_until(lambda: tight_server.metric("vllm:num_requests_running") == 0, 5, "the abort")
        assert tight_server.metric("vllm:kv_cache_usage_perc") == 0


async def test_a_full_queue_answers_429(tmp_path_factory: pytest.TempPathFactory) -> None:
    flags = ("--max-num-seqs", "2", "--max-num-queued-reqs", "3", "--kv-cache-memory-bytes", "64M", "--max-model-len", "1024")
    with serving(tmp_path_factory.mktemp("queue"), *flags) as running:
        body = {"prompt": "Count:", "raw": True, "max_tokens": 60, "ignore_eos": True}
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
            answers = await asyncio.gather(*(client.post(f"{running.url}/generate", json=body) for _ in range(16)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused and all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert all(answer.json()["error"]["message"] for answer in refused)
        served = [answer for answer in answers if answer.status_code == 200]
        assert len(served) + len(refused) == 16
        assert len(served) >= 3
        assert httpx.post(f"{running.url}/generate", json=body, timeout=60).status_code == 200
