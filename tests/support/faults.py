"""What tests of faults ask a server, and what it is to say before, meanwhile and after."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import httpx
from serving import LONG_ANSWER, SHORT_ANSWER, Server

ANSWER = "The capital of France is Paris."
BOUND = 25.0
"""Seconds from a fault to the error: 15 of silence, and what it takes to notice them on a busy machine."""

_QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


def ask(server: Server) -> str:
    """What it answers to the question whose answer is ``ANSWER``."""
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=_QUESTION, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def fails_within(server: Server, fault: Callable[[], None], seconds: float = BOUND) -> str:
    """What a running request is told of a fault."""
    async with httpx.AsyncClient(timeout=seconds) as client:
        running = asyncio.ensure_future(client.post(f"{server.url}/generate", json=LONG_ANSWER))
        await server.reach("vllm:num_requests_running")
        fault()
        answer = await running
    assert answer.status_code == 500, answer.text
    return str(answer.json()["error"]["message"])


def answers_again(server: Server, seconds: float = 60.0) -> None:
    """Wait until it does."""

    def does() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.post(f"{server.url}/generate", json=SHORT_ANSWER, timeout=30).status_code == 200
        return False

    server.wait_until(does, seconds, "an answer")
