"""How far a download has come, told to whoever asked or drawn on the terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is fetched, the bytes that have arrived and the bytes in all."""

_INTERVAL = 0.2
"""Seconds between two looks at a directory."""


@contextmanager
def showing(what: str, total: int, callback: ProgressCallback | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes that have arrived.

    It tells ``callback`` where there is one, else draws a bar on standard error where that is a terminal, else does nothing.
    """
    if callback is not None:
        yield lambda done: callback(what, min(done, total), total)
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=min(done, total))
    else:
        yield lambda done: None


@contextmanager
def watching(directory: Path, report: Callable[[int], None]) -> Iterator[None]:
    """Report the bytes that arrive under a directory while the body runs: it works whoever writes them, and however."""
    stop = threading.Event()
    before = _bytes_under(directory)

    def watch() -> None:
        while not stop.wait(_INTERVAL):
            report(_bytes_under(directory) - before)

    thread = threading.Thread(target=watch, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bytes_under(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
        except OSError:
            continue  # moved or removed since it was listed
    return total
