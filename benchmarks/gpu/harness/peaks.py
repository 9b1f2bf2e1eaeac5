"""What the GPU can do at best: bytes moved and operations of matrix products a second."""

from __future__ import annotations

import time
from typing import Any

import torch

from harness.job import Job
from harness.timing import launch_seconds
from octavo.bench.limits import Limits

COPY_BYTES = 4 * 2**30
MATRIX_SIZE = 8192


def measure_peaks(device: torch.device, small: bool) -> dict[str, float]:
    """Practical peaks; about two seconds.

    Args:
        small: tiny sizes, for a rehearsal.

    Returns:
        copied: bytes read plus written a second of a copy; read: bytes read a second of a sum; bf16, fp32: operations a second of a
        square product of random numbers (the power that a GPU takes, and so its clock, depends on the numbers).
    """
    size = 2**20 if small else COPY_BYTES
    source, target = (torch.empty(size, dtype=torch.uint8, device=device).fill_(7) for _ in range(2))
    copied = 2 * size / launch_seconds(lambda: _discard(target.copy_(source)), device)
    values = source.view(torch.float32)
    read = size / launch_seconds(lambda: _discard(values.sum()), device)
    return {
        "copied": copied,
        "read": read,
        "bf16": _product_rate(device, torch.bfloat16, 64 if small else MATRIX_SIZE),
        "fp32": _product_rate(device, torch.float32, 64 if small else MATRIX_SIZE // 2),
    }


def _product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(0 if device.type == "cpu" else 3):
        left @ right
    return 2.0 * size**3 / launch_seconds(lambda: _discard(left @ right), device)


def _discard(result: object) -> None:
    """For work whose result nobody wants."""


def peaks(job: Job) -> dict[str, float]:
    """Those that the step ``limits`` of this run measured, else measured now."""
    figures: dict[str, Any] = job.earlier("limits")
    if "peaks" in figures:
        return dict(figures["peaks"])
    begin = time.perf_counter()
    found = measure_peaks(job.device, job.dry)
    print(f"peaks measured in {time.perf_counter() - begin:.1f} s: {found}", flush=True)
    return found


def bandwidth(found: dict[str, float]) -> float:
    """Bytes a second that limits are computed with: the best that was seen."""
    return max(found["copied"], found["read"])


def as_limits(found: dict[str, float]) -> Limits:
    """The peaks as ``octavo bench`` has them, so that a workload's least time is computed in one place."""
    return Limits(0, bandwidth(found) / 1e9, found["fp32"] / 1e9, found["bf16"] / 1e9, None)
