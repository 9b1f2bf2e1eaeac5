"""One request's figures, followed from submission to its end: into the metrics, and into the log and a span where those are asked for."""

from __future__ import annotations

import time

from octavo.engine.messages import RequestTimes
from octavo.frontend.outputs import RequestDelta
from octavo.log import get_logger
from octavo.server.service import Service
from octavo.server.tracing import RequestSpan

logger = get_logger(__name__)


class RequestFollower:
    """Follows one request.

    Args:
        service: whose metrics are fed.
        request_id: for the log.
        prompt_tokens: its prompt's length.
        arrival: when it was submitted, on ``time.monotonic``'s clock.
        span: is ended with the request.

    Attributes:
        generated: tokens so far. cached: prompt tokens found in the prefix cache. ended: whether it has ended.
    """

    __slots__ = ("_arrival", "_last", "_prompt_tokens", "_reason", "_request_id", "_service", "_span", "cached", "ended", "generated")

    def __init__(self, service: Service, request_id: str, prompt_tokens: int, arrival: float, span: RequestSpan | None = None) -> None:
        self._service = service
        self._request_id = request_id
        self._prompt_tokens = prompt_tokens
        self._arrival = arrival
        self._span = span
        self._last: dict[int, float] = {}
        self._reason = "stop"
        self.generated = 0
        self.cached = 0
        self.ended = False

    def take(self, delta: RequestDelta) -> None:
        """Count one delta."""
        metrics, now = self._service.metrics, time.monotonic()
        self._service.count_step()
        if delta.num_cached_tokens > self.cached:
            self.cached = delta.num_cached_tokens
        for sequence in delta.sequences:
            if count := len(sequence.token_ids):
                if (last := self._last.get(sequence.index)) is not None:
                    metrics.inter_token_latency.observe((now - last) / count, count)
                elif not self._last:
                    metrics.time_to_first_token.observe(now - self._arrival)
                    metrics.prompt_tokens += self._prompt_tokens
                self._last[sequence.index] = now
                self.generated += count
                metrics.generation_tokens += count
            if sequence.finish_reason is not None:
                self._reason = sequence.finish_reason
        self.generated += delta.num_discarded_tokens
        metrics.generation_tokens += delta.num_discarded_tokens
        if delta.finished:
            self.end(self._reason, delta.times)

    def end(self, reason: str, times: RequestTimes | None) -> None:
        """Count the end.

        Args:
            reason: stop, length, abort or error.
            times: the engine's, where it lived to tell.
        """
        self.ended = True
        metrics, now = self._service.metrics, time.monotonic()
        metrics.finished[reason] += 1
        metrics.e2e_latency.observe(now - self._arrival)
        metrics.request_prompt_tokens.observe(self._prompt_tokens)
        metrics.request_generation_tokens.observe(self.generated)
        if times is not None and times.first_scheduled and times.first_token:
            metrics.queue_time.observe(times.first_scheduled - times.arrival)
            metrics.prefill_time.observe(times.first_token - times.first_scheduled)
            metrics.decode_time.observe(max(0.0, times.finished - times.first_token))
        if self._span is not None:
            self._span.end(reason, self.generated, times)
        if self._service.options.enable_log_requests:
            logger.info(
                "request %s: %s, %d prompt tokens (%d cached), %d generated, %.3f s",
                self._request_id,
                reason,
                self._prompt_tokens,
                self.cached,
                self.generated,
                now - self._arrival,
            )
