"""Octavo's Prometheus metrics: what is counted, under which name, and how it is written out.

The names under ``vllm:`` are those that existing dashboards and cluster routers read; ``octavo:`` holds Octavo's own. Observing is a
few integer additions on plain Python objects, cheap enough for each token; the text form is made when ``/metrics`` is read.
All calls come from one event loop, so nothing is locked.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

FINISH_REASONS = ("stop", "length", "abort", "error")
LATENCY_BOUNDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
)
TOKEN_LATENCY_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
REQUEST_TOKEN_BOUNDS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
)  # fmt: skip
STEP_TOKEN_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
LABELS = ("model_name", "engine")


class Histogram:
    """Counts of observed values between fixed upper bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, ``times`` times over."""
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as the text format wants them."""
        running, rows = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            rows.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(running)))
        return rows


class RestartProofCounter:
    """A counter read from a process that may restart and count from zero again; the sum never goes back."""

    __slots__ = ("base", "latest")

    def __init__(self) -> None:
        self.base = 0
        self.latest = 0

    def read(self, value: int) -> int:
        """Take in the process's latest value and return the sum over all its lives."""
        if value < self.latest:
            self.base += self.latest
        self.latest = value
        return self.base + value


@dataclass(slots=True)
class EngineFigures:
    """The engine's latest figures; counters are of its present life.

    Attributes:
        kv_usage: share of the KV blocks owned by live sequences. kv_waste: share of the owned blocks' slots that hold no token.
        preemptions: by reason.
        rss_bytes: resident memory of the engine process, -1 where unknown.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    kv_waste: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: dict[str, int] = field(default_factory=dict)
    rss_bytes: int = -1


class EngineMetrics:
    """What is counted of one engine and the requests that it runs.

    Attributes:
        figures: the engine's latest figures; see ``update``.
        cache_config: labels of ``cache_config_info``; empty until the engine is ready.
        plan_bytes: the memory plan by part; empty until the engine is ready.
    """

    def __init__(self) -> None:
        self.figures = EngineFigures()
        self.cache_config: dict[str, str] = {}
        self.plan_bytes: dict[str, int] = {}
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.time_to_first_token = Histogram(LATENCY_BOUNDS)
        self.inter_token_latency = Histogram(TOKEN_LATENCY_BOUNDS)
        self.e2e_latency = Histogram(REQUEST_BOUNDS)
        self.queue_time = Histogram(REQUEST_BOUNDS)
        self.prefill_time = Histogram(REQUEST_BOUNDS)
        self.decode_time = Histogram(REQUEST_BOUNDS)
        self.request_prompt_tokens = Histogram(REQUEST_TOKEN_BOUNDS)
        self.request_generation_tokens = Histogram(REQUEST_TOKEN_BOUNDS)
        self.iteration_tokens = Histogram(STEP_TOKEN_BOUNDS)
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.preemptions: dict[str, int] = {}
        self._prefix_queries = RestartProofCounter()
        self._prefix_hits = RestartProofCounter()
        self._preemptions: dict[str, RestartProofCounter] = {}

    def update(self, figures: EngineFigures) -> None:
        """Take in the engine's latest figures."""
        self.figures = figures
        self.prefix_queries = self._prefix_queries.read(figures.prefix_queries)
        self.prefix_hits = self._prefix_hits.read(figures.prefix_hits)
        for reason in {*figures.preemptions, *self._preemptions}:
            counter = self._preemptions.setdefault(reason, RestartProofCounter())
            self.preemptions[reason] = counter.read(figures.preemptions.get(reason, 0))


class Metrics(Collector):
    """All metrics of one server.

    Attributes:
        model_name: the label of every metric; set once the name is known.
        engines: by their number, which is the other label.
    """

    def __init__(self, engines: int = 1) -> None:
        self.model_name = ""
        self.engines = [EngineMetrics() for _ in range(engines)]
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Everything in Prometheus's text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Prometheus's hook: the metrics of now."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield from self._details()

    def describe(self) -> Iterator[Metric]:
        """Prometheus's hook: names need no check at registration, there is one collector."""
        return iter(())

    @property
    def _labelled(self) -> list[tuple[tuple[str, str], EngineMetrics]]:
        """The engines with their labels."""
        return [((self.model_name, str(number)), engine) for number, engine in enumerate(self.engines)]

    def _gauges(self) -> Iterator[Metric]:
        for name, text, field_name in (
            ("vllm:num_requests_running", "Requests that are being computed.", "num_running"),
            ("vllm:num_requests_waiting", "Requests that wait for a place.", "num_waiting"),
            ("vllm:kv_cache_usage_perc", "Share of the KV pages in use; 1 is all of them.", "kv_usage"),
            ("octavo:kv_cache_waste_ratio", "Share of the slots in used KV pages that hold no token.", "kv_waste"),
        ):
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for labels, engine in self._labelled:
                gauge.add_metric(labels, getattr(engine.figures, field_name))
            yield gauge

    def _counters(self) -> Iterator[Metric]:
        readers: tuple[tuple[str, str, Callable[[EngineMetrics], int]], ...] = (
            ("vllm:prompt_tokens", "Prompt tokens of requests whose prompt was computed.", lambda engine: engine.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated.", lambda engine: engine.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda engine: engine.prefix_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda engine: engine.prefix_hits),
            ("vllm:num_preemptions", "Sequences preempted because pages ran out.", lambda engine: sum(engine.preemptions.values())),
        )
        for name, text, read in readers:
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for labels, engine in self._labelled:
                counter.add_metric(labels, read(engine))
            yield counter
        finished = CounterMetricFamily("vllm:request_success", "Requests that ended, by reason.", labels=(*LABELS, "finished_reason"))
        for labels, engine in self._labelled:
            for reason, count in engine.finished.items():
                finished.add_metric((*labels, reason), count)
        yield finished

    def _histograms(self) -> Iterator[Metric]:
        for name, text, field_name in (
            ("vllm:time_to_first_token_seconds", "Time from arrival to the first token.", "time_to_first_token"),
            ("vllm:inter_token_latency_seconds", "Time between a sequence's tokens.", "inter_token_latency"),
            ("vllm:e2e_request_latency_seconds", "Time from arrival to the end.", "e2e_latency"),
            ("vllm:request_queue_time_seconds", "Time a request waited for a place.", "queue_time"),
            ("vllm:request_prefill_time_seconds", "Time from a request's place to its first token.", "prefill_time"),
            ("vllm:request_decode_time_seconds", "Time from a request's first token to its end.", "decode_time"),
            ("vllm:request_prompt_tokens", "Prompt tokens of a request.", "request_prompt_tokens"),
            ("vllm:request_generation_tokens", "Tokens generated for a request.", "request_generation_tokens"),
            ("vllm:iteration_tokens_total", "Tokens computed in a step.", "iteration_tokens"),
        ):
            family = HistogramMetricFamily(name, text, labels=LABELS)
            for labels, engine in self._labelled:
                histogram: Histogram = getattr(engine, field_name)
                family.add_metric(labels, buckets=histogram.buckets(), sum_value=histogram.total)
            yield family

    def _details(self) -> Iterator[Metric]:
        """What exists only once an engine is ready, and Octavo's own break-downs."""
        config = next((engine.cache_config for engine in self.engines if engine.cache_config), {})
        if config:
            info = GaugeMetricFamily("vllm:cache_config_info", "The KV pool.", labels=("engine", *config))
            for (_, number), engine in self._labelled:
                if engine.cache_config:
                    info.add_metric((number, *engine.cache_config.values()), 1)
            yield info
        if any(engine.plan_bytes for engine in self.engines):
            plan = GaugeMetricFamily("octavo:memory_plan_bytes", "The memory plan, by part.", labels=(*LABELS, "part"))
            for labels, engine in self._labelled:
                for part, size in engine.plan_bytes.items():
                    plan.add_metric((*labels, part), size)
            yield plan
        if any(engine.figures.rss_bytes >= 0 for engine in self.engines):
            resident = GaugeMetricFamily("octavo:engine_resident_memory_bytes", "Resident memory of the engine process.", labels=LABELS)
            for labels, engine in self._labelled:
                if engine.figures.rss_bytes >= 0:
                    resident.add_metric(labels, engine.figures.rss_bytes)
            yield resident
        preemptions = CounterMetricFamily("octavo:preemptions", "Sequences preempted, by reason.", labels=(*LABELS, "reason"))
        for labels, engine in self._labelled:
            for reason, count in engine.preemptions.items():
                preemptions.add_metric((*labels, reason), count)
        yield preemptions
