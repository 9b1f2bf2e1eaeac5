"""What sharing each layer costs or gains at equal threads: two ranks against one, in turn, on the embedded default.

.venv/bin/python benchmarks/tensor_parallel.py [--rounds 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time

WORKLOADS = {"one stream": (1, 32, 128), "batch 32": (32, 32, 64), "prefill 8 x 512": (8, 512, 1)}
"""Sequences, prompt tokens, new tokens. The first two count new tokens a second, the last prompt tokens."""


def measure(ranks: int, threads: int) -> dict[str, float]:
    from octavo import LLM, SamplingParams

    llm = LLM(tensor_parallel_size=ranks, threads=threads, kv_cache_memory_bytes=512 * 2**20, enable_prefix_caching=False)
    draw, found = random.Random(1), {}
    for name, (count, prompt, new) in WORKLOADS.items():
        prompts = [[draw.randrange(5, 40000) for _ in range(prompt)] for _ in range(count)]
        llm.generate(prompts[:1], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), use_tqdm=False)
        begin = time.perf_counter()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=new, ignore_eos=True), use_tqdm=False)
        found[name] = count * (prompt if new == 1 else new) / (time.perf_counter() - begin)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ranks", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ranks:
        print(json.dumps(measure(args.ranks, args.threads)))
        return
    runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for ranks, done in runs.items():
            command = [sys.executable, __file__, "--ranks", str(ranks), "--threads", str(args.threads)]
            done.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print("| workload | one rank, tokens/s | two ranks, tokens/s | ratio |\n| --- | --- | --- | --- |")
    for name in WORKLOADS:
        one, two = (statistics.median(run[name] for run in done) for done in runs.values())
        print(f"| {name} | {one:.0f} | {two:.0f} | {two / one:.2f} |")


if __name__ == "__main__":
    main()
