"""Ranks whose devices sample, and late, as GPUs do, on a CPU: each is a process that computes with plain torch, and they speak over gloo.

As a program this file is such a rank; ``install`` has an engine start those, and run alone on such a device.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from late_device import LateRunner, SamplingOps

from octavo.runner.device import CudaDevice


class SamplingDevice(CudaDevice):
    """All is as on GPUs but that there is none."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def free_bytes(self) -> int:
        return 2**33

    def free_for(self, first: int, count: int) -> int:
        return 2**33

    def allocate_pool(self, num_blocks: int, block_bytes: int) -> torch.Tensor:
        return torch.zeros((num_blocks, block_bytes), dtype=torch.uint8)


def select_ops(device: torch.device, dtype: torch.dtype, activation_bits: Any, *, group: Any, **_: Any) -> SamplingOps:
    return SamplingOps(device, dtype, group)


def select_device(options: Any, number: int | None = 0, count: int = 1) -> SamplingDevice:
    return SamplingDevice()


def install(patch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen

    def start(command: list[str], **keywords: Any) -> Any:
        assert command[-1] == "octavo.executor.worker"
        return popen([sys.executable, __file__], **keywords)

    patch.setattr("octavo.executor.local_ranks.subprocess.Popen", start)
    patch.setattr("octavo.engine.core.select_device", select_device)
    patch.setattr("octavo.runner.runner.select_ops", select_ops)


if __name__ == "__main__":
    import octavo.runner.device
    import octavo.runner.runner
    from octavo.executor import worker

    octavo.runner.device.select_device = select_device
    octavo.runner.runner.select_ops = select_ops
    octavo.runner.runner.Runner = LateRunner  # type: ignore[misc]
    worker.main()
