"""How weights are held for the matrix products: what ``--quantization`` makes of each stored tensor, and what that takes.

Only ``load_packed`` imports torch, and only when called: the memory plan asks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.errors import ModelLoadError

if TYPE_CHECKING:
    from octavo.ops.base import BlockWeight, Float8Weight
    from octavo.quantization.base import StoredTensor

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a value of each compute type."""

_BLOCK = 32  # ops.base.QUANT_BLOCK, which comes with torch
_ROW_TILE = 32
"""Backends pack rows in groups of so many and fill the last one up."""
_READ_VALUES = 2**22
"""Values that are dense at once while a tensor is quantised (a row where that is longer)."""


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """How a weight's values are held.

    Attributes:
        label: in a user's words.
        bits: of a value; None for a dense weight in the compute type.
        minima: whether each block has a minimum besides its scale.
        scale_a_row: one float32 scale a row, instead of a float16 scale for each 32 values of it.
        quantised: at load, from dense values, instead of being taken as it is stored.
        floats: whether values are float8_e4m3fn, and so are the rows they are multiplied with.
    """

    label: str
    bits: int | None = None
    minima: bool = False
    scale_a_row: bool = False
    quantised: bool = False
    floats: bool = False


DENSE = PackedFormat("dense")
STORED_4 = PackedFormat("4-bit blocks", 4)
STORED_4_MINIMA = PackedFormat("4-bit blocks with minima", 4, minima=True)
STORED_8 = PackedFormat("8-bit blocks", 8)
STORED_8_MINIMA = PackedFormat("8-bit blocks with minima", 8, minima=True)
INT8 = PackedFormat("int8", 8, scale_a_row=True, quantised=True)
INT4 = PackedFormat("int4", 4, quantised=True)
FLOAT8 = PackedFormat("fp8", 8, scale_a_row=True, quantised=True, floats=True)

_AS_STORED = {
    "Q4_0": STORED_4,
    "Q4_1": STORED_4_MINIMA,
    "Q4_K": STORED_4_MINIMA,
    "Q5_0": STORED_8,
    "Q5_1": STORED_8_MINIMA,
    "Q5_K": STORED_8_MINIMA,
    "Q8_0": STORED_8,
    "Q2_K": STORED_8,
    "Q3_K": STORED_8,
    "Q6_K": STORED_8,
}
"""What ``blocks.block_weight`` makes of each storage type; those that are not here are dense."""


def resolve(storage: str, quantization: str, is_head_or_embedding: bool) -> PackedFormat:
    """How a stored weight is held.

    Args:
        storage: ``StoredTensor.format``.
        quantization: the option: auto (as stored), none (dense), int8, int4, fp8.
        is_head_or_embedding: whether it is the vocabulary's table, which int4 leaves at 8 bits and fp8 dense.
    """
    if quantization == "none" or (quantization == "fp8" and is_head_or_embedding):
        return DENSE
    if quantization == "fp8":
        return FLOAT8
    if quantization == "int8" or (quantization == "int4" and is_head_or_embedding):
        return INT8
    if quantization == "int4":
        return INT4
    return _AS_STORED.get(storage, DENSE)


def is_vocabulary(name: str) -> bool:
    """Whether a tensor, by its Hugging Face name, is the token table or the head."""
    return not name.startswith("model.layers.")


def packed_bytes(packed: PackedFormat, rows: int, columns: int, dtype: str) -> int:
    """Bytes that a weight [rows, columns] takes in a backend's layout.

    Args:
        dtype: compute type, that of dense weights.
    """
    rows = _filled(rows, _ROW_TILE)
    if packed.bits is None:
        return rows * columns * DTYPE_BYTES[dtype]
    columns = _filled(columns, _BLOCK)
    values = rows * columns * packed.bits // 8
    if packed.scale_a_row:
        return values + 4 * rows
    return values + rows * columns // _BLOCK * (4 if packed.minima else 2)


def _filled(count: int, group: int) -> int:
    return -(-count // group) * group


def load_packed(stored: StoredTensor, packed: PackedFormat) -> BlockWeight | Float8Weight | None:
    """Read a weight in a format.

    Args:
        stored: a weight [N, K].
        packed: what ``resolve`` said of it.

    Returns:
        None where the caller is to take ``stored.dense``: the format is dense, or this tensor cannot be had in blocks after all (it is
        shifted, or a scale of it is no finite half-precision number).

    Raises:
        ModelLoadError: a value is not finite or too large to be quantised, naming the tensor.
    """
    if packed.bits is None:
        return None
    if packed.floats:
        return _to_be_float8(stored)
    return _quantised(stored, packed) if packed.quantised else stored.blocks()


def _to_be_float8(stored: StoredTensor) -> Float8Weight:
    """The weight in a type that holds it exactly; the backend quantises it where it is to lie."""
    import torch

    from octavo.ops.base import Float8Weight

    dense = stored.dense({"F16": torch.float16, "BF16": torch.bfloat16}.get(stored.format, torch.float32))
    # A sum that is finite has finite terms alone, and takes no memory; one that is not may have overflowed.
    if not dense.sum(dtype=torch.float32).isfinite() and not dense.isfinite().all():
        raise ModelLoadError(f"tensor {stored.name!r} holds values that are not finite; it cannot be quantised.")
    return Float8Weight(dense)


def _quantised(stored: StoredTensor, packed: PackedFormat) -> BlockWeight:
    """Quantise some rows at a time, so that few are ever dense."""
    import numpy as np
    import torch

    from octavo.ops.base import BlockWeight
    from octavo.quantization.quantize import quantize_int4, quantize_int8

    quantize = quantize_int8 if packed.scale_a_row else quantize_int4
    rows, columns = stored.shape
    step = max(1, _READ_VALUES // columns)
    arrays: list[Any] = []
    for start in range(0, rows, step):
        piece = slice(start, min(start + step, rows))
        try:
            part = quantize(stored.dense(torch.float32, piece).cpu())  # dummy ones are made elsewhere
        except ModelLoadError as error:
            raise ModelLoadError(f"tensor {stored.name!r} {error}; it cannot be quantised.") from None
        made = (part.values, part.scales)
        arrays = arrays or [np.empty((rows, *array.shape[1:]), array.dtype) for array in made]
        for array, rest in zip(arrays, made, strict=True):
            array[piece] = rest
    values, scales = arrays
    return BlockWeight(part.bits, values, part.zero, scales)
