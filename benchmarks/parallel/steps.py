"""Where a step's time goes with several ranks: kernels, sums between ranks, and handing the step over and its result back.

.venv/bin/python benchmarks/parallel/steps.py [-tp 2] [-pp 1] [--steps 100] [--threads 2] [--model embedded|even]

The ranks are those that an engine starts, with a stop-watch: each notes when it took up a step and when it was done with it, and what
its kernels took by kind (which slows them by a few per cent). All clocks are this machine's one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from even_model import write_shape

from octavo.batch import Batch, PendingStep, StepResult
from octavo.config import engine_options
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest
from octavo.executor import local_ranks, multiproc, worker
from octavo.models.embedded import embedded_model
from octavo.models.hub import ModelFiles
from octavo.ops.cpu.backend import CpuOps
from octavo.runner.runner import Runner
from octavo.sampling_params import SamplingParams

WORKLOADS = {"one stream": (1, 32), "batch 32": (32, 32)}
"""Sequences that decode, prompt tokens."""


def be_rank(folder: Path) -> None:
    """A worker that notes its steps, a JSON line each."""
    launch = Runner.launch
    notes = (folder / f"rank-{os.getpid()}").open("w", buffering=1)

    def watched(self: Runner, batch: Batch) -> PendingStep:
        assert isinstance(self.ops, CpuOps)
        program = self.ops.program
        if program is not None:
            program.profile(True)
        begin = time.monotonic()
        step = launch(self, batch)  # on a CPU it is done on return
        end = time.monotonic()
        kernels = {} if program is None else {name: seconds for name, seconds in program.profile(True).items() if seconds}
        notes.write(json.dumps([begin, end, kernels]) + "\n")
        return step

    Runner.launch = watched  # type: ignore[method-assign]
    worker.main()


def run(args: argparse.Namespace, folder: Path) -> None:
    command = [sys.executable, __file__, "--notes", str(folder)]
    popen = local_ranks.subprocess.Popen

    def start(_: list[str], **keywords: Any) -> Any:
        return popen(command, **keywords)

    local_ranks.subprocess.Popen = start  # type: ignore[misc, assignment]
    options: dict[str, Any] = {"tensor_parallel_size": args.tp, "pipeline_parallel_size": args.pp, "threads": args.threads}
    files = ModelFiles("embedded", "gguf", embedded_model())
    if args.model == "even":
        write_shape(folder)
        files, options = ModelFiles("even", "hf", folder), options | {"load_format": "dummy"}
    core = EngineCore(engine_options(kv_cache_memory_bytes=256 * 2**20, max_num_batched_tokens=4096, **options), files)
    assert isinstance(core._executor, multiproc.MultiprocExecutor)
    pids = core._executor.pids
    draw = random.Random(1)
    spans: dict[str, list[tuple[float, float, float, int]]] = {}
    for workload, (count, length) in WORKLOADS.items():
        for number in range(count):
            prompt = [draw.randrange(5, 40000) for _ in range(length)]
            params = SamplingParams(temperature=0, max_tokens=args.steps, ignore_eos=True)
            core.handle(AddRequest(f"{workload} {number}", prompt, params, seed=0))
        launches: list[tuple[float, float, int]] = []
        results: list[float] = []
        launch, result = core._executor.launch, core._executor._result

        def timed_launch(batch: Batch, launch: Any = launch, launches: Any = launches) -> Any:
            begin = time.monotonic()
            pending = launch(batch)
            said = len(msgspec.msgpack.encode(batch))
            launches.append((begin, time.monotonic(), said))
            return pending

        def timed_result(result: Any = result, results: Any = results) -> StepResult:
            got: StepResult = result()
            results.append(time.monotonic())
            return got

        core._executor.launch, core._executor._result = timed_launch, timed_result  # type: ignore[method-assign]
        begin = time.monotonic()
        while core.has_work():
            core.step()
        spans[workload] = [(a, b, done, size) for (a, b, size), done in zip(launches, results, strict=True)]
        print(f"{workload}: {len(launches)} steps in {time.monotonic() - begin:.2f} s", file=sys.stderr)
        core._executor.launch, core._executor._result = launch, result  # type: ignore[method-assign]
    core.shutdown()
    notes = [[json.loads(line) for line in (folder / f"rank-{pid}").read_text().splitlines()] for pid in pids]
    report(spans, notes, args)


def report(spans: dict[str, list[tuple[float, float, float, int]]], notes: list[list[Any]], args: argparse.Namespace) -> None:
    """A row a workload: medians over its steps, the first tenth left out."""
    print(
        "| workload | step, ms | in the ranks | sums, waiting included | fastest rank's sums | handed over | result back | message, bytes |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    warm_up = len(notes[0]) - sum(len(steps) for steps in spans.values())
    first = warm_up
    for workload, steps in spans.items():
        rows = []
        for index in range(len(steps) // 10, len(steps)):
            begin, _, done, size = steps[index]
            ranks = [rank[first + index] for rank in notes]
            last = ranks[(args.pp - 1) * args.tp]  # which samples
            sums = [kernels.get("all_reduce", 0.0) for _, _, kernels in ranks]
            inside = max(end for _, end, _ in ranks) - min(start for start, _, _ in ranks)
            handed = min(start for start, _, _ in ranks) - begin
            rows.append((done - begin, inside, max(sums), min(sums), handed, done - last[1], size))
        middle = [statistics.median(column) for column in zip(*rows, strict=True)]
        step, size = middle[0], middle[-1]
        cells = [f"{1000 * step:.2f}", *(f"{1000 * each:.2f} ({100 * each / step:.1f} %)" for each in middle[1:-1]), f"{size:.0f}"]
        print(f"| {workload} | {' | '.join(cells)} |")
        first += len(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-tp", type=int, default=2)
    parser.add_argument("-pp", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=("embedded", "even"), default="embedded")
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.notes:
        be_rank(args.notes)
        return
    with tempfile.TemporaryDirectory() as name:
        run(args, Path(name))


if __name__ == "__main__":
    main()
