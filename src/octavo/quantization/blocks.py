"""GGUF's quantised storage types as ``BlockWeight``: 4 or 8 bits in blocks of 32, without dense values in between.

The block layouts are ggml's; ``gguf_dequantize`` describes each. What becomes of them, and the loss: the RMS error against the
dequantised weight over its RMS. Beside it the type's own error against the weight it encodes (normal weights of deviation 0.02, plainly
rounded; ``tests/unit/quantization/test_blocks.py`` holds the losses to these figures):

====  ===============================  ======  =========
type  as                               loss    own error
====  ===============================  ======  =========
Q4_0  4 bits, zero 8, a view           none
Q4_1  4 bits with minima, a view       none
Q8_0  signed 8 bits, a view            none
Q5_0  8 bits, zero 16                  none
Q5_1  8 bits with minima               none
Q3_K  signed 8 bits                    none    15 %
Q4_K  4 bits with minima               0.06 %  7.8 %
Q5_K  8 bits with minima               0.07 %  3.8 %
Q6_K  signed 8 bits                    0.38 %  1.9 %
Q2_K  signed 8 bits                    0.50 %  33 %
====  ===============================  ======  =========

Scales are half-precision numbers here, while the K types multiply one by a small integer. The product of a half, which is a multiple
of 2^-24, and an integer is a multiple of 2^-24 too, and those below 2^-13 are halves themselves: products lose nothing to underflow,
and 2^-12 of their size to rounding. Scales that are quotients can fall between the halves below 2^-14; they are rounded up, since a
scale too small clips the largest value and one too large only coarsens the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from octavo.ops.base import QUANT_BLOCK, BlockWeight
from octavo.quantization.gguf import BLOCKS

Bytes = npt.NDArray[np.uint8]
Parts = tuple[npt.NDArray[Any], ...]

_PIECE_BYTES = 2**17
"""Bytes of values made at a time (a row where that is longer): enough to make numpy's calls cheap, few enough for a core's second cache."""
_SMALLEST_HALF = 2.0**-24
_SMALLEST_NORMAL_HALF = 2.0**-14


def block_weight(data: Bytes, storage: str) -> BlockWeight | None:
    """Stored rows as blocks.

    Args:
        data: uint8 [rows, bytes a row], bytes of a row adjacent; read-only memory (a mapped file) is fine.
        storage: one of ``gguf.BLOCKS``.

    Returns:
        None for types that store floats, and where a scale is no finite half-precision number (a K type's product may overflow).
    """
    values, nbytes = BLOCKS[storage]
    if values == 1:
        return None
    blocks = data.reshape(len(data), data.shape[1] // nbytes, nbytes)
    if storage in _REPACKED:
        return _repacked(blocks, *_REPACKED[storage])
    return _viewed(blocks, storage)


def _viewed(blocks: Bytes, storage: str) -> BlockWeight:
    """The types with one half-precision scale (and minimum) a block of 32, which starts the block; [N, K / 32, bytes] each."""
    scales = blocks[:, :, 0:2].view(np.float16)[:, :, 0]
    minima = blocks[:, :, 2:4].view(np.float16)[:, :, 0] if storage.endswith("_1") else None
    values = blocks[:, :, 2 if minima is None else 4 :]
    if storage == "Q8_0":
        return BlockWeight(8, values.view(np.int8), 0, scales)
    if storage in ("Q5_0", "Q5_1"):
        (values,) = _decoded(values, _five_bits, (((QUANT_BLOCK,), np.uint8),))
        return BlockWeight(8, values, 16 if minima is None else 0, scales, minima)
    return BlockWeight(4, values, 8 if minima is None else 0, scales, minima)


def _repacked(blocks: Bytes, bits: int, dtype: type, minima: bool, decode: Callable[[Bytes], Parts]) -> BlockWeight | None:
    """The K types: blocks [N, K / 256, bytes] become eight blocks of 32 each."""
    halves = ((8,), np.float16)
    tails = (((8, QUANT_BLOCK * bits // 8), dtype), halves) + ((halves,) if minima else ())
    rows, row_blocks = blocks.shape[:2]
    values, *factors = (part.reshape(rows, row_blocks * 8, *part.shape[3:]) for part in _decoded(blocks, decode, tails))
    if not all(np.isfinite(part).all() for part in factors):
        return None
    return BlockWeight(bits, values, 0, *factors)


def _decoded(blocks: Bytes, decode: Callable[[Bytes], Parts], tails: tuple[tuple[tuple[int, ...], type], ...]) -> Parts:
    """Decode blocks [N, blocks a row, bytes], some rows at a time, on as many threads as torch is set to use.

    Args:
        decode: from blocks [n, bytes] to one array [n, *shape] for each of ``tails``.
        tails: the shape of one block's part, and its dtype.

    Returns:
        for each of ``tails`` [N, blocks a row, *shape].
    """
    rows, row_blocks, nbytes = blocks.shape
    outs = tuple(np.empty((rows, row_blocks, *shape), dtype) for shape, dtype in tails)
    step = max(1, _PIECE_BYTES // max(1, outs[0][:1].nbytes))

    def work(start: int) -> None:
        piece = slice(start, start + step)
        # A damaged block may overflow or divide by zero: what comes of it is looked at when all is done.
        with np.errstate(all="ignore"):
            parts = decode(blocks[piece].reshape(-1, nbytes))
        for out, part in zip(outs, parts, strict=True):
            out[piece] = part.reshape(out[piece].shape)

    starts = range(0, rows, step)
    workers = min(torch.get_num_threads(), len(starts))
    if workers > 1:
        with ThreadPoolExecutor(workers, "repack") as pool:
            list(pool.map(work, starts))
    else:
        for start in starts:
            work(start)
    return outs


def _halves(blocks: Bytes, start: int, count: int = 1) -> npt.NDArray[np.float32]:
    """float32 [n, count] of the half-precision numbers at byte ``start`` of each block."""
    return np.ascontiguousarray(blocks[:, start : start + 2 * count]).view(np.float16).astype(np.float32)


def _fields(packed: Bytes, width: int) -> Bytes:
    """Split bytes [n, groups, w] into their fields of ``width`` bits, lowest first: [n, groups, 8 / width, w]."""
    n, groups, w = packed.shape
    fields = np.empty((n, groups, 8 // width, w), np.uint8)
    for i in range(8 // width):
        np.bitwise_and(packed >> (i * width), 2**width - 1, out=fields[:, :, i])
    return fields


def _five_bits(blocks: Bytes) -> Parts:
    """4 bytes of fifth bits in order, 16 bytes of nibbles (values 0-15 low, 16-31 high): values [n, 32]."""
    values = _fields(blocks[:, None, 4:], 4).reshape(-1, QUANT_BLOCK)
    values |= np.unpackbits(np.ascontiguousarray(blocks[:, :4]), axis=1, bitorder="little") << 4
    return (values,)


def _scales_and_minima(blocks: Bytes) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """What Q4_K and Q5_K begin with (half d, half dmin, 12 bytes of 6-bit s and m) as d s and -dmin m: [n, 8] each."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (rest & 15) | ((first >> 2) & 48)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | ((second >> 2) & 48)], axis=1)
    both = _halves(blocks, 0, 2)
    return (scales * both[:, :1]).astype(np.float16), (minima * -both[:, 1:]).astype(np.float16)


def _q4_k(blocks: Bytes) -> Parts:
    """32 bytes hold two blocks, one in the low nibbles and one in the high; each becomes 16 bytes of its own."""
    # Eight bytes at a time: two columns of numbers hold a block's first half, two its second.
    low, high = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0)
    packed = np.ascontiguousarray(blocks[:, 16:]).view(np.uint64).reshape(-1, 4)
    values = np.empty_like(packed)
    for i in range(2):
        first, second = packed[:, i], packed[:, i + 2]
        values[:, i] = (first & low) | ((second & low) << np.uint64(4))
        values[:, i + 2] = ((first & high) >> np.uint64(4)) | (second & high)
    return values.view(np.uint8), *_scales_and_minima(blocks)


def _q5_k(blocks: Bytes) -> Parts:
    """Nibbles as in Q4_K; 32 bytes of fifth bits before them, bit i for block i."""
    values = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    values |= _fields(blocks[:, None, 16:48], 1)[:, 0] << 4
    return values, *_scales_and_minima(blocks)


def _q3_k(blocks: Bytes) -> Parts:
    """d s q with s in -32 .. 31 and q in -4 .. 3: s q is between -124 and 128, so that -s q fits 8 bits and -d is its scale."""
    low = _fields(blocks[:, None, 96:104], 4).reshape(-1, 16)
    high = _fields(blocks[:, None, 104:108], 2).reshape(-1, 16)
    factors = 32 - (low | (high << 4)).view(np.int8)
    values = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2)
    values |= _fields(blocks[:, None, :32], 1).reshape(-1, 2, 4, 32) << 2
    signed = values.view(np.int8).reshape(-1, 16, 16)
    signed -= 4
    signed *= factors[:, :, None]
    return signed, np.repeat(-_halves(blocks, 108).astype(np.float16), 8, axis=1)


def _q6_k(blocks: Bytes) -> Parts:
    """d s q with a signed s for 16 values and q in -32 .. 31. Of a block's two s the larger one over 4 makes the scale: 4 q fits 8 bits,
    so that its 16 values are exact (but for the scale's rounding) and only the other 16 are rounded."""
    values = _fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 2, 4, 32)
    values |= _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2) << 4
    factors = (blocks[:, 192:208].view(np.int8) * _halves(blocks, 208)).reshape(-1, 8, 2)
    larger = np.where(np.abs(factors[:, :, 0]) >= np.abs(factors[:, :, 1]), factors[:, :, 0], factors[:, :, 1])
    scales = _half_scales(larger / 4)
    ratios = _over(factors, scales).reshape(-1, 16, 1)
    signed = values.view(np.int8).reshape(-1, 16, 16)
    signed -= 32
    return _rounded(signed * ratios), scales


def _q2_k(blocks: Bytes) -> Parts:
    """d s q - dmin m with s and m for 16 values and q in 0 .. 3: the largest possible magnitude of a block becomes 127."""
    both = _halves(blocks, 80, 2)
    factors = ((blocks[:, :16] & 15) * both[:, :1]).reshape(-1, 8, 2)
    minima = ((blocks[:, :16] >> 4) * both[:, 1:]).reshape(-1, 8, 2)
    scales = _half_scales(np.maximum(np.abs(minima), np.abs(3 * factors - minima)).max(axis=2) / 127)
    values = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16) * _over(factors, scales).reshape(-1, 16, 1)
    values -= _over(minima, scales).reshape(-1, 16, 1)
    return _rounded(values), scales


def _half_scales(scales: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float16]:
    """Nearest halves; away from zero where halves are too coarse to be near."""
    magnitudes = np.abs(scales)
    up = np.copysign(np.ceil(magnitudes / _SMALLEST_HALF) * _SMALLEST_HALF, scales)
    return np.where(magnitudes < _SMALLEST_NORMAL_HALF, up, scales).astype(np.float16)


def _over(factors: npt.NDArray[np.float32], scales: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """``factors`` [n, 8, 2] over their block's scale [n, 8]; 0 where the scale is 0, as its factors are then."""
    divisors = scales.astype(np.float32)[:, :, None]
    return np.divide(factors, divisors, out=np.zeros_like(factors), where=divisors != 0)


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    np.rint(values, out=values)
    return np.clip(values, -128, 127, out=values).astype(np.int8)


_REPACKED: dict[str, tuple[int, type, bool, Callable[[Bytes], Parts]]] = {
    "Q2_K": (8, np.int8, False, _q2_k),
    "Q3_K": (8, np.int8, False, _q3_k),
    "Q4_K": (4, np.uint8, True, _q4_k),
    "Q5_K": (8, np.uint8, True, _q5_k),
    "Q6_K": (8, np.int8, False, _q6_k),
}
"""For each K type: bits, dtype of values, whether there are minima, and from blocks [n, bytes] to values, scales and minima."""
