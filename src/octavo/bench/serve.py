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
from octavo.bench.metrics import Record, RunMetrics, measure, parse_goodput, parse_metrics
from octavo.bench.options import DatasetOptions, LoadOptions, ReportOptions
from octavo.bench.probe import Probe, find_model, probe
from octavo.bench.report import Row, parse_percentiles, save_json
from octavo.bench.serve_report import render, result_json
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
    _check_limit(load, data, report)
    percentiles, names = parse_percentiles(report.metric_percentiles), parse_metrics(report.percentile_metrics)
    bounds = parse_goodput(report.goodput)
    _allow_many_connections()
    found, records = asyncio.run(_drive(load, data))
    metrics = measure(records, percentiles, bounds)
    section, limit = _limit(load, report, metrics, records)
    print(render(load, metrics, names, found.note, section))
    if report.save_result:
        save_json(report.save_result, result_json(load, data, metrics, names, records, found) | limit)
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


def _check_limit(load: LoadOptions, data: DatasetOptions, report: ReportOptions) -> None:
    """The least time is that of a machine that is never without work and computes every prompt."""
    if report.limit_model is None:
        if told := [name for name, value in _served_types(report).items() if value != "auto"]:
            raise ConfigError(f"--limit-{told[0].replace('_', '-')} goes with --limit-model.")
        return
    if load.request_rate != float("inf"):
        raise ConfigError("--limit-model goes without --request-rate: a server that waits for requests is not at its limit.")
    if data.dataset_name == "prefix_repetition":
        raise ConfigError("--limit-model does not go with prefix_repetition: the limit knows no shared prefixes.")


def _limit(
    load: LoadOptions, report: ReportOptions, metrics: RunMetrics, records: Sequence[Record]
) -> tuple[list[tuple[str, list[Row]]], dict[str, Any]]:
    """The report's section and the result file's entry on the share of this machine's limit."""
    if report.limit_model is None:
        return [("Share of the limit", [("Not asked for:", "say --limit-model")])], {"limit": None}
    if metrics.failed:
        return [("Share of the limit", [("Not known:", "requests failed")])], {"limit": None}
    from octavo.bench.yardstick import limit_json, limit_section, yardstick

    sequences = load.max_concurrency or len(records)
    known = yardstick({"model": report.limit_model, "max_num_seqs": sequences} | _served_types(report))
    least = known.least([(record.num_prompt, record.num_output) for record in records])
    return limit_section(known, least, metrics.duration), limit_json(known, least, metrics.duration)


def _served_types(report: ReportOptions) -> dict[str, str]:
    """The engine options of the server on which its limit depends."""
    return {"dtype": report.limit_dtype, "quantization": report.limit_quantization, "kv_cache_dtype": report.limit_kv_cache_dtype}


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
