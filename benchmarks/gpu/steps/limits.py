"""Versions, and what the GPU can do: bytes a second, and the matrix products of Llama 3 8B at several numbers of rows."""

from __future__ import annotations

import importlib
import platform
import subprocess

import torch
import torch.nn.functional as F
from harness.job import Job
from harness.peaks import bandwidth, measure_peaks
from harness.timing import launch_seconds

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336), "head": (128256, 4096)}
"""Out and in features of the products."""
ROWS = (1, 16, 64, 256, 2048)
COLD_BYTES = 256 * 2**20
"""Weights that take turns have at least so many bytes together, so that the second-level cache (50 MB) does not hold the next one."""


def run(job: Job) -> None:
    """See the module."""
    _versions(job)
    peaks = measure_peaks(job.device, job.dry)
    job.figure("peaks", peaks)
    job.row(
        f"copy {peaks['copied'] / 1e9:,.0f} GB/s (read plus written), sum {peaks['read'] / 1e9:,.0f} GB/s read, "
        f"product bf16 {peaks['bf16'] / 1e12:,.0f} and fp32 {peaks['fp32'] / 1e12:,.1f} TFLOP/s"
    )
    job.row("products in bf16: microseconds (share of what bandwidth and rate allow, %)")
    job.row(f"{'rows':>6}" + "".join(f"{name:>18}" for name in SHAPES))
    for rows in ROWS[:2] if job.dry else ROWS:
        cells = []
        for name, (out_features, in_features) in SHAPES.items():
            shape = (out_features // 64, in_features // 64) if job.dry else (out_features, in_features)
            seconds, share = _product(job, rows, *shape, peaks)
            job.figure(f"{name} {rows}", {"seconds": seconds, "share": share})
            cells.append(f"{1e6 * seconds:11,.1f} ({100 * share:3.0f})")
        job.row(f"{rows:>6}" + "".join(f"{cell:>18}" for cell in cells))


def _product(job: Job, rows: int, out_features: int, in_features: int, peaks: dict[str, float]) -> tuple[float, float]:
    """Seconds of one product with weights that are not in the cache, and what share of the limit that is."""
    weight_bytes = 2 * out_features * in_features
    count = 1 if job.dry else max(2, -(-COLD_BYTES // weight_bytes))
    weights = [torch.randn(out_features, in_features, dtype=torch.bfloat16, device=job.device) for _ in range(count)]
    x = torch.randn(rows, in_features, dtype=torch.bfloat16, device=job.device)

    def launch() -> None:
        for weight in weights:
            F.linear(x, weight)

    seconds = launch_seconds(launch, job.device) / count
    moved = weight_bytes + 2 * rows * (in_features + out_features)
    least = max(moved / bandwidth(peaks), 2.0 * rows * out_features * in_features / peaks["bf16"])
    return seconds, least / seconds


def _versions(job: Job) -> None:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "numpy", "msgspec"):
        try:
            found[name] = str(getattr(importlib.import_module(name), "__version__", "there"))
        except ImportError:
            found[name] = "missing"
    job.figure("versions", found)
    job.row(", ".join(f"{name} {version}" for name, version in found.items()))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        about = {"name": properties.name, "multiprocessors": properties.multi_processor_count, "memory": properties.total_memory}
        job.figure("gpu", about)
        job.row(f"{properties.name}, {properties.multi_processor_count} multiprocessors, {properties.total_memory / 2**30:.1f} GiB")
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        try:
            job.row("driver, clock, power: " + subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip())
        except (OSError, subprocess.TimeoutExpired) as error:
            job.row(f"nvidia-smi does not answer: {error}")
