"""The first minutes on a GPU: steps that each run in a process of their own, within a budget, and a table at the end.

The driver imports no torch. Under $OUT it keeps results.json (all figures), table.txt and log.txt up to date while steps run, so that
little is lost when it is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from steps import STEPS, Step

BUDGET = 540.0
LEAST_SECONDS = 15.0
"""A step that would get less is dropped."""
TABLE_CHARACTERS = 7900
LINE_CHARACTERS = 150
SKIPPED = 77
"""Exit status of a step that cannot run here."""


@dataclass(slots=True)
class Run:
    """A step on its way.

    Attributes:
        status: waiting, running, ok, skipped, failed, stopped (out of time) or dropped (never begun).
        limit: seconds it may take.
    """

    step: Step
    status: str = "waiting"
    limit: float = 0.0
    began: float = 0.0
    seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = field(default=None, repr=False)


class Driver:
    """Runs steps and reports.

    Args:
        out: where results go.
        budget: seconds for all.
        dry: whether to rehearse on the CPU.
    """

    def __init__(self, out: Path, steps: Sequence[Step], budget: float, dry: bool) -> None:
        self.out = out
        self.dry = dry
        self.runs = [Run(step) for step in steps]
        self._begin = time.monotonic()
        self._end = self._begin + budget
        self._scale = 4.0 if dry else min(1.0, budget / BUDGET)
        self._parts = Path(tempfile.mkdtemp(prefix="octavo-gpu-"))

    def run(self) -> int:
        """Run all; 0 when none failed."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            if self.dry:  # two cores are not for four steps at once
                for run in self.runs:
                    self._together([run])
            else:
                self._together([run for run in self.runs if not run.step.alone])
                for run in self.runs:
                    if run.step.alone:
                        self._together([run])
        finally:
            for run in self.runs:
                self._stop(run)
            table = self._save()
        print("\n" + table, flush=True)
        return int(any(run.status in ("failed", "stopped") for run in self.runs))

    def _together(self, runs: list[Run]) -> None:
        """Start these side by side and wait for all."""
        for run in runs:
            self._start(run)
        while any(run.status == "running" for run in runs):
            time.sleep(0.5)
            for run in runs:
                self._look(run)
            self._save()

    def _start(self, run: Run) -> None:
        run.limit = min(run.step.seconds * self._scale, self._end - time.monotonic())
        if run.limit < LEAST_SECONDS:
            run.status = "dropped"
            return
        run.log = (self._parts / f"{run.step.name}.log").open("wb")
        command = [sys.executable, __file__, "--one", run.step.name, "--parts", str(self._parts), "--seconds", f"{run.limit - 3:.1f}"]
        run.process = subprocess.Popen(
            command + ["--dry-run"] * self.dry, stdout=run.log, stderr=subprocess.STDOUT, start_new_session=True, env=self._environment()
        )
        run.began, run.status = time.monotonic(), "running"
        print(f"[{run.began - self._begin:5.0f} s] {run.step.name}: {run.step.about} (at most {run.limit:.0f} s)", flush=True)

    def _environment(self) -> dict[str, str]:
        quiet = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OCTAVO_LOG_LEVEL": "WARNING"}
        return os.environ | quiet | ({"TRITON_INTERPRET": "1"} if self.dry else {})

    def _look(self, run: Run) -> None:
        """See whether a step ended, or end it when its time is up."""
        if run.status != "running" or run.process is None:
            return
        code = run.process.poll()
        if code is None:
            if time.monotonic() - run.began > run.limit:
                self._stop(run)
            return
        run.status = {0: "ok", SKIPPED: "skipped"}.get(code, "failed")
        self._ended(run)

    def _stop(self, run: Run) -> None:
        """End a step and all it started."""
        if run.status != "running" or run.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()
        run.status = "stopped"
        self._ended(run)

    def _ended(self, run: Run) -> None:
        run.seconds = time.monotonic() - run.began
        if run.log is not None:
            run.log.close()
        print(f"[{time.monotonic() - self._begin:5.0f} s] {run.step.name}: {run.status} after {run.seconds:.0f} s", flush=True)

    # ---- results -----------------------------------------------------------------------------------------------------

    def _save(self) -> str:
        """Write what there is; the table."""
        results = {run.step.name: self._result(run) for run in self.runs}
        (self.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        logs = [f"==== {run.step.name}\n{self._log(run)}" for run in self.runs]
        (self.out / "log.txt").write_text("\n".join(logs))
        table = render(results, time.monotonic() - self._begin)
        (self.out / "table.txt").write_text(table + "\n")
        return table

    def _result(self, run: Run) -> dict[str, Any]:
        seconds = time.monotonic() - run.began if run.status == "running" else run.seconds
        result: dict[str, Any] = {"status": run.status, "seconds": round(seconds, 1), "rows": [], "figures": {}}
        path = self._parts / f"{run.step.name}.json"
        if path.exists():
            result |= json.loads(path.read_text())
        lines = self._log(run).strip().splitlines()
        if run.status in ("failed", "skipped") and lines:
            result["why"] = lines[-1]
        elif run.status == "stopped":
            result["why"] = f"stopped after {run.limit:.0f} s; the log's last line: {lines[-1] if lines else 'none'}"
        elif run.status == "dropped":
            result["why"] = "no time left"
        return result

    def _log(self, run: Run) -> str:
        path = self._parts / f"{run.step.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def render(results: dict[str, dict[str, Any]], seconds: float) -> str:
    """The table: each step's status, seconds, lines and, where it failed, its last words; cut so that it stays short."""
    for most in (40, 24, 16, 12, 8, 5, 3, 1):
        lines = []
        for name, result in results.items():
            lines.append(f"== {name}: {result['status']}, {result['seconds']} s")
            rows = result["rows"]
            lines += [f"  {row[:LINE_CHARACTERS]}" for row in rows[:most]]
            if len(rows) > most:
                lines.append(f"  ... {len(rows) - most} more lines in results.json")
            if "why" in result:
                lines.append(f"  why: {result['why'][: 2 * LINE_CHARACTERS]}")
        lines.append(f"== all: {seconds:.0f} s")
        table = "\n".join(lines)
        if len(table) <= TABLE_CHARACTERS:
            return table
    return table[:TABLE_CHARACTERS]


def run_step(name: str, parts: Path, seconds: float, dry: bool) -> int:
    """Run one step in this process."""
    if dry:
        from harness.rehearsal import rehearse

        rehearse()
    from harness.job import Job, Skipped

    try:
        importlib.import_module(f"steps.{name}").run(Job(name, parts, seconds, dry))
    except Skipped as reason:
        print(reason)
        return SKIPPED
    return 0


def main() -> int:
    """Parse the words and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps together")
    parser.add_argument("--steps", help=f"which, with commas between: {', '.join(step.name for step in STEPS)}")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU at tiny sizes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return run_step(args.one, args.parts, args.seconds, args.dry_run)
    wanted = args.steps.split(",") if args.steps else [step.name for step in STEPS]
    unknown = set(wanted) - {step.name for step in STEPS}
    if unknown:
        parser.error(f"there is no step {', '.join(sorted(unknown))}")
    chosen = [step for step in STEPS if step.name in wanted]
    budget = args.budget * (10 if args.dry_run else 1)
    return Driver(Path(os.environ.get("OUT", "build/gpu")), chosen, budget, args.dry_run).run()


if __name__ == "__main__":
    sys.exit(main())
