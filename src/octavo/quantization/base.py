"""Weights as they are stored, and where they come from.

A layer asks a ``WeightSource`` for its tensors by their Hugging Face names and hands them to the backend, which packs them.
Models know nothing of files or formats. Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from octavo.ops.base import BlockWeight


class StoredTensor(ABC):
    """One tensor of a checkpoint, read when asked for.

    Attributes:
        name: its Hugging Face name.
        shape: its logical shape (rows first, as in ``torch.nn.Linear.weight``: [out_features, in_features]).
        format: how it is stored: ``F32``, ``F16``, ``BF16``, or a GGUF type such as ``Q4_1``.
    """

    name: str
    shape: tuple[int, ...]
    format: str

    @abstractmethod
    def dense(self, dtype: torch.dtype, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        """The values as a contiguous tensor, read and dequantised now; on the CPU, unless they are dummies made on another device.

        Args:
            dtype: of the result.
            rows: only these rows of the first dimension (all when None).
            columns: only this run of the second dimension (all when None).
        """

    def blocks(self, rows: slice | None = None, columns: slice | None = None) -> BlockWeight | None:
        """The values in their stored precision, or None where they are stored dense (or cannot be had without decoding them).

        Args:
            rows: only these rows (all when None).
            columns: only this run of columns (all when None), which starts and ends with a block.
        """
        return None


class WeightSource(ABC):
    """A checkpoint's tensors under Hugging Face names and in Hugging Face layout, whatever file they come from.

    Attributes:
        quantization: what ``--quantization`` asks of its matrices; ``quantization.formats`` says what that means.
    """

    quantization = "auto"

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def __getitem__(self, name: str) -> StoredTensor:
        """Raises ModelLoadError naming a tensor that the checkpoint lacks."""

    @abstractmethod
    def names(self) -> list[str]: ...

    def let_go(self) -> None:  # noqa: B027 (what is made when asked for holds nothing)
        """Give up memory that holds what was read so far; it can be read again."""
