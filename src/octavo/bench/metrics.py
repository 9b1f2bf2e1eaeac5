"""What a request's timeline says: the definitions of TTFT, TPOT, ITL and E2EL, and their figures over a run.

All times are the client's, from one monotonic clock. A request starts when it is sent (waiting for a place under
``--max-concurrency`` comes before and is not counted; making the connection comes after and is).

- **TTFT**, time to first token: from the start to the first chunk that carries generated text. A chunk that only opens the
  message (a role, no text) does not count.
- **E2EL**, end-to-end latency: from the start to the last chunk of the answer, the one with its finish reason. The usage chunk
  and ``[DONE]`` come after it.
- **ITL**, inter-token latency: the gaps between successive chunks with text. A server that sends several tokens in one chunk has
  fewer and longer gaps; the report says so when it happens.
- **TPOT**, time per output token: (last text - first text) / (output tokens - 1), one figure a request; it does not depend on how tokens
  are packed in chunks. Answers of one token have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from octavo.bench.report import Row, Summary, summarise
from octavo.errors import ConfigError

METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@dataclass(slots=True)
class Record:
    """One request as the client saw it.

    Attributes:
        sent: when it was sent, in seconds of a monotonic clock.
        text_times: when each chunk with generated text came.
        ended: when the answer's last chunk came.
        prompt_tokens, output_tokens: the server's own count (its ``usage``), None where it gave none.
        requested_prompt_tokens: the length the data set aimed at.
        error: what went wrong; None for an answer that is whole.
    """

    sent: float = 0.0
    text_times: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    requested_prompt_tokens: int = 0
    error: str | None = None

    @property
    def num_output(self) -> int:
        """Output tokens by the server's count, else the number of chunks with text."""
        return len(self.text_times) if self.output_tokens is None else self.output_tokens

    @property
    def num_prompt(self) -> int:
        """Prompt tokens by the server's count, else the length the data set aimed at."""
        return self.requested_prompt_tokens if self.prompt_tokens is None else self.prompt_tokens

    @property
    def ttft(self) -> float:
        return self.text_times[0] - self.sent

    @property
    def e2el(self) -> float:
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        if self.num_output < 2:
            return None
        return (self.text_times[-1] - self.text_times[0]) / (self.num_output - 1)

    @property
    def itl(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.text_times)]


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """A run's figures; latencies in seconds.

    Attributes:
        duration: from the first request sent to the last answer's end.
        errors: message -> how many requests ended with it.
        counted_by: ``usage`` (every answer brought the server's count), ``chunks`` (none did) or ``usage and chunks``.
        bundled: tokens a text chunk carried on average; above 1 the ITL is that of bundles.
        goodput: requests a second that met every bound, None where no bound was set.
        latencies: metric name -> its figures, None where no request has one.
    """

    completed: int
    failed: int
    duration: float
    prompt_tokens: int
    output_tokens: int
    errors: dict[str, int]
    counted_by: str
    bundled: float
    goodput: float | None
    latencies: dict[str, Summary | None]

    @property
    def request_throughput(self) -> float:
        return self.completed / self.duration if self.duration else 0.0

    @property
    def output_throughput(self) -> float:
        return self.output_tokens / self.duration if self.duration else 0.0

    @property
    def total_throughput(self) -> float:
        return (self.prompt_tokens + self.output_tokens) / self.duration if self.duration else 0.0


def measure(records: Sequence[Record], percentiles: Sequence[float], bounds: dict[str, float]) -> RunMetrics:
    """Figures of a run. Failed requests count in ``failed``, ``errors`` and ``duration`` and in nothing else.

    Args:
        bounds: metric name -> most seconds, for the goodput.
    """
    good = [record for record in records if record.error is None]
    duration = max((record.ended for record in records), default=0.0) - min((record.sent for record in records), default=0.0)
    values: dict[str, list[float]] = {
        "ttft": [record.ttft for record in good],
        "tpot": [tpot for record in good if (tpot := record.tpot) is not None],
        "itl": [gap for record in good for gap in record.itl],
        "e2el": [record.e2el for record in good],
    }
    output, chunks = sum(record.num_output for record in good), sum(len(record.text_times) for record in good)
    met = sum(meets(record, bounds) for record in good)
    return RunMetrics(
        completed=len(good),
        failed=len(records) - len(good),
        duration=duration,
        prompt_tokens=sum(record.num_prompt for record in good),
        output_tokens=output,
        errors=dict(Counter(record.error for record in records if record.error is not None).most_common()),
        counted_by=_counted_by(good),
        bundled=output / chunks if chunks else 0.0,
        goodput=(met / duration if duration else 0.0) if bounds else None,
        latencies={name: summarise(values[name], percentiles) for name in METRICS},
    )


def meets(record: Record, bounds: dict[str, float]) -> bool:
    """Whether an answer kept every bound. An answer of one token has no TPOT, and keeps any bound on it."""
    found = {"ttft": record.ttft, "tpot": record.tpot or 0.0, "e2el": record.e2el}
    return all(found[name] <= most for name, most in bounds.items())


def _counted_by(good: Sequence[Record]) -> str:
    ways = {"chunks" if record.output_tokens is None else "usage" for record in good}
    return " and ".join(sorted(ways, reverse=True)) or "nothing"


def parse_goodput(words: Sequence[str]) -> dict[str, float]:
    """``["ttft:500", "tpot:50"]`` (milliseconds) -> {"ttft": 0.5, "tpot": 0.05} (seconds).

    Raises:
        ConfigError: another form, metric or a bound that is not positive.
    """
    bounds: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition(":")
        try:
            most = float(text)
        except ValueError:
            most = 0.0
        if name not in GOODPUT_METRICS or most <= 0.0:
            raise ConfigError(f"--goodput takes METRIC:MILLISECONDS with the metrics {', '.join(GOODPUT_METRICS)}; got {word!r}.")
        bounds[name] = most / 1000.0
    return bounds


def parse_metrics(text: str) -> list[str]:
    """``"ttft,itl"`` -> ["ttft", "itl"].

    Raises:
        ConfigError: a metric that does not exist.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METRICS]:
        raise ConfigError(f"--percentile-metrics knows {', '.join(METRICS)}; got {unknown[0]!r}.")
    return names


def latency_rows(name: str, summary: Summary) -> list[Row]:
    """A latency's rows of the report, in milliseconds."""
    label = name.upper()
    rows: list[Row] = [(f"Mean {label} (ms):", 1000.0 * summary.mean), (f"Median {label} (ms):", 1000.0 * summary.median)]
    return rows + [(f"P{q:g} {label} (ms):", 1000.0 * value) for q, value in summary.percentiles.items()]


def latency_json(name: str, summary: Summary) -> dict[str, Any]:
    """A latency's entries of the result file, in milliseconds, under the names vLLM's result files use."""
    found = {f"mean_{name}_ms": summary.mean, f"median_{name}_ms": summary.median, f"std_{name}_ms": summary.std}
    found |= {f"p{q:g}_{name}_ms": value for q, value in summary.percentiles.items()}
    return {key: 1000.0 * value for key, value in found.items()}
