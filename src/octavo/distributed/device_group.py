"""Ranks with a GPU each that share each layer: they sum over NCCL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from octavo.ops.base import Group


class DeviceGroup(Group):
    """A group over torch.distributed's, on devices that work on their own: nothing here waits for them, and graphs can record it.

    Two ranks' sum is the same bits in either order. Of three or more each sums a part of the numbers in the ranks' order, and hands it to
    the others: it moves what an all-reduce moves, which would choose the order by where in the buffer a row lies.

    Args:
        ranks: of the default process group, those that share the layers, this one among them.
        group: torch.distributed's of those ranks.
    """

    def __init__(self, ranks: Sequence[int], group: dist.ProcessGroup) -> None:
        self.rank = ranks.index(dist.get_rank())
        self.size = len(ranks)
        self._group = group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        if self.size == 2:
            dist.all_reduce(x, group=self._group)
            return x
        numbers = torch.nn.functional.pad(x.view(-1), (0, -x.numel() % self.size))
        mine = torch.empty_like(numbers)
        dist.all_to_all_single(mine, numbers, group=self._group)
        total, *others = mine.view(self.size, -1).unbind()
        for part in others:
            total = total + part
        dist.all_gather_into_tensor(numbers, total.contiguous(), group=self._group)
        return numbers[: x.numel()].view(x.shape)

    def gather(self, part: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        """On all ranks: each samples, and so knows the tokens that the next step begins with."""
        padded = torch.nn.functional.pad(part, (0, max(widths) - part.shape[1])).contiguous()
        parts = padded.new_empty((self.size * len(padded), padded.shape[1]))
        dist.all_gather_into_tensor(parts, padded, group=self._group)
        return torch.cat([one[:, :width] for one, width in zip(torch.split(parts, len(padded)), widths, strict=True)], dim=1)
