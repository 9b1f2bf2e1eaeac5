"""The GPU kernels' tests: on a GPU where there is one, else in Triton's interpreter on the CPU.

The interpreter's bfloat16 products are wrong (its numpy has no such type), so there they run in float32 only.
"""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's file is imported: before any test does


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16, torch.float16] if HAS_GPU else [torch.float32])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The compute types that can be tested here."""
    chosen: torch.dtype = request.param
    return chosen
