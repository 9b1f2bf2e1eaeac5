"""A line of load every ten seconds, while there is any."""

from __future__ import annotations

import asyncio
import time

from octavo.log import get_logger
from octavo.server.service import Service

logger = get_logger(__name__)

SECONDS = 10.0


async def log_load(service: Service) -> None:
    """Log the load until cancelled; one last line tells that it fell to nothing, then silence until there is some."""
    last, prompt, generated, busy = time.monotonic(), 0, 0, False
    while True:
        await asyncio.sleep(SECONDS)
        engines, now = service.update_metrics().engines, time.monotonic()
        span, last = now - last, now
        prompt_now, generated_now = sum(engine.prompt_tokens for engine in engines), sum(engine.generation_tokens for engine in engines)
        prompt_rate, generation_rate = (prompt_now - prompt) / span, (generated_now - generated) / span
        prompt, generated = prompt_now, generated_now
        was_busy, busy = busy, bool(service.in_flight or prompt_rate or generation_rate)
        if busy or was_busy:
            logger.info(line(service, prompt_rate, generation_rate))


def line(service: Service, prompt_rate: float, generation_rate: float) -> str:
    """The load of all engines in one line; rates are in tokens a second."""
    engines = service.metrics.engines
    running = sum(engine.figures.num_running for engine in engines)
    waiting = sum(engine.figures.num_waiting for engine in engines)
    usage = ", ".join(f"{engine.figures.kv_usage:.1%}" for engine in engines)
    text = (
        f"load: {running} running, {waiting} waiting, prompt {prompt_rate:.1f} tokens/s, "
        f"generation {generation_rate:.1f} tokens/s, KV pages {usage} used"
    )
    if queries := sum(engine.prefix_queries for engine in engines):
        text += f", prefix cache {sum(engine.prefix_hits for engine in engines) / queries:.1%} hit"
    return text
