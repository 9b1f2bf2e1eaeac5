"""The one reader of ``os.environ``: each variable Octavo honours is a function here, and there are few."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where downloaded models are kept: ``$OCTAVO_CACHE``, else ``$XDG_CACHE_HOME/octavo``, else ``~/.cache/octavo``."""
    if explicit := os.environ.get("OCTAVO_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "octavo"


def log_level() -> str:
    """``$OCTAVO_LOG_LEVEL`` (DEBUG, INFO, WARNING, ERROR); INFO by default."""
    return os.environ.get("OCTAVO_LOG_LEVEL", "INFO").upper()


def api_key() -> str | None:
    """``$OCTAVO_API_KEY``: the key clients must send, where ``--api-key`` is not given."""
    return os.environ.get("OCTAVO_API_KEY") or None


def for_child(**changes: str) -> dict[str, str]:
    """This process's environment with some variables changed, for a program it starts."""
    return os.environ | changes
