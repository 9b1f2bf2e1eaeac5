"""What ``octavo bench serve`` prints and saves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from octavo.bench.metrics import METRICS, Record, RunMetrics, latency_json, latency_rows
from octavo.bench.options import CHAT, DatasetOptions, LoadOptions
from octavo.bench.probe import Probe
from octavo.bench.report import Row, line, table


def render(load: LoadOptions, metrics: RunMetrics, names: Sequence[str], note: str, limit: Sequence[tuple[str, list[Row]]]) -> str:
    """The report for the terminal.

    Args:
        names: latencies to show.
        note: how prompts were sent.
        limit: the section on the machine's limit.
    """
    rows: list[Row] = [
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
    sections: list[tuple[str, list[Row]]] = [("", rows)]
    present = [(name, summary) for name in names if (summary := metrics.latencies[name]) is not None]
    sections += [(METRICS[name], latency_rows(name, summary)) for name, summary in present]
    sections += limit
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
