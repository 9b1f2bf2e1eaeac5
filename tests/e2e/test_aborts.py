"""A client that closes its connection, at every stage of its request: what ran for it ends, and its pages are free again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from serving import Server, serving

LONG_PROMPT = "word " * 1500
BEAMS = {"use_beam_search": True, "n": 4, "temperature": 0}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two seats, and prompts in small pieces, so that waiting and prefill can be seen."""
    flags = ("--max-num-seqs", "2", "--max-num-batched-tokens", "16", "--max-model-len", "2048", "--kv-cache-memory-bytes", "128M")
    with serving(tmp_path_factory.mktemp("narrow"), *flags) as running:
        yield running


@contextlib.asynccontextmanager
async def sent(server: Server, stream: bool, **fields: Any) -> AsyncIterator[Callable[[], None]]:
    """A request under way; yields what closes its connection."""
    body = {"prompt": "Count to a thousand:", "max_tokens": 400, "ignore_eos": True, "temperature": 0, "stream": stream} | fields
    async with httpx.AsyncClient(timeout=60) as client:
        task = asyncio.ensure_future(client.post(f"{server.url}/v1/completions", json=body))
        try:
            yield lambda: bool(task.cancel())
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def figures(server: Server) -> tuple[float, float, float]:
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    running, waiting, usage = (server.metric(f"vllm:{name}") for name in names)
    return running, waiting, usage


async def until(server: Server, condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(server.wait_until, condition, 20, what)


async def idle(server: Server) -> None:
    await until(server, lambda: figures(server) == (0, 0, 0), "an idle engine with an empty pool")


@pytest.mark.parametrize("stream", [True, False])
async def test_while_it_waits_in_the_queue(narrow: Server, stream: bool) -> None:
    async with sent(narrow, True, n=2):
        await until(narrow, lambda: figures(narrow)[0] == 2, "two running sequences")
        async with sent(narrow, stream) as leave:
            await until(narrow, lambda: figures(narrow)[1] == 1, "a waiting request")
            leave()
            await until(narrow, lambda: figures(narrow)[:2] == (2, 0), "the end of the one that waits, and of no other")
    await idle(narrow)


@pytest.mark.parametrize("stream", [True, False])
async def test_while_its_prompt_is_computed(narrow: Server, stream: bool) -> None:
    computed = narrow.metric("vllm:prompt_tokens_total")
    async with sent(narrow, stream, prompt=f"{stream} {LONG_PROMPT}") as leave:
        await until(narrow, lambda: figures(narrow)[2] > 0, "pages in use")
        leave()
        await idle(narrow)
    assert narrow.metric("vllm:prompt_tokens_total") == computed, "the prompt was done before the client left"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", [None, {"regex": "([a-z]{1,8} ){1000}"}], ids=["free", "in a grammar"])
async def test_while_it_generates(narrow: Server, stream: bool, form: dict[str, str] | None) -> None:
    generated = narrow.metric("vllm:generation_tokens_total")
    async with sent(narrow, stream, structured_outputs=form) as leave:
        await until(narrow, lambda: narrow.metric("vllm:generation_tokens_total") > generated, "a token")
        leave()
        await idle(narrow)
    assert narrow.metric("vllm:generation_tokens_total") < generated + 400


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["Count to a thousand:", LONG_PROMPT])
async def test_while_its_beams_are_searched(narrow: Server, stream: bool, prompt: str) -> None:
    aborted = narrow.metric("vllm:request_success_total")
    async with sent(narrow, stream, prompt=f"{stream} {prompt}", **BEAMS) as leave:
        if prompt == LONG_PROMPT:
            await until(narrow, lambda: figures(narrow)[2] > 0, "pages in use")
        else:
            steps = narrow.metric("vllm:iteration_tokens_total_count")
            await until(narrow, lambda: narrow.metric("vllm:iteration_tokens_total_count") > steps + 10, "steps")
        leave()
        await idle(narrow)
    assert narrow.metric("vllm:request_success_total") == aborted + 1, "a search is one request"


async def test_after_all_that_it_answers_as_ever(narrow: Server) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(f"{narrow.url}/generate", json={"prompt": "What is the capital of France?", "temperature": 0})
        assert answer.json()["text"] == ["The capital of France is Paris."]
        beams = await client.post(f"{narrow.url}/generate", json={"prompt": "What is the capital of France?"} | BEAMS)
        assert beams.json()["text"][0] == "The capital of France is Paris."
    await idle(narrow)
