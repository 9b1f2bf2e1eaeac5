"""``octavo bench serve``: load on any OpenAI-compatible server over HTTP, and what its clients feel."""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp

from octavo import env
from octavo.bench.client import Target, new_session, send
from octavo.bench.datasets import Sample, prefix_repetition_samples, random_samples, sharegpt_samples
from octavo.bench.metrics import (
    METRICS,
    Record,
    RunMetrics,
    latency_json,
    latency_rows,
    measure,
    parse_goodput,
    parse_metrics,
)
from octavo.bench.options import CHAT, DatasetOptions, LoadOptions, ReportOptions
from octavo.bench.probe import Probe, find_model, probe
from octavo.bench.report import line, parse_percentiles, save_json, table
from octavo.errors import ConfigError


def run(load: LoadOptions, data: DatasetOptions, report: ReportOptions) -> int:
    """Run the benchmark and print its report.

    Returns:
        0, or 1 when any request failed.

    Raises:
        ConfigError: flags that cannot be honoured.
        OctavoError: the server is not there or refuses the plainest request.
    """
    _check(load, data)
    percentiles, names = parse_percentiles(report.metric_percentiles), parse_metrics(report.percentile_metrics)
    bounds = parse_goodput(report.goodput)
    _allow_many_connections()
    found, records = asyncio.run(_drive(load, data))
    metrics = measure(records, percentiles, bounds)
    print(render(load, metrics, names, found.note))
    if report.save_result:
        save_json(report.save_result, result_json(load, data, metrics, names, records, found))
    return 0 if metrics.failed == 0 else 1


def _check(load: LoadOptions, data: DatasetOptions) -> None:
    positive = {
        "--num-prompts": load.num_prompts,
        "--request-rate": load.request_rate,
        "--burstiness": load.burstiness,
        "--max-concurrency": load.max_concurrency,
        "--random-input-len": data.random_input_len,
        "--random-output-len": data.random_output_len,
        "--sharegpt-output-len": data.sharegpt_output_len,
        "--prefix-repetition-prefix-len": data.prefix_repetition_prefix_len,
        "--prefix-repetition-suffix-len": data.prefix_repetition_suffix_len,
        "--prefix-repetition-num-prefixes": data.prefix_repetition_num_prefixes,
        "--prefix-repetition-output-len": data.prefix_repetition_output_len,
    }
    for flag, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{flag} must be more than 0; got {value:g}.")
    if not 0.0 <= data.random_range_ratio < 1.0:
        raise ConfigError(f"--random-range-ratio must be in [0, 1); got {data.random_range_ratio:g}.")
    if (data.dataset_path is None) is (data.dataset_name == "sharegpt"):
        raise ConfigError("--dataset-path goes with --dataset-name sharegpt, and is needed there.")


def _allow_many_connections() -> None:
    """Raise the soft limit on open files to the hard one: each request in flight is a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _drive(load: LoadOptions, data: DatasetOptions) -> tuple[Probe, list[Record]]:
    base_url = load.base_url.rstrip("/")
    fields: dict[str, Any] = {"temperature": load.temperature} | ({"ignore_eos": True} if load.ignore_eos else {})
    async with new_session(load.api_key or env.api_key()) as session:
        model = load.model or await find_model(session, base_url)
        found = await probe(session, Target(base_url, load.endpoint, model, fields))
        samples = await _samples(load, data, found)
        offsets = arrivals(len(samples), load.request_rate, load.burstiness, load.seed)
        with _Progress(len(samples)) as progress:
            records = await send_all(session, found.target, samples, offsets, load.max_concurrency, progress.one_done)
    return found, records


async def _samples(load: LoadOptions, data: DatasetOptions, found: Probe) -> list[Sample]:
    if data.dataset_name == "sharegpt":
        path = Path(str(data.dataset_path))
        return await sharegpt_samples(path, load.num_prompts, data.sharegpt_output_len, load.seed, found.count)
    if data.dataset_name == "prefix_repetition":
        return prefix_repetition_samples(
            found.tongue,
            load.num_prompts,
            data.prefix_repetition_prefix_len,
            data.prefix_repetition_suffix_len,
            data.prefix_repetition_num_prefixes,
            data.prefix_repetition_output_len,
            load.seed,
        )
    lengths = data.random_input_len, data.random_output_len
    return random_samples(found.tongue, load.num_prompts, *lengths, data.random_range_ratio, load.seed)


def arrivals(num: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds after the start at which each request comes; the first comes at once.

    Gaps are drawn from a gamma distribution of shape ``burstiness`` and stretched so that the last request comes at ``(num - 1) / rate``:
    the rate asked for is the rate of every run, whatever the seed.
    """
    if rate == float("inf") or num < 2:
        return [0.0] * num
    rng = random.Random(seed)
    gaps = [rng.gammavariate(burstiness, 1.0) for _ in range(num - 1)]
    stretch = (num - 1) / rate / (sum(gaps) or 1.0)
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap * stretch)
    return offsets


async def send_all(
    session: aiohttp.ClientSession,
    target: Target,
    samples: Sequence[Sample],
    offsets: Sequence[float],
    max_concurrency: int | None,
    one_done: Callable[[Record], None],
) -> list[Record]:
    """Send every request at its time, or as soon after as ``max_concurrency`` lets it; the records in the samples' order."""
    places: AbstractAsyncContextManager[Any] = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()
    start = time.perf_counter()

    async def one(sample: Sample, offset: float) -> Record:
        await asyncio.sleep(max(0.0, start + offset - time.perf_counter()))
        async with places:
            record = await send(session, target, sample)
        one_done(record)
        return record

    return await asyncio.gather(*(one(sample, offset) for sample, offset in zip(samples, offsets, strict=True)))


class _Progress:
    """A bar on standard error where that is a terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        self._bar = Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True)
        self._task = self._bar.add_task("", total=total)
        self._failed = 0

    def one_done(self, record: Record) -> None:
        self._failed += record.error is not None
        self._bar.update(self._task, advance=1, description=f"[red]{self._failed} failed" if self._failed else "")

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def render(load: LoadOptions, metrics: RunMetrics, names: Sequence[str], note: str) -> str:
    """The report for the terminal."""
    rows: list[tuple[str, float | int | str]] = [
        ("Successful requests:", metrics.completed),
        ("Failed requests:", metrics.failed),
        ("Benchmark duration (s):", metrics.duration),
        ("Total input tokens:", metrics.prompt_tokens),
        ("Total generated tokens:", metrics.output_tokens),
        ("Request throughput (req/s):", metrics.request_throughput),
    ]
    if load.request_rate != float("inf"):
        rows.insert(2, ("Request rate configured (req/s):", load.request_rate))
    if load.max_concurrency:
        rows.insert(2, ("Maximum request concurrency:", load.max_concurrency))
    if metrics.goodput is not None:
        rows.append(("Request goodput (req/s):", metrics.goodput))
    rows += [
        ("Output token throughput (tok/s):", metrics.output_throughput),
        ("Total token throughput (tok/s):", metrics.total_throughput),
    ]
    sections: list[tuple[str, list[tuple[str, float | int | str]]]] = [("", rows)]
    present = [(name, summary) for name in names if (summary := metrics.latencies[name]) is not None]
    sections += [(METRICS[name], list(latency_rows(name, summary))) for name, summary in present]
    return "\n".join([table("Serving Benchmark Result", sections), *_notes(load, metrics, note)])


def _notes(load: LoadOptions, metrics: RunMetrics, note: str) -> list[str]:
    lines = [line("Tokens counted by:", metrics.counted_by)]
    if load.endpoint == CHAT or note != "token ids":
        note += "; the input tokens above are the server's count" if metrics.counted_by == "usage" else ""
    lines.append(line("Prompts sent as:", note))
    if metrics.bundled > 1.05:
        lines.append(f"note: the server sent {metrics.bundled:.1f} tokens a chunk on average; ITL is the gap between chunks.")
    for message, number in metrics.errors.items():
        lines.append(f"failed: {number} x {message}")
    return lines


def result_json(
    load: LoadOptions, data: DatasetOptions, metrics: RunMetrics, names: Sequence[str], records: Sequence[Record], found: Probe
) -> dict[str, Any]:
    """The result file; names are vLLM's where it has them."""
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "base_url": load.base_url,
        "endpoint": load.endpoint,
        "model_id": found.target.model,
        "dataset_name": data.dataset_name,
        "prompts_sent_as": found.note,
        "num_prompts": load.num_prompts,
        "request_rate": "inf" if load.request_rate == float("inf") else load.request_rate,
        "burstiness": load.burstiness,
        "max_concurrency": load.max_concurrency,
        "seed": load.seed,
        "duration": metrics.duration,
        "completed": metrics.completed,
        "failed": metrics.failed,
        "errors": metrics.errors,
        "tokens_counted_by": metrics.counted_by,
        "total_input_tokens": metrics.prompt_tokens,
        "total_output_tokens": metrics.output_tokens,
        "request_throughput": metrics.request_throughput,
        "request_goodput": metrics.goodput,
        "output_throughput": metrics.output_throughput,
        "total_token_throughput": metrics.total_throughput,
    }
    for name in names:
        if (summary := metrics.latencies[name]) is not None:
            result |= latency_json(name, summary)
    first = min((record.sent for record in records), default=0.0)
    result["requests"] = [_record_json(record, first) for record in records]
    return result


def _record_json(record: Record, first: float) -> dict[str, Any]:
    if record.error is not None:
        return {"sent": record.sent - first, "error": record.error}
    return {
        "sent": record.sent - first,
        "ttft": record.ttft,
        "e2el": record.e2el,
        "input_tokens": record.num_prompt,
        "output_tokens": record.num_output,
    }
