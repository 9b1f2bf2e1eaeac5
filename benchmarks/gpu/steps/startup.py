"""From the start of a process to the first token of an 8B model with dummy weights: with kernels compiled before, and with none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.job import Job
from harness.models import LLAMA3_8B, TINY, write_shape

CHILD = Path(__file__).resolve().parents[1] / "harness" / "startup_child.py"
LEAST_SECONDS = 15.0


def run(job: Job) -> None:
    """See the module."""
    model = write_shape(Path("/tmp/octavo-gpu-tiny"), **TINY) if job.dry else LLAMA3_8B
    _start(job, model, "kernels compiled before", dict(os.environ))
    if job.seconds_left < LEAST_SECONDS:
        job.row("with no kernel compiled: left out, no time is left")
        return
    with tempfile.TemporaryDirectory() as cache:
        _start(job, model, "no kernel compiled", os.environ | {"TRITON_CACHE_DIR": cache})


def _start(job: Job, model: Path, name: str, surroundings: dict[str, str]) -> None:
    """One start."""
    command = [sys.executable, str(CHILD), str(model), job.device.type, str(time.time())]
    done = subprocess.run(command, env=surroundings, stdout=subprocess.PIPE, text=True, timeout=max(1.0, job.seconds_left - 1.0))
    if done.returncode:
        raise RuntimeError(f"the start with {name} failed with {done.returncode}")
    marks = json.loads(done.stdout.strip().splitlines()[-1])
    job.figure(name, marks)
    job.row(f"{name}: seconds after the start: " + ", ".join(f"{what} {seconds:.1f}" for what, seconds in marks.items()))
