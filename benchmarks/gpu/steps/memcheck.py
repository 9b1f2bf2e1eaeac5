"""compute-sanitizer's memcheck over prompts, mixed steps and decoding steps of a tiny model: no kernel reads or writes past its memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness.job import Job, Skipped

PASSES = Path(__file__).resolve().parents[1] / "harness" / "tiny_passes.py"
PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer")
ERRORS_FOUND = 9


def run(job: Job) -> None:
    """See the module.

    Raises:
        RuntimeError: the tool found something, or the passes failed.
    """
    tool = shutil.which("compute-sanitizer") or next((place for place in PLACES if Path(place).exists()), None)
    # Every tensor has memory of its own, so that the next one's is not there to be read by mistake.
    surroundings = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    if job.dry:
        subprocess.run([sys.executable, str(PASSES), "cpu"], env=surroundings, check=True, timeout=job.seconds_left)
        raise Skipped("a rehearsal: the passes ran in the interpreter; compute-sanitizer watches a GPU, and there is none here")
    if tool is None:
        raise Skipped("compute-sanitizer is not installed")
    command = [
        tool,
        "--tool",
        "memcheck",
        "--error-exitcode",
        str(ERRORS_FOUND),
        "--print-limit",
        "20",
        sys.executable,
        str(PASSES),
        "cuda",
    ]
    try:
        done = subprocess.run(
            command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=job.seconds_left - 2.0
        )
    except subprocess.TimeoutExpired as stopped:
        print((stopped.stdout or b"").decode(errors="replace")[-3000:])
        raise RuntimeError("the passes took too long under compute-sanitizer") from None
    print(done.stdout)
    found = [line.strip("= ") for line in done.stdout.splitlines() if line.startswith("=========")]
    passes = [line for line in done.stdout.splitlines() if line.startswith("passed")]
    job.figure("output", found[-60:])
    job.row(f"{len(passes)} passes; {found[-1] if found else 'the tool said nothing'}")
    if done.returncode != 0:
        for line in [line for line in found if "Invalid" in line or " at " in line][:6]:
            job.row(line)
        raise RuntimeError(f"compute-sanitizer ended with {done.returncode}")
