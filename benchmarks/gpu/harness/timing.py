"""How long work takes on a GPU: launches in a graph, so that the host's part does not count, and the kernels of a traced run."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


def launch_seconds(launch: Callable[[], None], device: torch.device, runs: int = 7) -> float:
    """Median seconds of what ``launch`` launches, without the host's part; on a CPU the seconds of calling it."""
    if device.type != "cuda":
        launch()
        return statistics.median(_call_seconds(launch) for _ in range(3))
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    for _ in range(2):
        graph.replay()
    times: list[float] = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _call_seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a GPU did while some work ran.

    Attributes:
        busy: seconds in which at least one kernel or copy ran.
        times: seconds by kernel, longest first; together more than ``busy`` where kernels begin before others have ended.
        counts: launches by kernel.
    """

    busy: float
    times: dict[str, float]
    counts: dict[str, int]

    def top(self, count: int, per: int) -> list[str]:
        """Lines of the longest kernels: microseconds and launches for each of ``per`` repetitions, the share, the name."""
        total = sum(self.times.values()) or 1.0
        return [
            f"{1e6 * seconds / per:9.1f} us {self.counts[name] / per:6.1f}x {100 * seconds / total:5.1f}%  {short_name(name)}"
            for name, seconds in list(self.times.items())[:count]
        ]


def trace_kernels(work: Callable[[], object]) -> Kernels:
    """Run ``work`` under torch's profiler and read its kernels off the trace; all zero without a GPU."""
    if not torch.cuda.is_available():
        work()
        return Kernels(0.0, {}, {})
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return _read_trace(events)


def _read_trace(events: list[dict[str, object]]) -> Kernels:
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    spans = []
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            name, begin, length = str(event["name"]), float(str(event["ts"])), float(str(event["dur"]))
            times[name] += length / 1e6
            counts[name] += 1
            spans.append((begin, begin + length))
    busy, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return Kernels(busy / 1e6, dict(sorted(times.items(), key=lambda entry: -entry[1])), dict(counts))


def short_name(name: str) -> str:
    """A kernel's name without its template's arguments."""
    head = name.removeprefix("void ").split("<", 1)[0].split("(", 1)[0].strip()
    if head.startswith(("at::native", "cutlass")) and "<" in name:
        head += " " + "".join(name.split("<", 1)[1].split())[:40]
    return head[:70]
