"""Ranks that share each layer and no memory: they are on several hosts, and sum over the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
import torch.distributed as dist

from octavo.ops.base import Group

_PIECE = 2**20
"""Numbers that are exchanged at once: fewer would wait for the network more often, more would take memory."""


class TorchGroup(Group):
    """A group over torch.distributed's.

    Each rank sends its rows to all others and sums in the ranks' order. gloo's own all-reduce would choose the order by where in the
    buffer a row lies, and a row's bits must not depend on the rows beside it; it is also slower (``benchmarks/parallel/sums.py``).

    Args:
        ranks: of the default process group, those that share the layers, this one among them.
        group: torch.distributed's of those ranks.
        broken: called where the others cannot be reached. It ends the process: kernels that asked for a sum cannot be left midway.
    """

    def __init__(self, ranks: Sequence[int], group: dist.ProcessGroup, broken: Callable[[Exception], NoReturn]) -> None:
        self.rank = ranks.index(dist.get_rank())
        self.size = len(ranks)
        self._ranks = ranks
        self._received = torch.empty((self.size, _PIECE))
        self._group = group
        self._broken = broken

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        try:
            for piece in torch.split(x.view(-1), _PIECE):
                self._sum(piece)
        except RuntimeError as error:
            self._broken(error)
        return x

    def _sum(self, x: torch.Tensor) -> None:
        """In place."""
        if self._received.dtype != x.dtype:
            self._received = self._received.to(x.dtype)
        parts = [x if rank == self.rank else self._received[rank, : len(x)] for rank in range(self.size)]
        others = [rank for rank in range(self.size) if rank != self.rank]
        under_way = [dist.irecv(parts[rank], self._ranks[rank], self._group) for rank in others]
        under_way += [dist.isend(x, self._ranks[rank], self._group) for rank in others]
        for work in under_way:
            assert work is not None, "the rank is in its process group"
            work.wait()
        total = parts[0]
        for part in parts[1:]:
            total += part
        if total is not x:
            x.copy_(total)

    def gather(self, part: torch.Tensor, widths: Sequence[int]) -> torch.Tensor | None:
        widest = max(widths)  # what is gathered has one shape on all ranks
        padded = torch.nn.functional.pad(part, (0, widest - part.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, parts, dst=self._ranks[0], group=self._group)
        return None if parts is None else torch.cat([one[:, :width] for one, width in zip(parts, widths, strict=True)], dim=1)
