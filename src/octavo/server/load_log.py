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
        metrics, now = service.update_metrics(), time.monotonic()
        span, last = now - last, now
        prompt_rate, generation_rate = (metrics.prompt_tokens - prompt) / span, (metrics.generation_tokens - generated) / span
        prompt, generated = metrics.prompt_tokens, metrics.generation_tokens
        was_busy, busy = busy, bool(service.in_flight or prompt_rate or generation_rate)
        if busy or was_busy:
            logger.info(line(service, prompt_rate, generation_rate))


def line(service: Service, prompt_rate: float, generation_rate: float) -> str:
    """The load in one line; rates are in tokens a second."""
    metrics, figures = service.metrics, service.metrics.figures
    text = (
        f"load: {figures.num_running} running, {figures.num_waiting} waiting, prompt {prompt_rate:.1f} tokens/s, "
        f"generation {generation_rate:.1f} tokens/s, KV pages {figures.kv_usage:.1%} used"
    )
    if metrics.prefix_queries:
        text += f", prefix cache {metrics.prefix_hits / metrics.prefix_queries:.1%} hit"
    return text
