"""A tensor whose bytes lie row after row in a mapped file, whatever the file's format.

Imports torch when values are read, not before: the memory plan asks for names, shapes and formats alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo.quantization.base import StoredTensor
from octavo.quantization.gguf import BLOCKS

if TYPE_CHECKING:
    import torch

    from octavo.ops.base import BlockWeight


_PIECE_BYTES = 4 * 2**20
"""Of the file that are read and decoded at once: what is mapped and what is copied stay small beside a large tensor."""


def _keep() -> None:
    """What was read is not a file's."""


class StoredRows(StoredTensor):
    """Reads and decodes only the rows asked for.

    Args:
        name: its Hugging Face name.
        shape: rows first.
        storage: how its values are stored, one of ``quantization.gguf.BLOCKS``.
        data: uint8 [bytes], a view of the mapped file.
        row_order: int64 [rows], the stored row of each logical one; None where they are the same.
        shift: added to each value.
        let_go: called after each piece that was decoded: the file's memory may go.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        storage: str,
        data: npt.NDArray[np.uint8],
        row_order: npt.NDArray[np.int64] | None = None,
        shift: float = 0.0,
        let_go: Callable[[], None] = _keep,
    ) -> None:
        self.name = name
        self.shape = shape
        self.format = storage
        self._data = data
        self._row_order = row_order
        self._shift = shift
        self._let_go = let_go

    def dense(self, dtype: torch.dtype, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        """See ``StoredTensor.dense``."""
        import torch

        if len(self.shape) < 2:
            return self._vector(dtype, rows)
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        wanted = range(self.shape[0])[slice(None) if rows is None else rows]
        if columns is None:
            out = torch.empty(len(wanted), *self.shape[1:], dtype=dtype)
            self._decode_pieces(wanted, slice(None), out)
            return out
        # Whole blocks are decoded; what of them was not asked for is dropped.
        values, nbytes = BLOCKS[self.format]
        first, last = columns.start // values, -(-columns.stop // values)
        out = torch.empty(len(wanted), (last - first) * values, dtype=dtype)
        self._decode_pieces(wanted, slice(first * nbytes, last * nbytes), out)
        return out[:, columns.start - first * values : columns.stop - first * values].contiguous()

    def _decode_pieces(self, wanted: range, columns: slice, out: torch.Tensor) -> None:
        """Decode rows, of each the bytes ``columns``, some at a time."""
        piece = max(1, _PIECE_BYTES * self.shape[0] // max(1, len(self._data)))
        for begin in range(0, len(wanted), piece):
            rows = wanted[begin : begin + piece]
            last = rows.start + len(rows) * rows.step
            stored = self._rows(slice(rows.start, last if last >= 0 else None, rows.step))
            self._decode(stored[:, columns], out[begin : begin + piece])
            self._let_go()

    def blocks(self, rows: slice | None = None, columns: slice | None = None) -> BlockWeight | None:
        """See ``StoredTensor.blocks``; rows in another order than the file's are copied, others may be views of it."""
        if len(self.shape) != 2 or 0 in self.shape or self._shift:
            return None
        from octavo.quantization.blocks import block_weight

        stored = self._rows(rows)
        if columns is not None:
            values, nbytes = BLOCKS[self.format]
            if columns.start % values or columns.stop % values:
                raise ValueError(f"{self.name}: columns {columns.start} to {columns.stop} cut a block of {values}")
            stored = stored[:, columns.start // values * nbytes : columns.stop // values * nbytes]
        return block_weight(stored, self.format)

    def _rows(self, rows: slice | None) -> npt.NDArray[np.uint8]:
        """The stored bytes of logical rows: uint8 [rows, bytes a row]."""
        stored = self._data.reshape(self.shape[0], -1)
        wanted = slice(None) if rows is None else rows
        return stored[wanted] if self._row_order is None else stored[self._row_order[wanted]]

    def _vector(self, dtype: torch.dtype, rows: slice | None) -> torch.Tensor:
        """A tensor of one dimension is read whole: a block may span what is asked for."""
        import torch

        out = torch.empty(self.shape, dtype=dtype)
        self._decode(self._data, out)
        if self._row_order is not None:
            out = out[torch.from_numpy(self._row_order)]
        return out if rows is None else out[rows].contiguous()

    def _decode(self, stored: npt.NDArray[np.uint8], out: torch.Tensor) -> None:
        import torch

        from octavo.quantization.gguf_dequantize import dequantize

        if not self._shift:
            dequantize(stored.reshape(-1), self.format, out)
            return
        precise = torch.empty(out.shape, dtype=torch.float32)
        dequantize(stored.reshape(-1), self.format, precise)
        out.copy_(precise.add_(self._shift))
