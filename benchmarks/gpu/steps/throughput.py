"""Offline throughput of Llama 3 8B's shape: all requests handed in at once, as a share of the least time the workload can take."""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.engine import Engine
from harness.job import Job
from harness.models import random_prompts
from harness.workloads import MAX_SEQUENCES, Subject, start_engine, subject

from octavo.bench.limits import least_seconds

FULL_REQUESTS = 1000
LEAST_REQUESTS = 64
SLOWER_THAN_LIMIT = 2.0
"""How many times the least time a workload is expected to take before one has been measured."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Attributes:
    weight: its share of the time, where time is short.
    """

    prompt: int
    new: int
    weight: float


WORKLOADS = (Workload(128, 128, 0.15), Workload(1000, 1000, 0.35), Workload(2048, 128, 0.2), Workload(128, 2048, 0.3))


def run(job: Job) -> None:
    """See the module."""
    about = subject(job)
    engine = start_engine(job, about)
    workloads = (Workload(8, 6, 0.5), Workload(24, 4, 0.5)) if job.dry else WORKLOADS
    engine.generate(random_prompts(2 if job.dry else 32, workloads[0].prompt, about.config.vocab_size, seed=9), 4)
    slower, left = SLOWER_THAN_LIMIT, sum(workload.weight for workload in workloads)
    for workload in workloads:
        seconds = (job.seconds_left - 5.0) * workload.weight / left
        left -= workload.weight
        count = 5 if job.dry else _requests(about, workload, seconds / slower)
        if count < LEAST_REQUESTS and not job.dry:
            job.row(f"{workload.prompt}/{workload.new}: left out, {seconds:.0f} s are too few")
            continue
        slower = max(1.2, _measure(job, engine, about, workload, count))
    engine.shutdown()


def _requests(about: Subject, workload: Workload, least: float) -> int:
    """How many requests' least time is within ``least`` seconds."""
    for count in (FULL_REQUESTS, 768, 512, MAX_SEQUENCES, 192, 128, LEAST_REQUESTS):
        if _least(about, workload, count) <= least:
            return count
    return 0


def _least(about: Subject, workload: Workload, count: int) -> float:
    return least_seconds(about.cost, [(workload.prompt, workload.new)] * count, MAX_SEQUENCES, about.limits)


def _measure(job: Job, engine: Engine, about: Subject, workload: Workload, count: int) -> float:
    """Run the workload; how many times its least time it took."""
    prompts = random_prompts(count, workload.prompt, about.config.vocab_size, seed=workload.new)
    begin, steps = time.perf_counter(), engine.core.stats.steps
    numbers = engine.generate(prompts, workload.new)
    seconds = time.perf_counter() - begin
    if any(len(engine.tokens[number]) != workload.new for number in numbers):
        raise RuntimeError("a request has fewer tokens than were asked for")
    least, new = _least(about, workload, count), count * workload.new
    figures = {
        "requests": count,
        "seconds": seconds,
        "output_tokens_a_second": new / seconds,
        "all_tokens_a_second": count * (workload.prompt + workload.new) / seconds,
        "steps": engine.core.stats.steps - steps,
        "preemptions": dict(engine.core.stats.preemptions),
        "least_seconds": least,
        "share_of_limit": least / seconds,
    }
    job.figure(f"{workload.prompt}/{workload.new}", figures)
    job.row(
        f"{workload.prompt}/{workload.new}: {count} requests in {seconds:.1f} s, {new / seconds:,.0f} output tok/s, "
        f"{figures['all_tokens_a_second']:,.0f} tok/s in all, {100 * least / seconds:.1f}% of the limit"
    )
    return seconds / least
