"""What tests of the engine's client do again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from octavo.engine.messages import SequenceUpdate
from octavo.frontend.client import RequestStream
from octavo.frontend.outputs import RequestDelta
from octavo.sampling_params import SamplingParams

PARAMS = SamplingParams(max_tokens=8)


async def settle(turns: int = 20) -> None:
    """Let every task that can run, run."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for threads and tasks to bring something about; a hang fails the test."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def token(request_id: str, text: str = "", index: int = 0, **fields: Any) -> SequenceUpdate:
    return SequenceUpdate(request_id, index, list(text.encode()), **fields)


async def read_all(stream: RequestStream) -> list[RequestDelta]:
    return [delta async for delta in stream]
