"""A rehearsal without a GPU: the engine runs the GPU's kernels in Triton's interpreter, and a graph is a function that is called again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_CONFTEST = Path(__file__).resolve().parents[3] / "tests/kernels/cuda/conftest.py"


def interpret_kernels() -> None:
    """Have Triton interpret kernels, as the tests do without a GPU; before any file with kernels is imported."""
    spec = importlib.util.spec_from_file_location("cuda_conftest", _CONFTEST)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def rehearse() -> None:
    """From now on an engine on the CPU runs what it would on a GPU."""
    interpret_kernels()
    from octavo.ops.base import Ops
    from octavo.ops.cuda import backend
    from octavo.runner import runner

    def select(device: torch.device, dtype: torch.dtype, activation_bits: int | None = None, **chosen: Any) -> Ops:
        return backend.CudaOps(device, dtype, **chosen)

    def capture(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        result = function()

        def replay() -> None:
            result.copy_(function())

        return result, replay

    setattr(runner, "select_ops", select)  # noqa: B010
    setattr(backend, "cuda_capture", lambda: capture)  # noqa: B010
