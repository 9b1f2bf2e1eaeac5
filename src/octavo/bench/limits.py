"""What this machine can do at best, and the least time a workload can take on it.

The peaks are *practical* ones: the best of several runs of the fastest loops at hand (torch's reductions; for each type the faster of
torch's matrix product and Octavo's own). No program can be sure to reach more, but a theoretical figure from a data sheet would be higher.
They are measured when they are asked for, since a shared machine is not the same an hour later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from octavo.bench.report import Row, table
from octavo.models.config import ModelConfig
from octavo.models.expected_tensors import expected_tensors
from octavo.quantization.formats import DENSE, DTYPE_BYTES, PackedFormat, is_vocabulary, packed_bytes
from octavo.quantization.quantize import quantize_int8
from octavo.runner.device import available_ram, usable_cores
from octavo.runner.memory_plan import block_bytes

READ_BUFFER_BYTES = 2**30
"""Far larger than caches; a quarter of the free memory where that is less."""

MATRIX_SIZES = (1024, 2048)
"""Sides of the square matrices whose product by torch gives an arithmetic peak: bound by arithmetic, small enough for caches."""

PACKED_SIZES = (512, 1024, 1024)
"""Rows, columns and sums' length of the products by Octavo's kernels, for the same."""

_RUNS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Peaks of this machine with ``threads`` threads.

    Attributes:
        read_gb_s: bytes read from memory, in 1e9 a second.
        fp32_gflop_s, bf16_gflop_s, int8_gop_s: multiplications and additions of a matrix product, in 1e9 a second.
            ``int8_gop_s`` is None where no int8 product at hand is faster than float32's.
        notes: what a reader of the figures should know.
    """

    threads: int
    read_gb_s: float
    fp32_gflop_s: float
    bf16_gflop_s: float
    int8_gop_s: float | None
    notes: tuple[str, ...] = ()

    def arithmetic(self, dtype: str) -> float:
        """Operations a second of a product in ``dtype`` (``int8``: of quantised weights): never less than that of a wider type, to which
        its values can be converted."""
        peaks = {"float32": self.fp32_gflop_s, "bfloat16": self.bf16_gflop_s, "int8": self.int8_gop_s or 0.0}
        wider = {"bfloat16": ("bfloat16", "float32"), "int8": ("int8", "bfloat16", "float32")}
        return 1e9 * max(peaks[kind] for kind in wider.get(dtype, ("float32",)))


@dataclass(frozen=True, slots=True)
class Products:
    """Matrices of a model, as they are held.

    Attributes:
        bytes: of the matrices.
        dense: parameters that are multiplied in the compute type.
        quantised: parameters that are multiplied as small integers, whatever their bits.
    """

    bytes: int
    dense: int
    quantised: int

    def seconds(self, dtype: str, limits: Limits) -> float:
        """Arithmetic of one row's products with all of them; ``dtype`` is the compute type."""
        return 2.0 * (self.dense / limits.arithmetic(dtype) + self.quantised / limits.arithmetic("int8"))


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs the machine.

    Attributes:
        layers: all of them together; each token is multiplied with all.
        head: the product that makes logits, done once for each generated token.
        dtype: compute type; ``kv_dtype``: of cached keys and values.
    """

    config: ModelConfig
    layers: Products
    head: Products
    dtype: str
    kv_dtype: str

    @property
    def step_bytes(self) -> int:
        """Weights that every step reads once. An embedding table of its own is left out: a step reads a few of its rows."""
        return self.layers.bytes + self.head.bytes

    @property
    def quantised(self) -> bool:
        """Whether any product is one of small integers."""
        return self.layers.quantised + self.head.quantised > 0

    def kv_bytes(self, context: int) -> int:
        """Cached keys and values (and their scales) that one token's attention reads, windows regarded."""
        config = self.config
        tokens = sum(context if window is None else min(context, window) for window in config.windows)
        return tokens * block_bytes(config, 1, self.kv_dtype) // config.num_layers


def model_cost(config: ModelConfig, dtype: str, kv_dtype: str, matrices: Mapping[str, PackedFormat] | None = None) -> ModelCost:
    """Count a decoder's matrix products; norms and biases (well under 1%) are left out.

    Args:
        dtype: compute type.
        matrices: how matrices are held, by name (``memory_plan.matrix_formats``); all dense when None.
    """
    shapes = {name: shape for name, shape in expected_tensors(config).items() if len(shape) == 2}
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    layers = [name for name in shapes if not is_vocabulary(name)]

    def products(names: Sequence[str]) -> Products:
        held = [(*shapes[name], DENSE if matrices is None else matrices[name]) for name in names]
        return Products(
            bytes=sum(
                rows * columns * DTYPE_BYTES[dtype] if packed == DENSE else packed_bytes(packed, rows, columns, dtype)
                for rows, columns, packed in held
            ),
            dense=sum(rows * columns for rows, columns, packed in held if packed == DENSE),
            quantised=sum(rows * columns for rows, columns, packed in held if packed != DENSE),
        )

    return ModelCost(config, products(layers), products([head]), dtype, kv_dtype)


def least_seconds(cost: ModelCost, lengths: Sequence[tuple[int, int]], max_num_seqs: int, limits: Limits) -> float:
    """The least time a workload can take here.

    Prompts go at the arithmetic peak, or at the time one reading of the weights takes where that is more. Then each step takes the
    larger of (weights + KV) / read bandwidth and arithmetic / peak, with as many sequences as may run at once; one that ends makes
    room for the next. Weights count the bytes they are held in, and quantised ones are multiplied at the int8 peak. Attention's own
    arithmetic, activations and the sampler are left out, so the real limit is a little higher.

    Args:
        lengths: (prompt tokens, generated tokens) of each sequence.
        max_num_seqs: most sequences in one step.
    """
    bandwidth = 1e9 * limits.read_gb_s
    layers, head = (products.seconds(cost.dtype, limits) for products in (cost.layers, cost.head))
    prompts = sum(prompt * layers + head for prompt, _ in lengths)
    seconds = max(prompts, cost.step_bytes / bandwidth)
    waiting = [(prompt + 1, new - 1) for prompt, new in reversed(lengths) if new > 1]
    running: list[tuple[int, int]] = []
    while waiting or running:
        while waiting and len(running) < max_num_seqs:
            running.append(waiting.pop())
        read = cost.step_bytes + sum(cost.kv_bytes(context) for context, _ in running)
        seconds += max(read / bandwidth, len(running) * (layers + head))
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
        fp32 = max(_matmul_peak(torch.float32), _packed_peak("float32", threads))
        bf16 = max(_matmul_peak(torch.bfloat16), _packed_peak("bfloat16", threads))
        int8 = max(_int8_peak(), _packed_peak("int8", threads))
        read = _read_bandwidth()
    finally:
        torch.set_num_threads(before)
    notes = []
    if bf16 < fp32:
        notes.append("bfloat16 is slower than float32 here: this processor has no instructions for it.")
    if int8 < fp32:
        notes.append(
            "int8 is left out: neither torch's product nor Octavo's is faster than float32 here; shares of the limit use a wider type's."
        )
    return Limits(threads, read / 1e9, fp32 / 1e9, bf16 / 1e9, None if int8 < fp32 else int8 / 1e9, tuple(notes))


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
    """Operations a second of torch's best square product in ``dtype``."""
    peaks = []
    for size in MATRIX_SIZES:
        left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        peaks.append(2.0 * size**3 / _best_seconds(lambda left=left, right=right: torch.mm(left, right)))  # type: ignore[misc]
    return max(peaks)


def _int8_peak() -> float:
    """The same for int8; 0 where torch has no such product."""
    size = MATRIX_SIZES[0]
    ones = torch.ones(size, size, dtype=torch.int8)
    try:
        return 2.0 * size**3 / _best_seconds(lambda: torch._int_mm(ones, ones))
    except RuntimeError:
        return 0.0


def _packed_peak(kind: str, threads: int) -> float:
    """Operations a second of the product of Octavo's own kernels (the best set there is here) with a packed weight.

    Args:
        kind: float32, bfloat16 or int8 (one scale a row).
    """
    from octavo.ops.cpu.backend import CpuOps  # built for CPUs; the rest of this file needs none of it

    rows, columns, length = PACKED_SIZES
    ops = CpuOps(torch.float32 if kind == "float32" else torch.bfloat16, threads)
    values = torch.ones(columns, length)
    weight = ops.pack_linear([quantize_int8(values) if kind == "int8" else values.to(ops.dtype)])
    x = torch.ones(rows, length)
    return 2.0 * rows * columns * length / _best_seconds(lambda: ops.linear(x, weight))


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
    notes = ["Practical peaks: the best of torch's and Octavo's own loops, not a data sheet's figures.", *limits.notes]
    return "\n".join([table("Limits of This Machine", [("", rows)]), *notes])
