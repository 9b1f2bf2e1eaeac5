"""One request's figures, followed from submission to its end: into the metrics, and into a span where traces are asked for."""

from __future__ import annotations

import time
from typing import NamedTuple

from octavo.engine.messages import RequestTimes
from octavo.frontend.outputs import RequestDelta
from octavo.metrics import EngineMetrics
from octavo.server.tracing import RequestSpan


class Spans(NamedTuple):
    """Where a request's time went, in seconds.

    Attributes:
        queue: from the engine's door to its first step. prefill: from there to its first token. decode: from there to its end.
        first_token: from the request's submission to its first token.
    """

    queue: float
    prefill: float
    decode: float
    first_token: float


class RequestFollower:
    """Follows one request.

    Args:
        metrics: of the engine that runs it; they are fed.
        request_id: for the log.
        prompt_tokens: its prompt's length.
        arrival: when it was submitted, on ``time.monotonic``'s clock.
        span: is ended with the request.

    Attributes:
        generated: tokens so far. cached: prompt tokens found in the prefix cache. ended: whether it has ended.
        reason: why it ended. seconds: how long it lived, once it has ended. preemptions: times that it was preempted.
        spans: where its time went; None before its end, and where it ended before its first token or with the engine.
    """

    __slots__ = (
        "_arrival",
        "_last",
        "_metrics",
        "_span",
        "cached",
        "ended",
        "generated",
        "preemptions",
        "prompt_tokens",
        "reason",
        "request_id",
        "seconds",
        "spans",
    )

    def __init__(
        self, metrics: EngineMetrics, request_id: str, prompt_tokens: int, arrival: float, span: RequestSpan | None = None
    ) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._span = span
        self._last: dict[int, float] = {}
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.reason = "stop"
        self.generated = 0
        self.cached = 0
        self.preemptions = 0
        self.seconds = 0.0
        self.spans: Spans | None = None
        self.ended = False

    def take(self, delta: RequestDelta) -> None:
        """Count one delta."""
        metrics, now = self._metrics, time.monotonic()
        if delta.num_cached_tokens > self.cached:
            self.cached = delta.num_cached_tokens
        for sequence in delta.sequences:
            if count := len(sequence.token_ids):
                if (last := self._last.get(sequence.index)) is not None:
                    metrics.inter_token_latency.observe((now - last) / count, count)
                elif not self._last:
                    metrics.time_to_first_token.observe(now - self._arrival)
                    metrics.prompt_tokens += self.prompt_tokens
                self._last[sequence.index] = now
                self.generated += count
                metrics.generation_tokens += count
            if sequence.finish_reason is not None:
                self.reason = sequence.finish_reason
        self.generated += delta.num_discarded_tokens
        metrics.generation_tokens += delta.num_discarded_tokens
        if delta.finished:
            self.end(self.reason, delta.times)

    def end(self, reason: str, times: RequestTimes | None) -> None:
        """Count the end.

        Args:
            reason: stop, length, abort or error.
            times: the engine's, where it lived to tell.
        """
        self.ended = True
        self.reason = reason
        metrics, self.seconds = self._metrics, time.monotonic() - self._arrival
        metrics.finished[reason] += 1
        metrics.e2e_latency.observe(self.seconds)
        metrics.request_prompt_tokens.observe(self.prompt_tokens)
        metrics.request_generation_tokens.observe(self.generated)
        if times is not None:
            self.preemptions = times.num_preemptions
            self.spans = spans = self._spans(times)
            if spans is not None:
                metrics.queue_time.observe(spans.queue)
                metrics.prefill_time.observe(spans.prefill)
                metrics.decode_time.observe(spans.decode)
        if self._span is not None:
            self._span.end(reason, self.generated, times)

    def _spans(self, times: RequestTimes) -> Spans | None:
        if not times.first_scheduled or not times.first_token:
            return None
        return Spans(
            queue=max(0.0, times.first_scheduled - times.arrival),
            prefill=max(0.0, times.first_token - times.first_scheduled),
            decode=max(0.0, times.finished - times.first_token),
            first_token=max(0.0, times.first_token - self._arrival),
        )
