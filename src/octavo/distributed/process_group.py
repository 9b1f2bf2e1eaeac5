"""The process group of a layout's ranks, where they have more to say to each other than shared memory carries."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

JOIN_TIMEOUT = timedelta(minutes=30)
"""For ranks to come together: they load side by side, and one that dies is noticed by the engine, which ends the others."""

LOOPBACK = "lo"


def join(shared_file: int, rank: int, size: int) -> None:
    """Come together with the other ranks on this host, by gloo.

    Args:
        shared_file: descriptor of a file in memory that all ranks have inherited: they find each other in it, so no port is known outside.
        rank, size: of all ranks of the layout.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
    store = FileStore(f"/proc/self/fd/{shared_file}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=JOIN_TIMEOUT)
