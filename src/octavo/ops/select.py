"""Which backend runs on a device."""

from __future__ import annotations

import torch

from octavo.ops.base import Ops


def select_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """The kernels for a device and a compute type. The reference serves every device.

    Args:
        device: where weights and activations live.
        dtype: float32, bfloat16 or float16.
    """
    from octavo.ops.reference import ReferenceOps

    return ReferenceOps(device, dtype)
