"""Working on some rows of the logits at a time.

Every step of sampling treats its rows in chunks whose scratch memory is bounded: that keeps a row's passes in the CPU's
cache and the sampler out of the memory plan's way. No result depends on how rows are cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

from octavo.errors import InvalidLogitsError

CPU_CHUNK_ELEMENTS = 2**18
"""Logits a thread works on at a time on a CPU: 1 MiB of float32, about what its level-2 cache holds."""
GPU_CHUNK_ELEMENTS = 2**24


def row_chunks(rows: Sequence[int], logits: torch.Tensor) -> Iterator[list[int]]:
    """Cut row numbers of ``logits`` [R, V] into lists of at least one, short enough for bounded scratch memory."""
    elements = CPU_CHUNK_ELEMENTS * torch.get_num_threads() if logits.is_cpu else GPU_CHUNK_ELEMENTS
    size = max(1, elements // logits.shape[1])
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def take_rows(logits: torch.Tensor, rows: Sequence[int], multiple: int) -> torch.Tensor:
    """Rows [len(rows), V'] of ``logits`` [R, V], padded with -inf to a V' that is a multiple of ``multiple``.

    Adjacent rows that need no padding come as a view: do not write to the result.
    """
    first, last = rows[0], rows[-1]
    if last - first == len(rows) - 1 and list(rows) == list(range(first, last + 1)):
        taken = logits[first : last + 1]
    else:
        taken = logits[torch.tensor(rows, device=logits.device)]
    padding = -logits.shape[1] % multiple
    return functional.pad(taken, (0, padding), value=float("-inf")) if padding else taken


def argmax(logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
    """The most likely token of each of ``rows`` of ``logits`` [R, V]; the lowest id among equals.

    On a CPU this is numpy's argmax, whose vector code is ten times as fast as torch's.

    Raises:
        InvalidLogitsError: a row whose largest logit is not finite (it holds NaN or +inf, or nothing but -inf).
    """
    everything = len(rows) == logits.shape[0]
    if logits.is_cpu:
        array = logits.numpy()
        tokens: list[int] = array.argmax(axis=1).tolist() if everything else [int(array[row].argmax()) for row in rows]
        best = torch.from_numpy(array[list(rows), tokens])
    else:
        best, indices = (logits if everything else take_rows(logits, rows, 1)).max(dim=1)
        tokens = indices.tolist()
    check_finite(best, rows)
    return tokens


def check_finite(best: torch.Tensor, rows: Sequence[int]) -> None:
    """Refuse rows whose largest logit ``best`` [len(rows)] is not a finite number.

    Raises:
        InvalidLogitsError: naming the rows.
    """
    finite = torch.isfinite(best)
    if not finite.all():
        wrong = [row for row, good in zip(rows, finite.tolist(), strict=True) if not good]
        raise InvalidLogitsError(wrong)
