"""What every process that Octavo starts has in common: it leaves with its parent, and its end can be put in words."""

from __future__ import annotations

import os
import signal


def leave_with_parent() -> None:
    """Wait, in a thread of its own, for the end of standard input, which the parent holds open as long as it lives; then exit at once."""
    # os.read on the descriptor: a buffered reader would hold its lock at interpreter exit.
    while os.read(0, 4096):
        pass
    os._exit(0)


def describe_end(returncode: int) -> str:
    """How a process ended, by ``Popen.returncode``."""
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
