"""Versions, and what the GPU can do: bytes a second, and the matrix products of Llama 3 8B at several numbers of rows.

Products are torch's (cuBLAS), and for few rows also what Octavo runs in their place: of gate and up the activation is a part, of the
head the result is float32.
"""

from __future__ import annotations

import importlib
import platform
import subprocess
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from harness.job import Job
from harness.peaks import bandwidth, measure_peaks
from harness.timing import launch_seconds

from octavo.ops.cuda.backend import CudaOps

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336), "head": (128256, 4096)}
"""Out and in features of the products."""
ROWS = (1, 16, 64, 256, 2048)
MOST_OWN_ROWS = 64
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
    job.row(f"{'rows':>12}" + "".join(f"{name:>18}" for name in SHAPES))
    for rows in ROWS[:2] if job.dry else ROWS:
        for whose in ("torch", "octavo") if rows <= MOST_OWN_ROWS else ("torch",):
            cells = []
            for name, (out_features, in_features) in SHAPES.items():
                shape = (out_features // 64, in_features // 64) if job.dry else (out_features, in_features)
                seconds, share = _product(job, rows, *shape, peaks, None if whose == "torch" else name)
                job.figure(f"{whose} {name} {rows}", {"seconds": seconds, "share": share})
                cells.append(f"{1e6 * seconds:11,.1f} ({100 * share:3.0f})")
            job.row(f"{rows:>5} {whose:<6}" + "".join(f"{cell:>18}" for cell in cells))


def _product(job: Job, rows: int, out_features: int, in_features: int, peaks: dict[str, float], own: str | None) -> tuple[float, float]:
    """Seconds of one product with weights that are not in the cache, and what share of the limit that is.

    Args:
        own: None for torch's; else the product's name in ``SHAPES``, multiplied as Octavo does.
    """
    dtype = torch.float32 if job.dry else torch.bfloat16
    weight_bytes = dtype.itemsize * out_features * in_features
    count = 1 if job.dry else max(2, -(-COLD_BYTES // weight_bytes))
    weights = [torch.randn(out_features, in_features, dtype=dtype, device=job.device) for _ in range(count)]
    x = torch.randn(rows, in_features, dtype=dtype, device=job.device)
    multiply = _own(job, own, weights) if own else [partial(F.linear, weight=weight) for weight in weights]

    def launch() -> None:
        for one in multiply:
            one(x)

    with torch.inference_mode():
        seconds = launch_seconds(launch, job.device) / count
    moved = weight_bytes + dtype.itemsize * rows * (in_features + out_features)
    least = max(moved / bandwidth(peaks), 2.0 * rows * out_features * in_features / peaks["bf16"])
    return seconds, least / seconds


def _own(job: Job, name: str, weights: list[torch.Tensor]) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """The product as the model's layers ask for it, one function a weight."""
    ops = CudaOps(job.device, weights[0].dtype)
    packed = [ops.pack_linear([weight], gated=name == "gate_up") for weight in weights]
    if name == "gate_up":
        return [partial(ops.gated_linear, weight=weight, kind="silu") for weight in packed]
    return [partial(ops.logits if name == "head" else ops.linear, weight=weight) for weight in packed]


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
