"""Logging: one logger a module under the name ``octavo``, one short line format, on standard error."""

from __future__ import annotations

import logging
import sys

from octavo import env


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; ``name`` is the module's ``__name__``."""
    return logging.getLogger(name)


def configure(process: str) -> None:
    """Send Octavo's log lines to standard error, marked with the process they come from.

    Args:
        process: a short name such as ``server`` or ``engine``.
    """
    root = logging.getLogger("octavo")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s {process}: %(message)s", "%H:%M:%S"))
    root.handlers = [handler]
    root.setLevel(env.log_level())
    root.propagate = False
