"""The kernels' own tests (tests/kernels/cuda) on the GPU: every kernel against double precision in three types, every family's logits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from harness.job import Job

ROOT = Path(__file__).resolve().parents[3]
WORKERS = 8


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
        code = _call(command, job.seconds_left - 2.0)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {code} and left no report" if code is not None else "the tests took too long")
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


def _call(command: list[str], seconds: float) -> int | None:
    """The exit status; None when the time ran out."""
    try:
        return subprocess.run(command, cwd=ROOT, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return None
