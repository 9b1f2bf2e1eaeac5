"""Llama 3 8B's shape through the engine: decoding steps, prompts, how much of a step the GPU is idle, and which kernels it runs."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

from harness.engine import Engine
from harness.job import Job
from harness.models import random_prompts
from harness.timing import Kernels, trace_kernels
from harness.workloads import Subject, start_engine, subject

BATCHES = (1, 64, 8, 256)
"""Those most looked at first."""
CONTEXT = 1024
PROMPTS = (512, 2048, 8000)
"""The longest leaves room for a token in 8,192."""
WARM_STEPS, TIMED_STEPS, TRACED_STEPS = 12, 40, 8
TRACED_BATCH, TRACED_PROMPT = 64, 2048
SECONDS_FOR_256 = 25.0


def run(job: Job) -> None:
    """See the module."""
    about = subject(job)
    engine = start_engine(job, about)
    batches, context, prompts = ((1, 4), 40, (24, 96)) if job.dry else (BATCHES, CONTEXT, PROMPTS)
    for count in batches:
        if count > 64 and job.seconds_left < SECONDS_FOR_256:
            job.row(f"decode B={count}: left out, {job.seconds_left:.0f} s are left")
            continue
        _decode(job, engine, about, count, context)
    for length in prompts:
        _prefill(job, engine, about, length)
    engine.shutdown()


def _decode(job: Job, engine: Engine, about: Subject, count: int, context: int) -> None:
    """Decoding steps of ``count`` sequences from ``context`` tokens on."""
    warm, timed, traced = (2, 4, 2) if job.dry else (WARM_STEPS, TIMED_STEPS, TRACED_STEPS)
    begin = time.perf_counter()
    for prompt in random_prompts(count, context, about.config.vocab_size, seed=count):
        engine.add(prompt, warm + timed + traced + 8 * count + 8)
    numbers = list(engine.running)
    while any(number not in engine.first for number in numbers):
        engine.step()
    prompts_seconds = time.perf_counter() - begin
    for _ in range(warm):
        engine.step()
    marks = [time.perf_counter()]
    tokens = 0
    for _ in range(timed):
        tokens += engine.step()
        marks.append(time.perf_counter())
    if tokens != count * timed:
        raise RuntimeError(f"{tokens} tokens came of {timed} steps of {count} sequences")
    step = (marks[-1] - marks[0]) / timed
    reached = context + statistics.fmean(len(engine.tokens[number]) for number in numbers) - timed / 2
    kernels = trace_kernels(lambda: [engine.step() for _ in range(traced)])
    engine.abort()
    least = about.decode_seconds(count, reached)
    idle = 1.0 - kernels.busy / traced / step
    steps = sorted(after - before for before, after in pairwise(marks))
    figures = {
        "step_seconds": step,
        "median_seconds": statistics.median(steps),
        "slowest_seconds": steps[-1],
        "tokens_a_second": count / step,
        "least_seconds": least,
        "share_of_limit": least / step,
        "kernel_seconds": kernels.busy / traced,
        "idle_share": idle,
        "context": reached,
        "prompts_tokens_a_second": count * context / prompts_seconds,
    }
    job.figure(f"decode {count}", figures)
    job.row(
        f"decode B={count:<3} at {reached:,.0f}: {1e3 * step:7.3f} ms a step (median {1e3 * figures['median_seconds']:.3f}, slowest "
        f"{1e3 * steps[-1]:.3f}), {count / step:8,.0f} tok/s, {100 * least / step:4.1f}% of the limit, GPU idle {100 * idle:4.1f}%"
    )
    if count == (4 if job.dry else TRACED_BATCH):
        _breakdown(job, f"decode B={count}", kernels, traced)


def _prefill(job: Job, engine: Engine, about: Subject, length: int) -> None:
    """Prompts of ``length`` tokens, one at a time, to their first token."""
    prompts = random_prompts(2 if job.dry else 6, length, about.config.vocab_size, seed=length)
    engine.generate(prompts[:1], 1)
    seconds = []
    for prompt in prompts[1:]:
        begin = time.perf_counter()
        engine.generate([prompt], 1)
        seconds.append(time.perf_counter() - begin)
    median, least = statistics.median(seconds), about.prefill_seconds(length)
    kernels = trace_kernels(lambda: engine.generate(prompts[:1], 1))
    idle = 1.0 - kernels.busy / median
    figures = {
        "seconds": seconds,
        "tokens_a_second": length / median,
        "least_seconds": least,
        "share_of_limit": least / median,
        "idle_share": idle,
    }
    job.figure(f"prefill {length}", figures)
    job.row(
        f"prefill {length:5,}: {1e3 * median:8.2f} ms, {length / median:8,.0f} tok/s, {100 * least / median:4.1f}% of the limit, "
        f"GPU idle {100 * idle:4.1f}%"
    )
    if length == (96 if job.dry else TRACED_PROMPT):
        _breakdown(job, f"prefill {length}", kernels, 1)


def _breakdown(job: Job, name: str, kernels: Kernels, steps: int) -> None:
    job.figure(f"kernels of {name}", {"steps": steps, "seconds": kernels.times, "launches": kernels.counts})
    if not kernels.times:
        job.row(f"kernels of {name}: none was traced" + (": there is no GPU" if job.dry else ""))
        return
    launches = sum(kernels.counts.values()) / steps
    job.row(f"kernels of {name}: {1e3 * sum(kernels.times.values()) / steps:.3f} ms in {launches:.0f} launches a step; the longest:")
    for line in kernels.top(9, steps):
        job.row(line)
