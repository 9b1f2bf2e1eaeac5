"""Llama 3 8B's products with quantised weights, as its layers ask for them: microseconds, and bytes of weight a second over the peak."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness.job import Job
from harness.peaks import bandwidth, measure_peaks
from harness.timing import launch_seconds

from octavo.ops.base import QUANT_BLOCK, BlockWeight, Float8Weight, PackedLinear, WeightPart
from octavo.ops.cuda.backend import CudaOps
from octavo.ops.cuda.linear import StackedWeight

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
ROWS = (1, 8, 16, 32, 64, 128, 256, 2048)
FORMATS = ("4 bits", "4 bits with minima", "8 bits", "int8", "fp8", "dense")
COLD_BYTES = 128 * 2**20
"""Weights that take turns have at least so many bytes together: the second-level cache (50 MB) does not hold the next one."""


def run(job: Job) -> None:
    """See the module."""
    peaks = measure_peaks(job.device, job.dry)
    job.row("products with quantised weights: microseconds (weight's bytes over the bandwidth, %)")
    job.row(f"{'rows':>26}" + "".join(f"{name:>18}" for name in SHAPES))
    ops = CudaOps(job.device, torch.float32 if job.dry else torch.bfloat16)
    for kind in FORMATS:
        packed = {name: _weights(job, ops, kind, name) for name in SHAPES}
        for rows in ROWS[:2] if job.dry else ROWS:
            cells = []
            for name, (weights, nbytes) in packed.items():
                x = torch.randn(rows, weights[0].in_features, device=job.device).to(ops.dtype)
                own = partial(ops.gated_linear, kind="silu") if name == "gate_up" else ops.linear
                with torch.inference_mode():
                    seconds = launch_seconds(partial(_each, own, x, weights), job.device) / len(weights)
                share = nbytes / bandwidth(peaks) / seconds
                job.figure(f"{kind} {name} {rows}", {"seconds": seconds, "share": share})
                cells.append(f"{1e6 * seconds:11,.1f} ({100 * share:3.0f})")
            job.row(f"{rows:>5} {kind:<20}" + "".join(f"{cell:>18}" for cell in cells))


def _each(multiply: Callable[[torch.Tensor, PackedLinear], torch.Tensor], x: torch.Tensor, weights: list[PackedLinear]) -> None:
    for weight in weights:
        multiply(x, weight)


def _weights(job: Job, ops: CudaOps, kind: str, name: str) -> tuple[list[PackedLinear], int]:
    """Enough copies of one product's weight, and the bytes of one."""
    out_features, in_features = (size // 64 for size in SHAPES[name]) if job.dry else SHAPES[name]
    part = _part(kind, out_features, in_features)
    packed = [ops.pack_linear([part], gated=name == "gate_up")]
    stacked = packed[0].data
    assert isinstance(stacked, StackedWeight)
    nbytes = sum(part.nbytes for part in stacked.parts)
    count = 1 if job.dry else max(2, -(-COLD_BYTES // nbytes))
    packed += [ops.pack_linear([part], gated=name == "gate_up") for _ in range(count - 1)]
    return packed, nbytes


def _part(kind: str, out_features: int, in_features: int) -> WeightPart:
    """Random numbers: the power that a GPU takes, and so its clock, depends on them."""
    draw = torch.Generator().manual_seed(0)
    if kind in ("fp8", "dense"):
        dense = torch.randn(out_features, in_features, generator=draw).mul_(0.02)
        return Float8Weight(dense) if kind == "fp8" else dense
    blocks, bits = in_features // QUANT_BLOCK, 4 if kind.startswith("4") else 8
    values = torch.randint(0, 256, (out_features, blocks, QUANT_BLOCK * bits // 8), generator=draw, dtype=torch.uint8)
    numbers = values.numpy() if bits == 4 else values.view(torch.int8).numpy()
    if kind == "int8":
        return BlockWeight(8, numbers, 0, torch.full((out_features, 1), 2e-4).numpy())
    scales = torch.full((out_features, blocks), 4e-3 if bits == 4 else 2e-4, dtype=torch.float16).numpy()
    minima = -8 * scales if kind == "4 bits with minima" else None
    return BlockWeight(bits, numbers, 8 if bits == 4 and minima is None else 0, scales, minima)
