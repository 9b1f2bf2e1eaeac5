"""How kernels follow each other on the GPU.

A decoding step is some four hundred short kernels, and between two of them the GPU pauses for about a microsecond. From Hopper on, a
kernel can be launched before the one before it has ended (programmatic dependent launch): it says with ``gdc_launch_dependents`` that
its successor may start, and waits with ``gdc_wait`` until its predecessor has ended and all that it wrote can be seen. Kernels here do
both first of all, before they read or write anything.
"""

from __future__ import annotations

import functools

import torch

EARLY_ROWS = 16
"""Most rows of steps whose kernels are launched early: with more, programs that wait take room from those that work."""


def early_launch(rows: int = 1) -> bool:
    """Whether a kernel of a step with so many rows is launched early; False where kernels are interpreted."""
    return rows <= EARLY_ROWS and _can_launch_early()


@functools.cache
def _can_launch_early() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
