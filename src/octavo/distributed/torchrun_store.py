"""The store that torchrun's agent keeps for the processes it started, where the engine leaves word of its address."""

from __future__ import annotations

from torch._C._distributed_c10d import TCPStore

_KEY = "octavo/engine"


class TorchrunStore:
    """A connection to it.

    Args:
        host, port: torchrun's ``$MASTER_ADDR`` and ``$MASTER_PORT``.
    """

    def __init__(self, host: str, port: int) -> None:
        self._store = TCPStore(host, port, is_master=False)

    def leave(self, address: str) -> None:
        """Leave the engine's address."""
        self._store.set(_KEY, address)

    def look(self) -> str | None:
        """The address that an engine before this one left, if there was one."""
        return self._store.get(_KEY).decode() if self._store.check([_KEY]) else None

    def wait(self) -> str:
        """The engine's address, waiting for it."""
        return self._store.get(_KEY).decode()
