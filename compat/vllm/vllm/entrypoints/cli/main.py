"""The command ``vllm``: ``octavo``, whose ``serve``, ``chat`` and ``bench`` have vLLM's names."""

from __future__ import annotations

import sys

from octavo.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
