"""Finding a library that attends in place of Octavo's kernels."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from octavo.errors import ConfigError

_SOURCES = {
    "fa3": "FlashAttention 3, built from hopper/ of https://github.com/Dao-AILab/flash-attention",
    "flashinfer": "FlashInfer (pip install flashinfer-python)",
}


def library(option: str, module: str, device: torch.device, oldest: int, newest: int | None = None) -> ModuleType:
    """The module of ``--attention-backend``'s ``option``.

    Args:
        oldest, newest: major compute capabilities of the GPUs it runs on: 8 for Ampere, 9 for Hopper.

    Raises:
        ConfigError: it cannot be imported, or not on this GPU.
    """
    if device.type == "cuda":
        found, _ = torch.cuda.get_device_capability(device)
        if not oldest <= found <= (newest or found):
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f"attention_backend={option} does not run on {name} (compute capability {found}.x); triton does.")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"attention_backend={option} needs {_SOURCES[option]}: {error}. Octavo's own kernels are triton.") from error
