"""The GPU kernels' tests: on a GPU where there is one, else in Triton's interpreter on the CPU.

The interpreter's bfloat16 products are wrong (its numpy has no such type), so there they run in float32 only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()


def _mend_interpreter() -> None:
    """Mend the interpreter, which ``tests/conftest.py`` asks for.

    Triton 3.6's counts on numpy to turn an array of one value into a number by itself, which numpy 2.4 no longer does.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor


if not HAS_GPU:
    _mend_interpreter()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16, torch.float16] if HAS_GPU else [torch.float32])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The compute types that can be tested here."""
    chosen: torch.dtype = request.param
    return chosen
