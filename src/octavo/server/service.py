"""What the routes share: the engine client, the names it is served under, the limits and the metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.requests import Request

from octavo.config import EngineOptions, ServerOptions
from octavo.engine.messages import EngineStats
from octavo.errors import ModelNotFoundError, NotReadyError, QueueFullError
from octavo.metrics import EngineFigures, Metrics
from octavo.server.tracing import Tracing

if TYPE_CHECKING:
    from octavo.frontend.client import EngineClient
    from octavo.frontend.served_model import ServedModel


class Service:
    """One server's state.

    Args:
        client: the engine's client; started by the app's lifespan.
        engine: the engine's options. server: the server's.
        tracing: makes spans; None where none are asked for.

    Attributes:
        in_flight: requests for tokens that have not ended, those in line included.
        started: when this was made, in seconds since the epoch.
    """

    def __init__(self, client: EngineClient, engine: EngineOptions, server: ServerOptions, tracing: Tracing | None = None) -> None:
        self.client = client
        self.engine = engine
        self.options = server
        self.metrics = Metrics(len(client.replicas))
        self.tracing = tracing
        self.in_flight = 0
        self.started = int(time.time())
        self._in_line = 0
        client.on_step = self._count_step

    @property
    def names(self) -> list[str]:
        """The served names; empty while the model is not known and no name was given."""
        if self.options.served_model_name:
            return self.options.served_model_name
        return [self.client.model.name] if self.client.model is not None else []

    async def model(self, name: str | None) -> ServedModel:
        """The model a request asks for; waits in line while it is first loaded.

        Args:
            name: as the request has it; None is the first served one.

        Raises:
            ModelNotFoundError: none of the served names.
            NotReadyError: the server is draining. QueueFullError: too many wait already.
            ModelLoadError, ConfigError, MemoryPlanError: start-up failed.
        """
        self._check_name(name)
        if self.client.phase == "draining":
            raise NotReadyError("The server is shutting down and takes no new requests; try another one.", "draining", 1)
        if self.client.model is None:
            await self._wait_in_line()
            self._check_name(name)
        model = self.client.model
        if model is None:
            raise NotReadyError(f"The model is not there yet ({self.client.phase}); try again.", self.client.phase, 1)
        return model

    def known_model(self) -> ServedModel:
        """The model, where it is known already.

        Raises:
            NotReadyError: it is not.
        """
        if self.client.model is None:
            raise NotReadyError(f"The model is not there yet ({self.client.phase}); try again.", self.client.phase, 1)
        return self.client.model

    def update_metrics(self) -> Metrics:
        """The metrics, with the engine's latest figures taken in."""
        metrics = self.metrics
        metrics.model_name = next(iter(self.names), "")
        for replica, engine in zip(self.client.replicas, metrics.engines, strict=True):
            stats, ready = replica.stats, replica.ready
            in_line = self._in_line if replica.number == 0 else 0  # nobody knows yet where those will go
            engine.update(
                EngineFigures(
                    num_running=stats.num_running,
                    num_waiting=stats.num_waiting + in_line,
                    kv_usage=stats.kv_usage,
                    kv_waste=stats.kv_waste,
                    prefix_queries=stats.prefix_queries,
                    prefix_hits=stats.prefix_hits,
                    preemptions=stats.preemptions,
                    rss_bytes=stats.rss_bytes,
                )
            )
            if ready is not None:
                engine.plan_bytes = ready.plan
                engine.cache_config = {
                    "block_size": str(ready.block_size),
                    "num_gpu_blocks": str(ready.num_blocks),
                    "cache_dtype": self.engine.cache.kv_cache_dtype,
                    "enable_prefix_caching": str(self.engine.cache.enable_prefix_caching),
                }
        return metrics

    def _count_step(self, number: int, stats: EngineStats) -> None:
        if stats.step_tokens:
            self.metrics.engines[number].iteration_tokens.observe(stats.step_tokens)

    def _check_name(self, name: str | None) -> None:
        if name is not None and self.names and name not in self.names:
            served = ", ".join(f"`{known}`" for known in self.names)
            raise ModelNotFoundError(f"The model `{name}` does not exist. This server has {served}.")

    async def _wait_in_line(self) -> None:
        limit = self.engine.scheduler.max_num_queued_reqs
        if self._in_line >= limit:
            raise QueueFullError(f"The model is still loading and {limit} requests wait for it already; try again later.", 5)
        self._in_line += 1
        try:
            await self.client.wait_ready()
        finally:
            self._in_line -= 1


def service_of(request: Request) -> Service:
    """The service of the app that got this request."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
