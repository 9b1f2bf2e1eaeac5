"""Between host and device without waiting: a step's small arrays in one copy, and sampled tokens back.

Pinned memory comes from torch's own allocator, which gives a piece out again only when the copies from and to it are done. So each
step takes fresh pieces, and nobody has to know how many steps are in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 64
"""Bytes at which each array of a packed buffer starts: kernels are compiled anew for pointers that are less aligned."""

_TYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


def to_device(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Arrays of int32, int64 or float32 as tensors on the device: views of one buffer, which one copy brings there.

    On a CPU they share the arrays' memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return unpack(pack(arrays, pinned=True).to(device, non_blocking=True), arrays)


def pack(arrays: Sequence[npt.NDArray[Any]], *, pinned: bool) -> torch.Tensor:
    """The arrays' bytes one after the other in a host buffer, uint8 [bytes]."""
    begins, size = _layout(arrays)
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    memory = buffer.numpy()
    for array, begin in zip(arrays, begins, strict=True):
        memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
    return buffer


def unpack(buffer: torch.Tensor, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
    """Views of a packed ``buffer`` with the types and shapes of ``arrays``."""
    begins, _ = _layout(arrays)
    views = []
    for array, begin in zip(arrays, begins, strict=True):
        part = buffer[begin : begin + array.nbytes]
        views.append(part.view(_TYPES[array.dtype.name]).view(array.shape))
    return views


def _layout(arrays: Sequence[npt.NDArray[Any]]) -> tuple[list[int], int]:
    """Where in a packed buffer each array begins, and the buffer's size, in bytes."""
    begins, size = [], 0
    for array in arrays:
        begins.append(size)
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return begins, size


class HostCopy:
    """A tensor of integers on its way from the device.

    Args:
        tensor: on the device; the work that makes it may still be under way there.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._values = tensor
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def ready(self) -> bool:
        """Whether ``wait`` would not wait."""
        return self._done is None or bool(self._done.query())  # type: ignore[no-untyped-call]

    def wait(self) -> list[int]:
        """The values, once they are here."""
        if self._done is not None:
            self._done.synchronize()
        values: list[int] = self._values.tolist()
        return values
