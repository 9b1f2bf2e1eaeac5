"""Ways to attend over the page pool: Octavo's kernels, or a library's where it is installed and asked for.

A step's attention is called layer by layer. What only the host knows of it (which splits to walk, a library's plan) is worked out once a
step and kind of layer, and kept in ``AttentionBatch.plans``. A recorded step reads it from memory that stays: ``GraphWork``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from octavo.ops.base import AttentionBatch, AttentionSpec
from octavo.ops.cuda.kv import CudaKVLayer


@dataclass(frozen=True, slots=True)
class GraphWork:
    """What the attention of one graph reads beside the step's geometry.

    Attributes:
        plans: of the step that is recorded.
        fill: makes it that of another step, before each replay; takes the step as it is before padding.
    """

    plans: dict[Any, Any]
    fill: Callable[[AttentionBatch], None]


class Attention(ABC):
    """One way to attend.

    Attributes:
        specs: the kinds of layers met so far, in their order.
    """

    def __init__(self) -> None:
        self.specs: list[AttentionSpec] = []

    def __call__(self, q: torch.Tensor, batch: AttentionBatch, kv: CudaKVLayer, spec: AttentionSpec) -> torch.Tensor:
        """See ``Ops.paged_attention``."""
        if spec not in self.specs:
            self.specs.append(spec)
        return self._attend(q, batch, kv, spec)

    @abstractmethod
    def _attend(self, q: torch.Tensor, batch: AttentionBatch, kv: CudaKVLayer, spec: AttentionSpec) -> torch.Tensor: ...

    @abstractmethod
    def graph_key(self, batch: AttentionBatch) -> tuple[int, ...] | None:
        """What else, beside its padded size, has to be the same for decoding steps that share a graph; None if none can hold this one."""

    @abstractmethod
    def graph_work(self, step: AttentionBatch, key: tuple[int, ...]) -> GraphWork:
        """Memory for the work of a graph, of all layers in ``specs``.

        Args:
            step: the geometry that the graph reads, padded; its tensors stay, its host lists are empty.
            key: what ``graph_key`` said.
        """
