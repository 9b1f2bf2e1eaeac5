"""What this machine can do at best, and the least time a workload can take on it.

The peaks are *practical* ones: the best of several runs of the fastest loops at hand (torch's reductions and its vendor's matrix product).
No program can be sure to reach more, but a theoretical figure from a data sheet would be higher. They are measured when
they are asked for, since a shared machine is not the same an hour later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from octavo.bench.report import Row, table
from octavo.models.config import ModelConfig
from octavo.runner.device import available_ram, usable_cores

READ_BUFFER_BYTES = 2**30
"""Far larger than caches; a quarter of the free memory where that is less."""

MATRIX_SIZES = (1024, 2048)
"""Sides of the square matrices whose product gives an arithmetic peak: large enough to be bound by arithmetic, small enough for caches."""

_RUNS = 5
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Limits:
    """Peaks of this machine with ``threads`` threads.

    Attributes:
        read_gb_s: bytes read from memory, in 1e9 a second.
        fp32_gflop_s, bf16_gflop_s, int8_gop_s: multiplications and additions of a matrix product, in 1e9 a second.
            ``int8_gop_s`` is None where torch has no int8 product worth the name here.
        notes: what a reader of the figures should know.
    """

    threads: int
    read_gb_s: float
    fp32_gflop_s: float
    bf16_gflop_s: float
    int8_gop_s: float | None
    notes: tuple[str, ...] = ()

    def arithmetic(self, dtype: str) -> float:
        """Operations a second of a product in ``dtype``: never less than float32's, to which any type can be converted."""
        return 1e9 * (max(self.bf16_gflop_s, self.fp32_gflop_s) if dtype == "bfloat16" else self.fp32_gflop_s)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs the machine.

    Attributes:
        layer_parameters: of all layers together; each token is multiplied with all of them.
        head_parameters: of the product that makes logits, done once for each generated token.
        dtype: type of weights and arithmetic; ``kv_dtype``: of cached keys and values.
    """

    config: ModelConfig
    layer_parameters: int
    head_parameters: int
    dtype: str
    kv_dtype: str

    @property
    def step_bytes(self) -> int:
        """Weights that every step reads once. The embedding table is left out: a step reads a few of its rows."""
        return (self.layer_parameters + self.head_parameters) * _BYTES[self.dtype]

    def kv_bytes(self, context: int) -> int:
        """Cached keys and values that one token's attention reads, windows regarded."""
        config = self.config
        tokens = sum(context if window is None else min(context, window) for window in config.windows)
        return 2 * tokens * config.num_kv_heads * config.head_dim * _BYTES[self.kv_dtype]


def model_cost(config: ModelConfig, dtype: str, kv_dtype: str) -> ModelCost:
    """Count the parameters of a decoder's matrix products; norms and biases (well under 1%) are left out."""
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim + config.num_heads * config.head_dim
    layer = config.hidden_size * (heads + 3 * config.intermediate_size)
    return ModelCost(config, config.num_layers * layer, config.vocab_size * config.hidden_size, dtype, kv_dtype)


def least_seconds(cost: ModelCost, lengths: Sequence[tuple[int, int]], max_num_seqs: int, limits: Limits) -> float:
    """The least time a workload can take here.

    Prompts go at the arithmetic peak, or at the time one reading of the weights takes where that is more. Then each step takes the
    larger of (weights + KV) / read bandwidth and arithmetic / peak, with as many sequences as may run at once; one that ends makes
    room for the next. Attention's own arithmetic, activations and the sampler are left out, so the real limit is a little higher.

    Args:
        lengths: (prompt tokens, generated tokens) of each sequence.
        max_num_seqs: most sequences in one step.
    """
    bandwidth, arithmetic = 1e9 * limits.read_gb_s, limits.arithmetic(cost.dtype)
    prompt_work = sum(2.0 * (prompt * cost.layer_parameters + cost.head_parameters) for prompt, _ in lengths)
    seconds = max(prompt_work / arithmetic, cost.step_bytes / bandwidth)
    token_work = 2.0 * (cost.layer_parameters + cost.head_parameters)
    waiting = [(prompt + 1, new - 1) for prompt, new in reversed(lengths) if new > 1]
    running: list[tuple[int, int]] = []
    while waiting or running:
        while waiting and len(running) < max_num_seqs:
            running.append(waiting.pop())
        read = cost.step_bytes + sum(cost.kv_bytes(context) for context, _ in running)
        seconds += max(read / bandwidth, len(running) * token_work / arithmetic)
        running = [(context + 1, left - 1) for context, left in running if left > 1]
    return seconds


def measure(threads: int | None = None) -> Limits:
    """Measure this machine; takes a few seconds and up to ``READ_BUFFER_BYTES`` of memory.

    Args:
        threads: CPU threads to use; the usable cores when None.
    """
    threads = threads or usable_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fp32 = _matmul_peak(torch.float32)
        bf16 = _matmul_peak(torch.bfloat16)
        int8 = _int8_peak()
        read = _read_bandwidth()
    finally:
        torch.set_num_threads(before)
    notes = []
    if bf16 < fp32:
        notes.append("bfloat16 is slower than float32 here: this processor has no instructions for it.")
    if int8 is not None and int8 < fp32:
        int8 = None
    if int8 is None:
        notes.append("int8 is left out: torch's int8 product is missing or slower than float32 here, so it says nothing about the machine.")
    return Limits(threads, read / 1e9, fp32 / 1e9, bf16 / 1e9, None if int8 is None else int8 / 1e9, tuple(notes))


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _read_bandwidth() -> float:
    """Bytes a second: the faster of two reductions that do next to no arithmetic, over a buffer no cache holds."""
    size = min(READ_BUFFER_BYTES, available_ram() // 4) // 4
    values = torch.ones(size, dtype=torch.float32)
    best = min(_best_seconds(values.sum), _best_seconds(lambda: torch.dot(values, values)))
    return 4.0 * size / best


def _matmul_peak(dtype: torch.dtype) -> float:
    """Operations a second of the best square product in ``dtype``."""
    peaks = []
    for size in MATRIX_SIZES:
        left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        peaks.append(2.0 * size**3 / _best_seconds(lambda left=left, right=right: torch.mm(left, right)))  # type: ignore[misc]
    return max(peaks)


def _int8_peak() -> float | None:
    size = MATRIX_SIZES[0]
    ones = torch.ones(size, size, dtype=torch.int8)
    try:
        return 2.0 * size**3 / _best_seconds(lambda: torch._int_mm(ones, ones))
    except RuntimeError:
        return None


def render(limits: Limits) -> str:
    """The table of ``octavo bench limits``."""
    rows: list[Row] = [
        ("Threads:", limits.threads),
        ("Memory read (GB/s):", limits.read_gb_s),
        ("float32 product (GFLOP/s):", limits.fp32_gflop_s),
        ("bfloat16 product (GFLOP/s):", limits.bf16_gflop_s),
    ]
    if limits.int8_gop_s is not None:
        rows.append(("int8 product (GOP/s):", limits.int8_gop_s))
    notes = ["Practical peaks: the best of torch's reductions and matrix products, not a data sheet's figures.", *limits.notes]
    return "\n".join([table("Limits of This Machine", [("", rows)]), *notes])
