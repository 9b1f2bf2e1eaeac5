"""What the GPU is, and how kernels follow each other on it.

A decoding step is some four hundred short kernels, and between two of them the GPU pauses for about a microsecond. From Hopper on, a
kernel can be launched before the one before it has ended (programmatic dependent launch): it says with ``gdc_launch_dependents`` that
its successor may start, and waits with ``gdc_wait`` until its predecessor has ended and all that it wrote can be seen. Kernels here do
both first of all, before they read or write anything.
"""

from __future__ import annotations

import functools

import torch

EARLY_CAPABILITY = (9, 0)
"""Compute capability from which on kernels can be launched early."""

EARLY_ROWS = 16
"""Most rows of steps whose kernels are launched early: with more, programs that wait take room from those that work."""


@functools.cache
def capability() -> tuple[int, int]:
    """The GPU's compute capability: 8.0 Ampere (A100), 8.6 its smaller ones, 8.9 Ada, 9.0 Hopper, 10.0 Blackwell, 12.0 its smaller ones.

    Where there is no GPU: Hopper's, for which kernels are cut unless they say otherwise.
    """
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)


def has_large_tiles() -> bool:
    """Whether a program may have 227 KiB of shared memory, out of which tensor cores multiply. Others have 163 (8.0) or 99, and multiply
    out of registers, which large tiles run out of."""
    return capability()[0] in (9, 10)


def early_launch(rows: int = 1) -> bool:
    """Whether a kernel of a step with so many rows is launched early; False where kernels are interpreted."""
    return rows <= EARLY_ROWS and _can_launch_early()


@functools.cache
def _can_launch_early() -> bool:
    return torch.cuda.is_available() and capability() >= EARLY_CAPABILITY
