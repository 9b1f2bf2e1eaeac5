"""What a sum over ranks takes: through the memory that ranks of one host share, and, over the loopback interface, as ranks on several
hosts do it and by gloo's own all-reduce.

.venv/bin/python benchmarks/parallel/sums.py [--ranks 2] [--rounds 5]

The limit is memory's: each rank writes its rows and reads all ranks', (2 + ranks) times their bytes where the result is written too.
A network's is one way there: each rank has all rows of the others, and none needs to be sent twice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from typing import NoReturn

SHAPES = [(1, 576), (32, 576), (512, 576), (1, 4096), (32, 4096), (512, 4096)]
"""Rows and columns: a decoding sequence, a batch of them, a prompt; a small model and a large one."""
SLOT_FLOATS = 128256
_SECONDS = 0.3


def times(ranks: int, shared: int) -> list[list[float]]:
    """Seconds that a sum of each shape takes, by each of the ways, seen by rank 0."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("fork").Pool(ranks) as pool:
        found: list[list[list[float]]] = pool.starmap(
            be_rank, [(rank, ranks, shared, f"file://{folder}/meeting") for rank in range(ranks)], chunksize=1
        )
    return found[0]


def be_rank(rank: int, ranks: int, shared: int, meeting: str) -> list[list[float]]:
    import torch
    import torch.distributed as dist

    from octavo.distributed.torch_group import TorchGroup
    from octavo.ops.cpu.shared_group import SharedGroup

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    shares = SharedGroup(shared, rank, ranks, SLOT_FLOATS)

    def broken(error: Exception) -> NoReturn:
        raise error

    apart = TorchGroup(range(ranks), dist.new_group(list(range(ranks))), broken)
    found = []
    for shape in SHAPES:
        x = torch.randn(shape)
        found.append(list[float]())
        for work in (shares.all_reduce, apart.all_reduce, dist.all_reduce):
            count = 20
            for _ in range(2):  # the first one finds out how often it can be done in the time
                dist.barrier()
                begin = time.perf_counter()
                for _ in range(count):
                    work(x)
                taken = torch.tensor((time.perf_counter() - begin) / count, dtype=torch.float64)
                dist.broadcast(taken, 0)
                count = max(20, int(_SECONDS / float(taken)))
            found[-1].append(float(taken))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    from octavo.ops.cpu.shared_group import SharedGroup

    runs = []
    for _ in range(args.rounds):
        shared = os.memfd_create("sums")
        os.ftruncate(shared, SharedGroup.bytes(args.ranks, SLOT_FLOATS))
        runs.append(times(args.ranks, shared))
        os.close(shared)
    print("| rows x columns | shared memory, us | between hosts, us | gloo's all-reduce, us | shared memory, GB/s |")
    print("| --- | --- | --- | --- | --- |")
    for index, (rows, columns) in enumerate(SHAPES):
        shared_memory, hosts, gloo = (statistics.median(run[index][way] for run in runs) for way in range(3))
        moved = 4 * rows * columns * args.ranks * (2 + args.ranks)
        cells = [f"{1e6 * shared_memory:.1f}", *(f"{1e6 * other:.0f} ({other / shared_memory:.0f} x)" for other in (hosts, gloo))]
        print(f"| {rows} x {columns} | {' | '.join(cells)} | {moved / shared_memory / 1e9:.1f} |")


if __name__ == "__main__":
    main()
