"""Octavo and its peers in one run on one GPU: the same shape with random weights, the same prompts, medians, and ratios to Octavo.

Each contender is loaded in a process of its own, one after the other, and runs all workloads that it can; one that cannot be imported,
fails or takes too long is a line in the table. Under $OUT: compare.json and compare.txt.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Settings, Unsuited

WORKLOADS = "1:128:128,64:512:128"
UNSUITED = 77


@dataclass(frozen=True, slots=True)
class Workload:
    """So many sequences at once, each with a prompt of so many tokens, for so many new ones."""

    sequences: int
    prompt: int
    new: int

    @property
    def name(self) -> str:
        return f"{self.sequences} x {self.prompt}/{self.new}"


def parse_workloads(text: str) -> list[Workload]:
    """``"1:128:128,64:512:128"``."""
    return [Workload(*map(int, part.split(":"))) for part in text.split(",")]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is run.

    Attributes:
        contenders: names, Octavo first.
        layers: of the model; all where 0.
        rounds: timed runs of a workload, after one that is not.
        seconds: that one contender may take.
        parts: where contenders leave their results.
        inside: whether a driver runs this, which ends whatever is left of it.
    """

    contenders: tuple[str, ...]
    workloads: str
    layers: int
    rounds: int
    seconds: float
    dry: bool
    parts: Path
    inside: bool = False


def compare(plan: Comparison) -> dict[str, dict[str, Any]]:
    """Run the contenders one after the other.

    Returns:
        for each: its workloads' seconds by name, and why it or a workload was left out.
    """
    found = {}
    for name in plan.contenders:
        begin = time.monotonic()
        words = ["--one", name, "--parts", str(plan.parts), "--workloads", plan.workloads, "--layers", str(plan.layers)]
        words += ["--rounds", str(plan.rounds), *["--dry-run"] * plan.dry]
        process = subprocess.Popen([sys.executable, __file__, *words], start_new_session=not plan.inside)
        try:
            code = process.wait(plan.seconds)
        except subprocess.TimeoutExpired:
            if plan.inside:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        path = plan.parts / f"contender-{name}.json"
        result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seconds": {}, "why": {}}
        if code is None:
            result["why"]["all"] = f"took longer than {plan.seconds:.0f} s"
        elif code not in (0, UNSUITED):
            result["why"].setdefault("all", f"failed with {code}; its log says why")
        result["took"] = time.monotonic() - begin
        found[name] = result
    return found


def rows(plan: Comparison, found: dict[str, dict[str, Any]]) -> list[str]:
    """The table: medians, output tokens a second, Octavo's speed over theirs."""
    lines = []
    for workload in parse_workloads(plan.workloads):
        ours = found.get("octavo", {}).get("seconds", {}).get(workload.name)
        for name in plan.contenders:
            result = found[name]
            times = result["seconds"].get(workload.name)
            if times:
                median = statistics.median(times)
                rate = workload.sequences * workload.new / median
                ratio = f", Octavo is {median / statistics.median(ours):.2f} times as fast" if ours and name != "octavo" else ""
                lines.append(f"{workload.name:>14}  {name:<22} {median:8.3f} s, {rate:8,.0f} tok/s{ratio}")
            else:
                why = result["why"].get(workload.name) or result["why"].get("all") or "not run"
                lines.append(f"{workload.name:>14}  {name:<22} {why[:90]}")
    return lines


def run_contender(name: str, plan: Comparison) -> int:
    """Load one and run its workloads; in a process of its own."""
    from harness.models import TINY, random_prompts, write_shape

    if plan.dry and name == "octavo":
        from harness.rehearsal import rehearse

        rehearse()
    workloads = parse_workloads(plan.workloads)
    with tempfile.TemporaryDirectory() as folder:
        shape: dict[str, Any] = TINY if plan.dry else {}
        model = write_shape(Path(folder), **(shape | ({"num_hidden_layers": plan.layers} if plan.layers else {})))
        config = json.loads((model / "config.json").read_text())
        longest = max(workload.prompt + workload.new for workload in workloads) + 16
        settings = Settings(model, longest, max(workload.sequences for workload in workloads), plan.dry)
        result: dict[str, dict[str, Any]] = {"seconds": {}, "why": {}}
        path = plan.parts / f"contender-{name}.json"
        try:
            generator = importlib.import_module(f"contenders.{name}").load(settings)
        except Unsuited as reason:
            result["why"]["all"] = str(reason)
            path.write_text(json.dumps(result))
            return UNSUITED
        except Exception as error:
            result["why"]["all"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            path.write_text(json.dumps(result))
            raise
        for workload in workloads:
            times: list[float] = []
            try:
                for turn in range(plan.rounds + 1):
                    prompts = random_prompts(workload.sequences, workload.prompt, config["vocab_size"], seed=turn)
                    begin = time.perf_counter()
                    generator.generate(prompts, workload.new)
                    times.append(time.perf_counter() - begin)
                    if len(times) > 1:  # the first warms up
                        result["seconds"][workload.name] = times[1:]
                        path.write_text(json.dumps(result))
            except Unsuited as reason:
                result["why"][workload.name] = str(reason)
            except Exception as error:
                result["why"][workload.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                print(f"{name}, {workload.name}: {error!r}", flush=True)
            print(f"{name}, {workload.name}: {[round(seconds, 3) for seconds in times]} s", flush=True)
            path.write_text(json.dumps(result))
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Parse the words and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which, with commas between")
    parser.add_argument("--workloads", default=WORKLOADS, help="SEQUENCES:PROMPT:NEW, with commas between")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of a workload")
    parser.add_argument("--layers", type=int, default=0, help="of the model, where it is to be cut")
    parser.add_argument("--seconds", type=float, default=240.0, help="that one contender may take")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU at tiny sizes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    names = tuple(args.contenders.split(","))
    if unknown := set(names) - set(CONTENDERS):
        parser.error(f"there is no contender {', '.join(sorted(unknown))}")
    workloads = "1:8:4,3:12:4" if args.dry_run and not args.one else args.workloads
    parts = args.parts or Path(tempfile.mkdtemp(prefix="octavo-compare-"))
    plan = Comparison(names, workloads, args.layers, args.rounds, args.seconds, args.dry_run, parts)
    if args.one:
        return run_contender(args.one, plan)
    out = Path(os.environ.get("OUT", "build/gpu"))
    out.mkdir(parents=True, exist_ok=True)
    found = compare(plan)
    table = "\n".join(rows(plan, found))
    (out / "compare.json").write_text(json.dumps({"plan": asdict(plan), "found": found}, default=str, indent=1) + "\n")
    (out / "compare.txt").write_text(table + "\n")
    print("\n" + table, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
