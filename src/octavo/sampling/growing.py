"""An integer array that grows at its end in amortised constant time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class GrowingArray:
    """int64 values in one block of memory.

    Args:
        values: the first ones; copied.
    """

    __slots__ = ("_length", "_memory")

    def __init__(self, values: npt.ArrayLike) -> None:
        start = np.asarray(values, dtype=np.int64)
        self._length = len(start)
        self._memory = np.empty(max(16, self._length + self._length // 4), dtype=np.int64)
        self._memory[: self._length] = start

    def __len__(self) -> int:
        return self._length

    def append(self, value: int) -> None:
        if self._length == len(self._memory):
            grown = np.empty(2 * self._length, dtype=np.int64)
            grown[: self._length] = self._memory
            self._memory = grown
        self._memory[self._length] = value
        self._length += 1

    @property
    def view(self) -> npt.NDArray[np.int64]:
        """The values, int64; a view that is out of date after the next ``append``."""
        return self._memory[: self._length]
