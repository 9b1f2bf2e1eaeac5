"""What a layout costs or gains at equal threads: one rank, two that share each layer, two stages, and two engines, in turn.

.venv/bin/python benchmarks/parallel/layouts.py [--rounds 5] [--threads 2] [--model embedded|even]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from even_model import write_shape

WORKLOADS = {"one stream": (1, 32, 128), "batch 32": (32, 32, 64), "prefill 8 x 512": (8, 512, 1)}
"""Sequences, prompt tokens, new tokens. The first two count new tokens a second, the last prompt tokens."""
LAYOUTS = {
    "one rank": {},
    "-tp 2": {"tensor_parallel_size": 2},
    "-pp 2": {"pipeline_parallel_size": 2},
    "-dp 2": {"data_parallel_size": 2},
}


async def measure(layout: dict[str, int], threads: int, model: str) -> dict[str, float]:
    from octavo import AsyncLLM, SamplingParams
    from octavo.models.embedded import embedded_model

    options: dict[str, Any] = layout | {"threads": threads, "kv_cache_memory_bytes": 256 * 2**20, "enable_prefix_caching": False}
    with tempfile.TemporaryDirectory() as name:
        if model == "even":
            write_shape(Path(name))
            options |= {"model": name, "load_format": "dummy", "tokenizer": str(embedded_model())}
        async with AsyncLLM(**options) as llm:
            draw, found = random.Random(1), {}

            async def complete(prompt: list[int], new: int) -> None:
                params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
                async for _ in llm.generate(prompt, params):
                    pass

            for workload, (count, length, new) in WORKLOADS.items():
                prompts = [[draw.randrange(5, 40000) for _ in range(length)] for _ in range(count)]
                await asyncio.gather(*(complete(prompt, 2) for prompt in prompts[:2]))
                begin = time.perf_counter()
                await asyncio.gather(*(complete(prompt, new) for prompt in prompts))
                found[workload] = count * (length if new == 1 else new) / (time.perf_counter() - begin)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=("embedded", "even"), default="embedded")
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.layout:
        print(json.dumps(asyncio.run(measure(LAYOUTS[args.layout], args.threads, args.model))))
        return
    runs: dict[str, list[dict[str, float]]] = {layout: [] for layout in LAYOUTS}
    for _ in range(args.rounds):
        for layout, done in runs.items():
            command = [sys.executable, __file__, "--layout", layout, "--threads", str(args.threads), "--model", args.model]
            done.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout))
    print(f"| tokens/s | {' | '.join(LAYOUTS)} |\n| --- |{' --- |' * len(LAYOUTS)}")
    for workload in WORKLOADS:
        alone = [run[workload] for run in runs["one rank"]]
        cells = [f"{statistics.median(alone):.0f}"]
        for layout in [*LAYOUTS][1:]:
            speeds = [run[workload] for run in runs[layout]]
            ratios = sorted(speed / one for speed, one in zip(speeds, alone, strict=True))
            cells.append(f"{statistics.median(speeds):.0f}: {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
        print(f"| {workload} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
