"""How kernels follow each other on the GPU.

A decoding step is some four hundred short kernels, and between two of them the GPU pauses for about a microsecond. From Hopper on, a
kernel can be launched before the one before it has ended (programmatic dependent launch): it says with ``gdc_launch_dependents`` that
its successor may start, and waits with ``gdc_wait`` until its predecessor has ended and all that it wrote can be seen. Kernels here do
both first of all, before they read or write anything.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def early_launch() -> bool:
    """Whether this GPU launches kernels early; False where kernels are interpreted."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
