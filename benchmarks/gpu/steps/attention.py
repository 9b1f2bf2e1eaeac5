"""The attention kernels alone, in Llama 3 8B's geometry: bytes a second of decoding, operations a second of prompts.

Prompts are compared with torch's own attention over plain tensors in the same run, and all with the libraries that may attend in place of
Octavo's kernels (``--attention-backend``) where they are installed: how far their results are apart, and their times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness.job import Job
from harness.peaks import bandwidth, peaks
from harness.timing import launch_seconds
from paged_steps import attention_batch, on_device

from octavo.config import ATTENTION_BACKENDS
from octavo.errors import ConfigError
from octavo.ops.base import AttentionBatch, AttentionSpec, KVLayer, KVShape
from octavo.ops.cuda.backend import CudaOps

DECODE = ((1, 1024), (1, 8192), (1, 32768), (8, 1024), (16, 8192), (64, 1024), (64, 4096), (256, 1024))
"""(sequences, context)."""
PREFILL = ((1, 0, 512), (1, 0, 2048), (1, 0, 8192), (4, 0, 512), (1, 6144, 2048))
"""(sequences, tokens cached before, new tokens)."""
SPEC = AttentionSpec(num_heads=32, num_kv_heads=8, head_dim=128, scale=128**-0.5)
BLOCK_SIZE = 16
COLD_BYTES = 384 * 2**20
"""Layers take turns, so that the second-level cache does not hold a layer's keys and values when its turn comes."""


def run(job: Job) -> None:
    """See the module."""
    dtype = torch.float32 if job.dry else torch.bfloat16
    ops = CudaOps(job.device, dtype)
    libraries = _libraries(job, dtype)
    found = peaks(job)
    for sequences, context in ((2, 40),) if job.dry else DECODE:
        _decode(job, ops, libraries, sequences, context, bandwidth(found))
    for sequences, cached, new in ((2, 16, 24), (1, 0, 40)) if job.dry else PREFILL:
        _prefill(job, ops, libraries, sequences, cached, new, found["bf16"])


def _libraries(job: Job, dtype: torch.dtype) -> dict[str, CudaOps]:
    """The kernels by each library that is there; a line for those that are not."""
    there = {}
    for name in ATTENTION_BACKENDS:
        if name == "triton":
            continue
        try:
            there[name] = CudaOps(job.device, dtype, attention=name)
        except ConfigError as error:
            job.row(f"no {name} here: {error}")
    return there


def _beside(job: Job, ops: CudaOps, libraries: dict[str, CudaOps], figures: dict[str, float], *step: int) -> str:
    """Each library's time for a step, and how far its result is from Octavo's: figures, and their words.

    Args:
        step: sequences, tokens cached before, new tokens.
    """
    text = ""
    for name, library in libraries.items():
        batch, kv, q = _pool(job, ops, 1, *step)
        own, other = (each.paged_attention(q, batch, kv[0], SPEC).double() for each in (ops, library))
        apart = ((own - other).norm() / own.norm()).item()
        seconds = _layer_seconds(job, library, _layers(job, *step), *step)
        figures |= {f"{name}_seconds": seconds, f"{name}_apart": apart}
        text += f"; {name} {1e6 * seconds:.1f} us, {seconds / figures['seconds']:.2f} times as long, {apart:.1e} apart"
    return text


def _layers(job: Job, sequences: int, cached: int, new: int) -> int:
    """Layers that take turns in a step."""
    if job.dry or new > 1:
        return 2
    layer_bytes = sequences * (cached + 1) * 2 * SPEC.num_kv_heads * SPEC.head_dim * 2
    return max(2, min(32, -(-COLD_BYTES // layer_bytes)))


def _decode(job: Job, ops: CudaOps, libraries: dict[str, CudaOps], sequences: int, context: int, moved: float) -> None:
    layer_bytes = sequences * context * 2 * SPEC.num_kv_heads * SPEC.head_dim * ops.dtype.itemsize
    step = (sequences, context - 1, 1)
    seconds = _layer_seconds(job, ops, _layers(job, *step), *step)
    figures = {"seconds": seconds, "bytes_a_second": layer_bytes / seconds}
    beside = _beside(job, ops, libraries, figures, *step)
    job.figure(f"decode {sequences} {context}", figures)
    job.row(
        f"decode B={sequences:<3} at {context:6,}: {1e6 * seconds:8.1f} us a layer, {layer_bytes / seconds / 1e9:6,.0f} GB/s "
        f"({100 * layer_bytes / seconds / moved:.0f}% of the bandwidth){beside}"
    )


def _prefill(job: Job, ops: CudaOps, libraries: dict[str, CudaOps], sequences: int, cached: int, new: int, rate: float) -> None:
    step = (sequences, cached, new)
    seconds = _layer_seconds(job, ops, _layers(job, *step), *step)
    pairs = sequences * (new * cached + new * (new + 1) / 2)
    operations = 4.0 * pairs * SPEC.num_heads * SPEC.head_dim
    figures = {"seconds": seconds, "operations_a_second": operations / seconds}
    text = (
        f"prefill {sequences} x {new:5,} after {cached:5,}: {1e6 * seconds:8.1f} us a layer, {operations / seconds / 1e12:5.0f} TFLOP/s "
        f"({100 * operations / seconds / rate:.0f}% of the rate)"
    )
    if cached == 0:
        torchs = _torch_seconds(job, ops, sequences, new)
        figures["torch_seconds"] = torchs
        text += f"; torch {1e6 * torchs:.1f} us, {torchs / seconds:.2f} of its speed"
    text += _beside(job, ops, libraries, figures, *step)
    job.figure(f"prefill {sequences} {cached} {new}", figures)
    job.row(text)


def _layer_seconds(job: Job, ops: CudaOps, layers: int, sequences: int, cached: int, new: int) -> float:
    """Seconds of one layer's attention, after ``layers`` others have run."""
    batch, kv, q = _pool(job, ops, layers, sequences, cached, new)
    for layer in kv[:1]:  # what the host plans once a step is not the layers' time
        ops.paged_attention(q, batch, layer, SPEC)

    def launch() -> None:
        for layer in kv:
            ops.paged_attention(q, batch, layer, SPEC)

    with torch.inference_mode():
        return launch_seconds(launch, job.device) / layers


def _pool(job: Job, ops: CudaOps, layers: int, sequences: int, cached: int, new: int) -> tuple[AttentionBatch, list[KVLayer], torch.Tensor]:
    """A pool of random numbers in which the sequences' blocks lie scattered, the step over it, and its queries."""
    blocks = -(-(cached + new) // BLOCK_SIZE)
    order = torch.randperm(sequences * blocks, generator=torch.Generator().manual_seed(1)).view(sequences, blocks)
    batch = on_device(attention_batch(order.tolist(), [cached] * sequences, [new] * sequences, BLOCK_SIZE), job.device)
    shape = KVShape(layers, SPEC.num_kv_heads, SPEC.head_dim, BLOCK_SIZE, str(ops.dtype).removeprefix("torch."))
    values = layers * 2 * BLOCK_SIZE * SPEC.num_kv_heads * SPEC.head_dim
    pool = torch.empty(sequences * blocks, values, dtype=ops.dtype, device=job.device).normal_()
    # Queries are a part of wider rows, as in the product of queries, keys and values.
    width = SPEC.num_heads + 2 * SPEC.num_kv_heads
    q = torch.randn(sequences * new, width, SPEC.head_dim, device=job.device).to(ops.dtype)[:, : SPEC.num_heads]
    return batch, ops.kv_layers(pool.view(torch.uint8), shape), q


def _torch_seconds(job: Job, ops: CudaOps, sequences: int, new: int) -> float:
    """Seconds of torch's causal attention over plain tensors of the same size."""
    q, k, v = (
        torch.randn(sequences, heads, new, SPEC.head_dim, device=job.device).to(ops.dtype)
        for heads in (SPEC.num_heads, SPEC.num_kv_heads, SPEC.num_kv_heads)
    )

    def launch() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    with torch.inference_mode():
        return launch_seconds(launch, job.device)
