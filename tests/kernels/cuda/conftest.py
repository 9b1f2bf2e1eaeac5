"""The GPU kernels' tests: on a GPU where there is one, else in Triton's interpreter on the CPU.

In the interpreter mended by ``tests/support/triton_interpreter.py``, which has bfloat16 too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

HAS_GPU = torch.cuda.is_available()


if not HAS_GPU:
    from triton_interpreter import mend

    mend()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The compute types."""
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture(autouse=True)
def captures(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph for want of a GPU: calls what it would have recorded."""
    from octavo.ops.cuda import backend

    def called_again(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        result = function()

        def replay() -> None:
            result.copy_(function())

        return result, replay

    if device.type != "cuda":
        monkeypatch.setattr(backend, "cuda_capture", lambda: called_again)
