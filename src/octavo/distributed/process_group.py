"""The process group of a layout's ranks, gloo's or NCCL's, where they have more to say to each other than shared memory carries."""

from __future__ import annotations

import os
import socket
import struct
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore

JOIN_TIMEOUT = timedelta(minutes=30)
"""For ranks to come together: they load side by side, and one that dies is noticed by the engine, which ends the others."""

_SIOCGIFADDR = 0x8915


def open_meeting(address: str) -> tuple[TCPStore, str]:
    """Open the store in which ranks on several hosts find each other, on a free port.

    Args:
        address: of this host, by which the others reach it.

    Returns:
        the store, which lasts as long as it is kept, and HOST:PORT of it.
    """
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
    return store, f"{address}:{store.port}"


def join_here(shared_file: int, rank: int, size: int, device: torch.device) -> None:
    """Come together with the other ranks, all on this host.

    Args:
        shared_file: descriptor of a file in memory that all ranks have inherited: they find each other in it, so no port is known outside.
        rank, size: of all ranks of the layout.
        device: where what they exchange is.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    _join(FileStore(f"/proc/self/fd/{shared_file}", size), rank, size, device)


def join_at(meeting: str, rank: int, size: int, device: torch.device) -> None:
    """Come together with the other ranks, on several hosts.

    Args:
        meeting: HOST:PORT of the store.
        rank, size: of all ranks of the layout.
        device: where what they exchange is.
    """
    host, _, port = meeting.rpartition(":")
    if interface := interface_towards(host):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    _join(TCPStore(host, int(port), is_master=False), rank, size, device)


def _join(store: Store, rank: int, size: int, device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=JOIN_TIMEOUT)


def interface_towards(host: str) -> str | None:
    """The network interface by which this host reaches another one (or itself), where it has an IPv4 address; None if unknown.

    gloo would take the one that the host's own name stands for, which need not be reachable from elsewhere.
    """
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: it only chooses the way
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                except OSError:
                    continue  # it has no IPv4 address
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    except OSError:
        pass
    return None
