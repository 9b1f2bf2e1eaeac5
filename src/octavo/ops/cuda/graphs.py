"""Decoding steps as CUDA graphs: the launches of a forward pass recorded once and replayed with one.

A graph's shapes and addresses are fixed. So the step is copied to buffers that stay, its sequences padded to one of a few sizes (a padded
one has slot -1 and a context of 0), and so is its attention work (``attention.GraphWork``). A graph is captured when a step first needs it.
All share one pool of memory and one set of buffers: they run one after the other. Without graphs decoding steps are padded the same way.

Prompt chunks run as they are: their kernels are long enough to hide the launches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.ops.base import AttentionBatch, StepLimits
from octavo.ops.cuda.attention import Attention, GraphWork

Pass = Callable[[torch.Tensor, AttentionBatch], torch.Tensor]
"""A model's forward pass over token ids (or an earlier stage's rows) and a step."""

Capture = Callable[[Callable[[], torch.Tensor]], tuple[torch.Tensor, Callable[[], None]]]
"""Records what a function launches: its result's tensor, and what fills that tensor again from the buffers the function read."""

_SMALL_SIZES = (1, 2, 4)


def batch_size(count: int) -> int:
    """The size that ``count`` sequences are padded to: products read the weights whatever it is, so steps may be coarse."""
    for size in _SMALL_SIZES:
        if count <= size:
            return size
    step = 8 if count <= 32 else 16 if count <= 64 else 32
    return -(-count // step) * step


def cuda_capture() -> Capture:
    """Capture on the GPU; all graphs of one of these share a pool of memory."""
    pool = None

    def capture(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        nonlocal pool
        # Once before, on a stream of its own as capturing wants: kernels are compiled and libraries set up outside the graph.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread's calls are no mistake: NCCL's, between ranks, looks after its work meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = function()
        pool = graph.pool()
        return result, graph.replay

    return capture


@dataclass(frozen=True, slots=True)
class _Graph:
    """Attributes:
    hidden: [size, H], what a replay fills.
    work: of its attention.
    step: the geometry it was captured with, whose tensors it reads and writes: they must live as long as it does.
    """

    hidden: torch.Tensor
    replay: Callable[[], None]
    work: GraphWork
    step: AttentionBatch


class DecodeSteps:
    """A forward pass that pads decoding steps and replays them as graphs, if there is a way to capture them.

    Padding is the same with graphs and without, so the products are, and so are all bits.

    Args:
        forward: the pass.
        attention: by which it attends.
        limits: of steps.
        device: where they run.
        capture: how a graph is made; None runs the padded steps as they are.
        stage_width: of the rows that a pass begins with instead of token ids, in a later stage of a pipeline.

    Attributes:
        graphs: captured so far, by size and what the attention adds to it.
    """

    def __init__(
        self,
        forward: Pass,
        attention: Attention,
        limits: StepLimits,
        device: torch.device,
        capture: Capture | None,
        stage_width: int | None = None,
    ) -> None:
        self._forward = forward
        self._attention = attention
        self._capture = capture
        self._device = device
        most = batch_size(limits.most_sequences)
        start = torch.zeros(most, dtype=torch.int64) if stage_width is None else torch.zeros(most, stage_width)
        self._start = start.to(device)
        self._positions = torch.zeros(most, dtype=torch.int64, device=device)
        self._slots = torch.full((most,), -1, dtype=torch.int64, device=device)
        self._query_starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._context_lens = torch.zeros(most, dtype=torch.int32, device=device)
        self._tables = torch.zeros((most, limits.most_blocks), dtype=torch.int32, device=device)
        self.graphs: dict[tuple[int, ...], _Graph] = {}

    def __call__(self, start: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """Hidden rows [T, H] of a step; those of a graph are valid until the next step."""
        count = len(batch.query_lens)
        if len(start) != count:
            return self._forward(start, batch)
        size = batch_size(count)
        self._fill(start, batch, size)
        # Until a step has run it is not known what kinds of layers there are.
        extra = self._attention.graph_key(batch) if self._capture is not None and self._attention.specs else None
        if self._capture is None or extra is None:
            contexts = batch.context_lens_host + [0] * (size - count)
            return self._forward(self._start[:size], self._step(size, contexts, batch.block_size))[:count]
        key = (size, *extra)
        if key not in self.graphs:
            self.graphs[key] = self._make(self._capture, size, extra, batch)
        graph = self.graphs[key]
        graph.work.fill(batch)
        graph.replay()
        return graph.hidden[:count]

    def _step(self, size: int, contexts: list[int], block_size: int) -> AttentionBatch:
        """The geometry of the step that the buffers hold."""
        return AttentionBatch(
            positions=self._positions[:size],
            slots=self._slots[:size],
            query_starts=self._query_starts[: size + 1],
            context_lens=self._context_lens[:size],
            block_tables=self._tables[:size],
            query_lens=[1] * size,
            context_lens_host=contexts,
            block_size=block_size,
        )

    def _fill(self, start: torch.Tensor, batch: AttentionBatch, size: int) -> None:
        """Copy a step to the buffers that the graphs read."""
        count = len(start)
        self._start[:count].copy_(start)
        self._positions[:count].copy_(batch.positions)
        self._slots[:count].copy_(batch.slots)
        if count < size:
            self._slots[count:size].fill_(-1)
        self._context_lens[:count].copy_(batch.context_lens)
        self._tables[:count, : batch.block_tables.shape[1]].copy_(batch.block_tables)

    def _make(self, capture: Capture, size: int, extra: tuple[int, ...], batch: AttentionBatch) -> _Graph:
        """Capture the graph of a size; the buffers hold a step of it."""
        step = self._step(size, [], batch.block_size)
        work = self._attention.graph_work(step, extra)
        work.fill(batch)
        step.plans.update(work.plans)
        hidden, replay = capture(lambda: self._forward(self._start[:size], step))
        return _Graph(hidden, replay, work, step)
