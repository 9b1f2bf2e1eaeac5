"""The kernels' own tests (tests/kernels/cuda) on the GPU: every kernel against double precision in three types, every family's logits."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from harness.job import Job

ROOT = Path(__file__).resolve().parents[3]
WORKERS = 12
TO_END = 12.0
"""Seconds before the step's own end at which tests that still run are interrupted, so that there is a report of the others."""


def run(job: Job) -> None:
    """See the module.

    Raises:
        RuntimeError: a test failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "tests/kernels/cuda", "-p", "no:cacheprovider", f"--junitxml={report}", "--tb=short"]
        # Compiling without a GPU is a test for machines that have none.
        command += ["--ignore=tests/kernels/cuda/test_compiled.py", "-n", str(1 if job.dry else WORKERS)]
        command += ["-k", "plan or tiles or norm_reads"] if job.dry else []
        code, interrupted = _call(command, job.seconds_left - TO_END)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {code} and left no report")
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        cases = [case for suite in suites for case in suite.iter("testcase")]
    skipped = sum(case.find("skipped") is not None for case in cases)
    wrong = [(case, found) for case in cases for found in (*case.iterfind("failure"), *case.iterfind("error"))]
    slowest = max(cases, key=lambda case: float(case.get("time", 0)), default=None)
    job.figure("tests", {"all": len(cases), "failed": len(wrong), "skipped": skipped})
    job.figure("failed", {str(case.get("name")): (found.text or "")[-1500:] for case, found in wrong})
    job.row(f"{len(cases) - len(wrong) - skipped} of {len(cases)} passed, {skipped} skipped, {len(wrong)} failed")
    if slowest is not None:
        job.row(f"slowest: {slowest.get('name')}, {float(slowest.get('time', 0)):.1f} s")
    for case, found in wrong:
        message = (found.get("message") or "").splitlines()
        job.row(f"{case.get('name')}: {message[0][:110] if message else 'no message'}")
    if wrong or not cases:
        raise RuntimeError(f"{len(wrong)} of {len(cases)} tests failed")
    if interrupted:
        raise RuntimeError(f"interrupted after {len(cases)} tests")


def _call(command: list[str], seconds: float) -> tuple[int | None, bool]:
    """The exit status, and whether the time ran out: then pytest is interrupted, upon which it still reports what it has."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            return process.wait(seconds), False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(TO_END / 2), True
        except subprocess.TimeoutExpired:
            process.kill()
            return None, True
