"""One place for what every benchmark reports: percentiles, tables for the terminal, JSON for machines."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError

WIDTH = 50

Row = tuple[str, float | int | str]
"""A line of a report: its name and its value."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one metric over many requests, in the metric's own unit.

    Attributes:
        std: standard deviation of the population.
        percentiles: percentile (such as 99) -> value.
    """

    mean: float
    median: float
    std: float
    percentiles: dict[float, float]


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile by linear interpolation between closest ranks (numpy's default).

    Args:
        values: at least one, in any order.
        q: in [0, 100].
    """
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100.0
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(values: Sequence[float], percentiles: Sequence[float]) -> Summary | None:
    """Mean, median, deviation and percentiles of ``values``; None where there are none."""
    if not values:
        return None
    found = {q: percentile(values, q) for q in percentiles}
    return Summary(statistics.fmean(values), statistics.median(values), statistics.pstdev(values), found)


def parse_percentiles(text: str) -> list[float]:
    """``"50,99.9"`` -> [50.0, 99.9].

    Raises:
        ConfigError: not numbers in [0, 100].
    """
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(0.0 <= q <= 100.0 for q in found):
        raise ConfigError(f"percentiles are numbers from 0 to 100 with commas between, such as 50,99; got {text!r}.")
    return found


def heading(text: str, rule: str) -> str:
    """``text`` in the middle of a line of ``rule`` characters."""
    return f" {text} ".center(WIDTH, rule) if text and rule == "=" else text.center(WIDTH, rule)


def line(name: str, value: float | int | str) -> str:
    """One row: the name, then the value with two decimals where it is not a whole number."""
    return f"{name:<40} {value:.2f}" if isinstance(value, float) else f"{name:<40} {value}"


def table(title: str, sections: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """A report for the terminal: a title, then rows under each section's heading (an empty heading draws no rule)."""
    lines = [heading(title, "=")]
    for name, rows in sections:
        if name:
            lines.append(heading(name, "-"))
        lines += [line(*row) for row in rows]
    return "\n".join([*lines, "=" * WIDTH])


def save_json(path: str, result: dict[str, Any]) -> None:
    """Write a result file.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
