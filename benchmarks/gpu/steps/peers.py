"""Octavo and transformers on the same prompts in the same run: one sequence with a static cache, 64 with continuous batching."""

from __future__ import annotations

import tempfile
from pathlib import Path

from compare import Comparison, compare, rows
from harness.job import Job

RUNS = (
    ("octavo", 40.0),
    ("transformers_static", 40.0),
    ("transformers_batching", 60.0),
    ("transformers_compiled", 120.0),
)
"""By worth, and the seconds that each may take: compiling takes the longest."""
LEAST_SECONDS = 15.0


def run(job: Job) -> None:
    """See the module.

    Raises:
        RuntimeError: Octavo itself failed.
    """
    workloads = "1:8:4,3:12:4" if job.dry else "1:128:128,64:512:128"
    found: dict[str, dict[str, object]] = {}
    names: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in RUNS:
            seconds = min(seconds * (2 if job.dry else 1), job.seconds_left - 3.0)
            if seconds < LEAST_SECONDS:
                job.row(f"{name}: left out, no time is left")
                continue
            plan = Comparison((name,), workloads, 0, 1 if job.dry else 2, seconds, job.dry, Path(folder), inside=True)
            found |= compare(plan)
            names = (*names, name)
            job.figure("contenders", found)
        for line in rows(Comparison(names, workloads, 0, 2, 0.0, job.dry, Path(folder)), found):
            job.row(line)
    if not found.get("octavo", {}).get("seconds"):
        raise RuntimeError(f"Octavo failed: {found.get('octavo', {}).get('why')}")
