"""A checkpoint's file as mapped memory."""

from __future__ import annotations

import mmap


def let_go(mapped: mmap.mmap) -> None:
    """Take the pages that were read of a mapped file off this process.

    They would count as its memory until the system needs them for something else. They stay in the system's cache: what is read again
    comes from there.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
