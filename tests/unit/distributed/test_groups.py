"""Ranks that share no memory, on hosts or devices: their sums and gathered scores are those of shared memory's group, bit for bit."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from octavo.distributed.process_group import interface_towards

SHAPES = [(1, 48), (5, 48), (2, 1), (200, 48), (3, 577)]
DEVICE, TORCH = "device", "torch"


def rows_of(rank: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(1000 * rank + rows))


def total(ranks: range, rows: int, width: int) -> torch.Tensor:
    """In the ranks' order."""
    found = rows_of(ranks[0], rows, width)
    for rank in ranks[1:]:
        found = found + rows_of(rank, rows, width)
    return found


def be_rank(rank: int, kind: str, meeting: str, size: int, first: int) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Of ``size`` processes, those from ``first`` on are the group."""
    import torch.distributed as dist

    from octavo.distributed.device_group import DeviceGroup
    from octavo.distributed.torch_group import TorchGroup

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    members = range(first, size)
    made = dist.new_group(list(members))
    if rank not in members:
        return [], None

    def broken(error: Exception) -> None:
        raise AssertionError(error)

    group = DeviceGroup(members, made) if kind == DEVICE else TorchGroup(members, made, broken)  # type: ignore[arg-type]
    assert (group.rank, group.size) == (rank - first, len(members))
    sums = [group.all_reduce(rows_of(rank, *shape)) for shape in SHAPES]
    widths = [3 + number for number in range(group.size)]
    return sums, group.gather(rows_of(rank, 4, widths[group.rank]), widths)


@pytest.mark.parametrize("kind", [TORCH, DEVICE])
@pytest.mark.parametrize(("size", "first"), [(3, 1), (3, 0)], ids=["two", "three"])
def test_sums_are_in_the_ranks_order_on_every_rank(tmp_path: Path, size: int, first: int, kind: str) -> None:
    with multiprocessing.get_context("spawn").Pool(size) as pool:
        meeting = str(tmp_path / "meeting")
        found = pool.starmap(be_rank, [(rank, kind, meeting, size, first) for rank in range(size)], chunksize=1)
    members = range(first, size)
    assert size - first == 2 or not torch.equal(total(members, 200, 48), total(members[::-1], 200, 48)), "another order would show"
    for rank in members:
        for sums, shape in zip(found[rank][0], SHAPES, strict=True):
            assert torch.equal(sums, total(members, *shape)), (rank, shape)
        expected = torch.cat([rows_of(other, 4, 3 + number) for number, other in enumerate(members)], dim=1)
        gathered = found[rank][1]
        has_all = rank == first or kind == DEVICE
        assert gathered is not None and torch.equal(gathered, expected) if has_all else gathered is None


def test_the_interface_is_the_one_that_leads_there() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no-such-host.invalid") is None
