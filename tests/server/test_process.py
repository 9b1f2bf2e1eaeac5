"""The server as a process: what it imports, where it listens, how it fails."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.cli.serve import address, listen
from octavo.config import ServerOptions
from octavo.errors import OctavoError


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, check=False)


def test_server_process_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, octavo.server.http_server; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert run("-c", code).stdout.strip() == "[]"


def test_model_that_cannot_be_loaded_ends_the_process_with_one_clear_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.gguf")
    ended = run("-m", "octavo.entrypoints.api_server", "--model", missing, "--port", "0")
    assert ended.returncode == 1
    assert ended.stdout.startswith("octavo: listening on http://127.0.0.1:") and "ready" not in ended.stdout
    (told,) = ended.stderr.strip().splitlines()
    assert missing in told and "Traceback" not in told


def test_wrong_flag_is_told_before_anything_is_bound() -> None:
    ended = run("-m", "octavo.entrypoints.api_server", "--prot", "1")
    assert ended.returncode == 2 and "--port" in ended.stderr and not ended.stdout


def test_port_0_picks_a_free_one_and_the_url_names_it() -> None:
    with listen(ServerOptions(port=0)) as listener:
        assert address(listener, ServerOptions(port=0)) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert listener.getsockname()[1] != 0


def test_taken_port_is_an_error_that_says_what_to_do() -> None:
    says = r"Cannot listen on 127\.0\.0\.1:\d+: Address already in use; another"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OctavoError, match=says):
        listen(ServerOptions(port=taken.getsockname()[1]))


def test_unknown_host_is_a_clear_error() -> None:
    with pytest.raises(OctavoError, match=r"Cannot listen on no\.such\.host\.invalid:0"):
        listen(ServerOptions(host="no.such.host.invalid", port=0))


def test_dead_server_s_socket_file_is_replaced_and_a_live_one_s_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "octavo.sock")
    options = ServerOptions(uds=path)
    listen(options).close()
    with listen(options) as listener:
        assert address(listener, options) == f"unix:{path}"
        with pytest.raises(OctavoError, match="in use"):
            listen(options)


def test_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("kept")
    with pytest.raises(OctavoError, match="in use"):
        listen(ServerOptions(uds=str(path)))
    assert path.read_text() == "kept"
