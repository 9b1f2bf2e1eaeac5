"""Ranks that share each layer and no memory: they are on several hosts, and sum over the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
import torch.distributed as dist

from octavo.ops.base import Group


class TorchGroup(Group):
    """A group over torch.distributed's.

    Two ranks' sum is the same bits in either order. Three or more are summed on every rank in the ranks' order, for an all-reduce would
    choose the order by where in the buffer a row lies, and a row's bits must not depend on the rows beside it.

    Args:
        ranks: of the default process group, those that share the layers, this one among them.
        group: torch.distributed's of those ranks.
        broken: called where the others cannot be reached. It ends the process: kernels that asked for a sum cannot be left midway.
    """

    def __init__(self, ranks: Sequence[int], group: dist.ProcessGroup, broken: Callable[[Exception], NoReturn]) -> None:
        self.rank = ranks.index(dist.get_rank())
        self.size = len(ranks)
        self._first = ranks[0]
        self._group = group
        self._broken = broken

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return self._sum(x)
        except RuntimeError as error:
            self._broken(error)

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        if self.size == 2:
            dist.all_reduce(x, group=self._group)
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self._group)
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    def gather(self, part: torch.Tensor, widths: Sequence[int]) -> torch.Tensor | None:
        widest = max(widths)  # what is gathered has one shape on all ranks
        padded = torch.nn.functional.pad(part, (0, widest - part.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, parts, dst=self._first, group=self._group)
        return None if parts is None else torch.cat([one[:, :width] for one, width in zip(parts, widths, strict=True)], dim=1)
