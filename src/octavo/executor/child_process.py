"""What every process that Octavo starts has in common: it shows that it lives, leaves with its parent, and its end can be put in words."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

ALIVE_SECONDS = 1.0
"""Between two signs of life."""

SILENCE_SECONDS = 15.0
"""Who has shown no sign of life for so long hangs, is stopped, or is cut off."""

_AWAY_SECONDS = 5.0

_PR_SET_PDEATHSIG = 1


def starts_from_main_thread() -> bool:
    """Whether a process that is started now has a parent as long as this process lives: Linux counts threads as parents."""
    return threading.current_thread() is threading.main_thread()


def leave_with_parent(from_main_thread: bool) -> None:
    """From now on, exit at once when the parent has: when standard input ends, which it holds open as long as it lives.

    A process that is stopped cannot do that: the system kills it, on Linux.

    Args:
        from_main_thread: what ``starts_from_main_thread`` told the parent; if not so, the system is not asked to.
    """
    if from_main_thread:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_leave_at_end_of_input, daemon=True).start()


def _leave_at_end_of_input() -> None:
    # os.read on the descriptor: a buffered reader would hold its lock at interpreter exit.
    while os.read(0, 4096):
        pass
    os._exit(0)


def show_life(say: Callable[[], None]) -> None:
    """Call ``say`` again and again in a thread of its own: kernels release the interpreter, a stopped process does not."""

    def repeat() -> None:
        forever = threading.Event()
        while True:
            say()
            forever.wait(ALIVE_SECONDS)

    threading.Thread(target=repeat, daemon=True).start()


class Watch:
    """Notices who of several shows no sign of life.

    Time in which this process did not look is not held against them: when it was itself stopped, their signs are still on their way.

    Args:
        names: of those that are to show signs.
    """

    def __init__(self, names: Iterable[int]) -> None:
        self._looked = time.monotonic()
        self._seen = dict.fromkeys(names, self._looked)

    def saw(self, name: int) -> None:
        """A sign has come."""
        self._seen[name] = time.monotonic()

    def silent(self) -> int | None:
        """One that has shown none for ``SILENCE_SECONDS``; to be called about once a second."""
        now = time.monotonic()
        away, self._looked = now - self._looked, now
        if away > _AWAY_SECONDS:
            self._seen = dict.fromkeys(self._seen, now)
        return next((name for name, seen in self._seen.items() if now - seen > SILENCE_SECONDS), None)


def describe_end(returncode: int) -> str:
    """How a process ended, by ``Popen.returncode``."""
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
