"""Ranks that share each layer, over torch.distributed: NCCL between GPUs, gloo between processes, on one host or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from octavo.ops.base import Group


class TorchGroup(Group):
    """Ranks of a process group.

    Args:
        group: of torch.distributed.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._group = group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Two ranks' sum is the same in either order. Libraries add up those of more ranks in an order that depends on where in the
        message a number is, and so on the rows beside it: they are gathered and added here, in the ranks' order."""
        if self.size == 2:
            dist.all_reduce(x, group=self._group)
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    def gather(self, part: torch.Tensor, widths: Sequence[int]) -> torch.Tensor | None:
        """Parts are padded to one width on the way, as collectives want them."""
        padded = torch.nn.functional.pad(part, (0, max(widths) - part.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self._group)
        if self.rank > 0:
            return None
        return torch.cat([rows[:, :width] for rows, width in zip(parts, widths, strict=True)], dim=1)

    def broadcast(self, x: torch.Tensor) -> None:
        dist.broadcast(x, group=self._group, group_src=0)
