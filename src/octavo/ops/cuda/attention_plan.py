"""Which attention work a step has, worked out on the host: splits of decoding sequences, tiles of prompt chunks.

A sequence with one row is decoding: its keys are walked in splits of ``SPLIT`` positions, each a program of its own, whose partial
results a second kernel joins. Splits lie at fixed absolute positions, so the sums of a row do not depend on what else is in the batch.
A sequence with more rows is a chunk: its rows are cut into tiles, each a program a head; the longest come first,
so that no long one is left to run alone at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SPLIT = 256
"""Key positions of a decoding sequence that one program walks: few enough to fill a GPU with one long sequence, and so many that the
partial results (float32, one row a head) are three hundredths of the keys and values read."""

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """Splits to walk, and what to join.

    Attributes:
        sequences: int32 [D], decoding sequences of the batch.
        starts: int32 [D + 1]; the splits of sequence ``d`` of these are items ``starts[d] : starts[d + 1]``.
        owners: int32 [I], the ``d`` of each item.
        splits: int32 [I], which split each is: positions ``split * SPLIT`` on.
    """

    sequences: Int32Array
    starts: Int32Array
    owners: Int32Array
    splits: Int32Array


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """Tiles of chunks.

    Attributes:
        sequences: int32 [N], whose rows each tile has.
        rows: int32 [N], the tile's first row, counted from the sequence's first.
    """

    sequences: Int32Array
    rows: Int32Array


def decode_work(sequences: Int32Array, contexts: npt.NDArray[np.int64], window: int | None) -> DecodeWork:
    """The splits of decoding sequences.

    Args:
        sequences: int32 [D], their places in the batch.
        contexts: int64 [D], tokens of each, at least 1; the row attends from the last.
        window: see ``AttentionSpec``.
    """
    first = np.zeros_like(contexts) if window is None else np.maximum(contexts - window, 0) // SPLIT
    counts = -(-contexts // SPLIT) - first
    starts = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    splits = np.arange(starts[-1]) - starts[owners] + first[owners]
    return DecodeWork(sequences, starts, owners, splits.astype(np.int32))


def prefill_work(sequences: Int32Array, query_lens: npt.NDArray[np.int64], contexts: npt.NDArray[np.int64], tile_rows: int) -> PrefillWork:
    """The tiles of chunks, those that see the most keys first.

    Args:
        sequences: int32 [N], the chunks' places in the batch.
        query_lens, contexts: int64 [N], rows of each and its tokens after the step.
        tile_rows: most rows of a tile.
    """
    counts = -(-query_lens // tile_rows)
    owners = np.repeat(np.arange(len(counts)), counts)
    rows = (np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)) * tile_rows
    order = np.argsort(-(contexts - query_lens)[owners] - rows, kind="stable")
    return PrefillWork(sequences[owners[order]], rows[order].astype(np.int32))


def split_batch(query_lens: Sequence[int]) -> tuple[Int32Array, Int32Array]:
    """Places of the decoding sequences, and of the chunks, in a batch with these numbers of rows."""
    lens = np.asarray(query_lens)
    return np.flatnonzero(lens == 1).astype(np.int32), np.flatnonzero(lens > 1).astype(np.int32)
