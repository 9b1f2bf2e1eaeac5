"""Rows that ranks exchange through shared memory: the sums and the gathered scores, over ragged shapes and many exchanges in a row."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from octavo.ops import _cpu
from octavo.ops.base import Group
from octavo.ops.cpu.backend import CpuOps
from octavo.ops.cpu.shared_group import SharedGroup

SLOT_FLOATS = 4096


def on_ranks(size: int, work: Callable[[SharedGroup], Any]) -> list[Any]:
    """``work`` on every rank at once, a thread each; they map the memory as processes would."""
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, SharedGroup.bytes(size, SLOT_FLOATS))
        groups = [SharedGroup(fd, rank, size, SLOT_FLOATS) for rank in range(size)]
    finally:
        os.close(fd)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, groups))


def rows_of(rank: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(1000 * rank + rows))


def total(size: int, rows: int, width: int) -> torch.Tensor:
    """In the ranks' order."""
    found = rows_of(0, rows, width)
    for rank in range(1, size):
        found = found + rows_of(rank, rows, width)
    return found


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kernels", _cpu.kernel_sets())
@pytest.mark.parametrize("size", [2, 3])
def test_sums_are_the_same_bits_on_every_rank(size: int, kernels: str, threads: int) -> None:
    shapes = [(1, 48), (5, 48), (2, 1), (1, 4096), (200, 48), (3, 577), (7, 576), (1, 17)]  # 200 rows take several exchanges

    def work(group: SharedGroup) -> list[torch.Tensor]:
        ops = CpuOps(torch.float32, threads, kernels, group=group)
        return [ops.all_reduce(rows_of(group.rank, *shape)) for shape in shapes]

    for found in on_ranks(size, work):
        for sums, shape in zip(found, shapes, strict=True):
            assert torch.equal(sums, total(size, *shape)), shape


def test_many_exchanges_of_changing_sizes_do_not_overtake_each_other() -> None:
    draws = torch.randint(1, 60, (300,), generator=torch.Generator().manual_seed(0)).tolist()

    def work(group: SharedGroup) -> bool:
        ops = CpuOps(torch.float32, 1, group=group)
        return all(torch.equal(ops.all_reduce(rows_of(group.rank, rows, 32)), total(2, rows, 32)) for rows in draws)

    assert on_ranks(2, work) == [True, True]


def test_rows_wider_than_a_slot_are_refused() -> None:
    def work(group: SharedGroup) -> None:
        with pytest.raises(ValueError, match="wider"):
            CpuOps(torch.float32, 1, group=group).all_reduce(torch.zeros((1, SLOT_FLOATS + 1)))
        with pytest.raises(ValueError, match="wider"):
            group.gather(torch.zeros((1, SLOT_FLOATS + 1)), [SLOT_FLOATS + 1, 1])

    on_ranks(2, work)


@pytest.mark.parametrize("rows", [1, 64, 150])
def test_scores_are_gathered_on_the_first_rank_alone(rows: int) -> None:
    widths = [33, 16, 1]

    def work(group: SharedGroup) -> torch.Tensor | None:
        return group.gather(rows_of(group.rank, rows, widths[group.rank]), widths)

    found = on_ranks(3, work)
    assert torch.equal(found[0], torch.cat([rows_of(rank, rows, width) for rank, width in enumerate(widths)], dim=1))
    assert found[1:] == [None, None]


class _Doubling(Group):
    """A rank whose only peer has the same rows; somewhere else."""

    rank, size = 0, 2

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)

    def gather(self, part: torch.Tensor, widths: object) -> torch.Tensor | None:
        raise NotImplementedError


@pytest.mark.parametrize("threads", [1, 3])
def test_ranks_that_are_elsewhere_are_asked_by_the_program(threads: int) -> None:
    rows = rows_of(0, 5, 48)
    assert torch.equal(CpuOps(torch.float32, threads, group=_Doubling()).all_reduce(rows.clone()), rows * 2)


def test_a_table_that_holds_a_part_gives_zeros_for_the_rest() -> None:
    ops = CpuOps(torch.float32, 2)
    table = torch.randn((20, 48))
    found = ops.embedding(torch.tensor([4, 29, 10, 30, 12]), ops.pack_embedding(table, None), part=(10, 30))
    expected = torch.stack([torch.zeros(48), table[19], table[0], torch.zeros(48), table[2]])
    assert torch.equal(found, expected)
