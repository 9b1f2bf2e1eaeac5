"""``python -m octavo.entrypoints.api_server``: the same as ``octavo serve``, under the name that vLLM's users know."""

from __future__ import annotations

import sys

from octavo.cli import main as cli


def main(argv: list[str] | None = None) -> int:
    """Read the flags and serve.

    Args:
        argv: the flags; the process's own when None.

    Returns:
        The exit code, as ``octavo serve`` has it.
    """
    return cli.main(["serve", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
