"""``python -m vllm.entrypoints.openai.api_server``: ``octavo serve``."""

from __future__ import annotations

import sys

from octavo.entrypoints.api_server import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
