"""Products of a few rows with K split over programs: how many splits there are, and how their sums come together.

    each program: sums float32 [32, ROWS] -> partials [splits, tiles, 32, ROWS]
    the last of a tile's programs to count itself: partials, split by split -> sums

Which program is the last is chance; the order of the additions is not. How K is split follows from the weight's shape alone, so a row's
result does not depend on how many rows there are.
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl

from octavo.ops.cuda.weights import MOST_ROW_TILES

ROW_TILE = 32
"""Most of x's rows that a program computes at once. With 64, Triton gives each warp half of them and has both unpack the whole weight."""

MOST_ROWS = ROW_TILE * MOST_ROW_TILES
"""Most rows there are counters for."""

_PROGRAMS = 792
"""Wanted in a launch: six of two warps for each processor of an H100."""
_LEAST_SPLIT = 512
"""Columns of a split, at the least."""
_MOST_SPLITS = 16


def split_groups(programs: int, groups: int, columns: int) -> tuple[int, int]:
    """How K is split: (splits, groups of each but the last, which may have fewer).

    Args:
        programs: that there are without splitting.
        groups: of ``columns`` columns each.
    """
    splits = max(1, min(-(-_PROGRAMS // programs), groups * columns // _LEAST_SPLIT, _MOST_SPLITS))
    length = -(-groups // splits)
    return -(-groups // length), length


def row_tile(rows: int) -> int:
    """x's rows in a program, for so many in all."""
    return next(size for size in (8, 16, ROW_TILE) if size >= min(rows, ROW_TILE))


@triton.jit
def prefetch(pointer, size):
    """Ask for the first of ``size`` bytes to be brought to the second-level cache: weights need not wait for the kernel before.

    8 KiB at the most: that of all programs on the GPU together must stay there until it is used. Must not be interpreted.
    """
    address = (pointer + tl.minimum(tl.arange(0, 64) * 128, size - 1)).to(tl.int64)
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def keep_partials(partials_ptr, sums, split, tile, tiles):
    """Store a program's sums [32, ROWS] of a tile; returns where those of split 0 are."""
    rows: tl.constexpr = sums.shape[1]
    inside = tl.arange(0, 32)[:, None] * rows + tl.arange(0, rows)[None, :]
    place = partials_ptr + tile.to(tl.int64) * (32 * rows) + inside
    tl.store(place + split.to(tl.int64) * tiles * (32 * rows), sums)
    return place


@triton.jit
def is_last(counters_ptr, program, splits):
    """Whether the other splits' sums are stored too; to be asked once, after a program's own are. Sets the counter to 0 again if so."""
    tl.debug_barrier()  # all threads' stores come before the count
    last = tl.atomic_add(counters_ptr + program, 1, sem="acq_rel") == splits - 1
    if last:
        tl.store(counters_ptr + program, 0)
    return last


@triton.jit
def add_partials(place, splits, tiles):
    """The splits' sums of a tile, added up in order; read past the first-level cache, which does not see other programs' stores."""
    stride = tiles.to(tl.int64) * (place.shape[0] * place.shape[1])
    sums = tl.load(place, cache_modifier=".cg")
    for _ in range(1, splits):
        place += stride
        sums += tl.load(place, cache_modifier=".cg")
    return sums
