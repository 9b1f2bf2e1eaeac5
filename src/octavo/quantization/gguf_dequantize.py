"""Stored values to dense ones, for every storage type Octavo reads.

The block layouts are ggml's (github.com/ggml-org/ggml, ``ggml-common.h``). A block holds 32 or 256 values as small integers with
one or more scales. All products here are exact in float32 (an 11-bit scale, a 6- or 8-bit sub-scale, a value of at most 8 bits),
so that only the final subtraction or addition rounds, and the results equal ggml's bit for bit whatever the order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from octavo.quantization.gguf import BLOCKS

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_VALUES = 2**15
"""Values decoded at a time. So few fit a core's cache, and torch works on them in the calling thread: its own thread pool costs far more
than it gains on operations this short, above all on a machine that is busy."""
_PIECE_VALUES = 2**19
"""Values that one thread decodes before it takes the next piece."""


def dequantize(data: npt.NDArray[np.uint8], storage: str, out: torch.Tensor) -> None:
    """Decode stored bytes into ``out``, on as many threads as torch is set to use.

    Args:
        data: uint8 [bytes]; read-only memory (a mapped file) is fine.
        storage: one of ``BLOCKS``.
        out: contiguous float tensor of as many values; values are computed in float32 and rounded once to its dtype.
    """
    values, nbytes = BLOCKS[storage]
    blocks, target = data.reshape(-1, nbytes), out.view(-1, values)
    step = _PIECE_VALUES // values
    starts = range(0, len(blocks), step)

    def decode(start: int) -> None:
        _decode_piece(blocks[start : start + step], storage, target[start : start + step])

    workers = min(torch.get_num_threads(), len(starts))
    if workers > 1:
        with ThreadPoolExecutor(workers, "dequantize") as pool:
            list(pool.map(decode, starts))
    else:
        for start in starts:
            decode(start)


def _decode_piece(blocks: npt.NDArray[np.uint8], storage: str, target: torch.Tensor) -> None:
    """Decode blocks [n, bytes] into ``target`` [n, values]."""
    plain = _PLAIN.get(storage)
    if plain == target.dtype:
        target.view(torch.uint8).numpy()[...] = blocks
        return
    step = _CHUNK_VALUES // target.shape[1]
    for start in range(0, len(blocks), step):
        # The copy brings the pages in and gives torch the writable memory it wants.
        chunk = torch.from_numpy(blocks[start : start + step].copy())
        target[start : start + step] = _DECODERS[storage](chunk) if plain is None else chunk.view(plain)


def _half(blocks: torch.Tensor, start: int, count: int = 1) -> torch.Tensor:
    """float32 [n, count] of the half-precision numbers at byte ``start`` of each block."""
    return blocks[:, start : start + 2 * count].contiguous().view(torch.float16).float()


def _bits(packed: torch.Tensor, width: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Split bytes [n, groups, w] into their fields of ``width`` bits, lowest first: [n, groups, 8 / width, w]."""
    n, groups, w = packed.shape
    fields = torch.empty(n, groups, 8 // width, w, dtype=dtype)
    for i in range(8 // width):
        fields[:, :, i] = (packed >> (i * width)) & (2**width - 1)
    return fields


def _fifth_bits(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The highest bits of 32 five-bit values, packed in order in 4 bytes, each shifted to its place: uint8 [n, 2, 16]."""
    packed = blocks[:, start : start + 4]
    bits = torch.stack([(packed >> i) & 1 for i in range(8)], dim=-1)
    return (bits << 4).view(-1, 2, 16)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """Half d; 16 bytes of nibbles (values 0-15 low, 16-31 high): d (q - 8)."""
    values = _bits(blocks[:, None, 2:], 4, torch.float32).view(-1, 32)
    return values.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """Half d, half m; nibbles: d q + m."""
    scales = _half(blocks, 0, 2)
    values = _bits(blocks[:, None, 4:], 4, torch.float32).view(-1, 32)
    return values.mul_(scales[:, :1]).add_(scales[:, 1:])


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    """Half d; 4 bytes of fifth bits; nibbles: d (q - 16)."""
    values = (_bits(blocks[:, None, 6:], 4)[:, 0] | _fifth_bits(blocks, 2)).float().view(-1, 32)
    return values.sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """Half d, half m; fifth bits; nibbles: d q + m."""
    scales = _half(blocks, 0, 2)
    values = (_bits(blocks[:, None, 8:], 4)[:, 0] | _fifth_bits(blocks, 4)).float().view(-1, 32)
    return values.mul_(scales[:, :1]).add_(scales[:, 1:])


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """Half d; 32 signed bytes: d q."""
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """16 bytes of sub-scales (low nibble) and sub-minima (high); 64 bytes of 2-bit values; half d, half dmin."""
    scales = _half(blocks, 80, 2)
    factors = (blocks[:, :16] & 15).float().mul_(scales[:, :1])
    minima = (blocks[:, :16] >> 4).float().mul_(scales[:, 1:])
    values = _bits(blocks[:, 16:80].reshape(-1, 2, 32), 2, torch.float32).view(-1, 16, 16)
    return values.mul_(factors[:, :, None]).sub_(minima[:, :, None]).view(-1, 256)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """32 bytes of third bits; 64 bytes of 2-bit values; 12 bytes of 6-bit sub-scales; half d.

    A value whose third bit is clear is 4 less. Sub-scale i has its low nibble in byte i % 8 (high half for i >= 8) and its
    upper two bits in byte 8 + i % 4; 32 stands for 0.
    """
    low = _bits(blocks[:, None, 96:104], 4).view(-1, 16)
    high = _bits(blocks[:, None, 104:108], 2).view(-1, 16)
    factors = (low | (high << 4)).float().sub_(32).mul_(_half(blocks, 108))
    values = _bits(blocks[:, 32:96].reshape(-1, 2, 32), 2)
    values |= _bits(blocks[:, None, :32], 1).view(-1, 2, 4, 32) << 2
    return values.float().sub_(4).view(-1, 16, 16).mul_(factors[:, :, None]).view(-1, 256)


def _six_bit_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 8 sub-scales and 8 sub-minima that Q4_K and Q5_K pack in 12 bytes: float32 [n, 8] each.

    Bytes 0-3 hold sub-scales 0-3 in their low six bits, bytes 4-7 sub-minima 0-3; bytes 8-11 the low nibbles of sub-scales
    (low) and sub-minima (high) 4-7, whose upper two bits are the upper two of bytes 0-3 and 4-7.
    """
    first, second, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([first & 63, (rest & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (rest >> 4) | ((second >> 2) & 48)], dim=1)
    return scales.float(), minima.float()


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """Half d, half dmin; 12 bytes of 6-bit sub-scales and sub-minima; 128 bytes of nibbles: d s q - dmin m."""
    scales = _half(blocks, 0, 2)
    factors, minima = _six_bit_scales(blocks[:, 4:16])
    values = _bits(blocks[:, 16:].reshape(-1, 4, 32), 4, torch.float32).view(-1, 8, 32)
    values.mul_(factors.mul_(scales[:, :1])[:, :, None]).sub_(minima.mul_(scales[:, 1:])[:, :, None])
    return values.view(-1, 256)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles."""
    scales = _half(blocks, 0, 2)
    factors, minima = _six_bit_scales(blocks[:, 4:16])
    values = _bits(blocks[:, 48:].reshape(-1, 4, 32), 4).view(-1, 8, 32)
    values |= _bits(blocks[:, None, 16:48], 1).view(-1, 8, 32) << 4
    dense = values.float()
    dense.mul_(factors.mul_(scales[:, :1])[:, :, None]).sub_(minima.mul_(scales[:, 1:])[:, :, None])
    return dense.view(-1, 256)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """128 bytes of low nibbles, 64 of upper two bits, 16 signed sub-scales, half d: d s (q - 32)."""
    low = _bits(blocks[:, :128].reshape(-1, 2, 64), 4).view(-1, 2, 4, 32)
    high = _bits(blocks[:, 128:192].reshape(-1, 2, 32), 2)
    factors = blocks[:, 192:208].view(torch.int8).float().mul_(_half(blocks, 208))
    values = (low | (high << 4)).float().sub_(32).view(-1, 16, 16)
    return values.mul_(factors[:, :, None]).view(-1, 256)


_DECODERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
