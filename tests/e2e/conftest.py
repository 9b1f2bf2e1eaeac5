"""One server with the embedded default, shared by the tests that do not need flags of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded default with a 256 MB pool."""
    flags = ("--kv-cache-memory-bytes", "256M", "--max-model-len", "2048", "--served-model-name", "smollm2", "default")
    with serving(tmp_path_factory.mktemp("server"), *flags) as running:
        yield running
