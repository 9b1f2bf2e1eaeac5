"""What all tests share: they run beside each other, so each computes on one thread and waits for it asleep."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before any test module loads torch, whose OpenMP reads these once. Servers that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

# Triton's own library reads this when it is imported, which transformers does in tests far from the kernels'.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Also after a test whose engine runs in this process, which sets torch's threads: torch's sums differ with them in the last bits."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
