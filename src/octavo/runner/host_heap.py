"""The C library's heap while a model loads."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of ``mallopt(3)``."""

_WHILE_LOADING = 512 * 2**10
_AFTERWARDS = 32 * 2**20
"""The most that glibc lets it grow to by itself; the heap's end is given back from twice as much on."""


@contextlib.contextmanager
def temporaries_go_back() -> Iterator[None]:
    """While this lasts, larger blocks of memory are the system's again as soon as they are freed.

    glibc takes blocks of some size from the system and back one by one, but raises that size whenever such a block is freed: by the
    second layer, weights and the temporaries they are made from lie side by side in its heap, where holes stay the process's. A model of
    gigabytes then keeps hundreds of megabytes that nothing uses. With another C library nothing happens.
    """
    library = ctypes.CDLL(None)
    try:
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except AttributeError:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _WHILE_LOADING)
    mallopt(_TRIM_THRESHOLD, _WHILE_LOADING)
    malloc_trim(0)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _AFTERWARDS)
        mallopt(_TRIM_THRESHOLD, 2 * _AFTERWARDS)
        malloc_trim(0)
