"""Ranks on one host that share each layer, through memory that they share (``csrc/cpu/shared_group.h``)."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch

from octavo.ops import _cpu
from octavo.ops.base import Group


class SharedGroup(Group):
    """Ranks that map the same file.

    Args:
        fd: an open file of ``SharedGroup.bytes(size, slot_floats)`` bytes, all zero when the group begins.
        rank, size: see ``Group``.
        slot_floats: of each rank's slots: one row at least of whatever is exchanged; more rows go piece by piece.

    Attributes:
        handle: the kernels' own, for recorded passes.
    """

    def __init__(self, fd: int, rank: int, size: int, slot_floats: int) -> None:
        self.rank = rank
        self.size = size
        self._memory = torch.frombuffer(mmap.mmap(fd, self.bytes(size, slot_floats)), dtype=torch.uint8)
        self.handle = _cpu.SharedGroup(self._memory.data_ptr(), rank, size, slot_floats)
        self._lone = _cpu.Team(1)

    @staticmethod
    def bytes(size: int, slot_floats: int) -> int:
        """Of the file."""
        return _cpu.SharedGroup.bytes(size, slot_floats)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.float().contiguous()
        output, width = torch.empty_like(rows), rows.shape[-1]
        program = _cpu.Program(self._lone, "", 2**31 - 1)
        program.all_reduce(rows.data_ptr(), width, output.data_ptr(), width, width, False, self.handle)
        program.run(rows.numel() // width)
        return output.to(x.dtype)

    def gather(self, part: torch.Tensor, widths: Sequence[int]) -> torch.Tensor | None:
        part = part.contiguous()
        output = torch.empty((len(part), sum(widths)), dtype=torch.float32) if self.rank == 0 else None
        self.handle.gather(part.data_ptr(), len(part), list(widths), 0 if output is None else output.data_ptr())
        return output
