"""Finding a model's files: local paths, the hub (a small server that speaks its protocol), and what is said when nothing is found."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ConfigError, ModelLoadError
from octavo.models.hub import ModelFiles, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {
    "lab/tiny": {
        "config.json": b"{}",
        "model.safetensors": b"weights" * 1000,
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"a pickle",
        "modeling_tiny.py": b"code",
        "README.md": b"read me",
    },
    "lab/one-gguf": {"tiny.Q4_0.gguf": b"GGUF", "README.md": b"read me"},
    "lab/many-ggufs": {"tiny.Q4_0.gguf": b"GGUF4", "tiny.Q8_0.gguf": b"GGUF8"},
    "lab/pickles": {"config.json": b"{}", "pytorch_model.bin": b"a pickle"},
}


class HubHandler(BaseHTTPRequestHandler):
    """What huggingface_hub asks when it downloads a repository."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.send_api("/".join(parts[2:4]), parts[4:])
            return
        files = REPOSITORIES.get("/".join(parts[:2]), {})
        if parts[2:3] == ["resolve"] and "/".join(parts[4:]) in files:
            content = files["/".join(parts[4:])]
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "Content-Type": "application/octet-stream",
            }
            self.send(200, content, headers, with_body)
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)

    def send_api(self, repository: str, rest: list[str]) -> None:
        files = REPOSITORIES.get(repository)
        if files is None:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"]:
            listed = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files.items()]
            self.send_json(listed)
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self.send_json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "downloads": 0, "tags": []})

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    HubHandler.asked.clear()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from octavo.errors import OctavoError
from octavo.models.hub import resolve
told = []
try:
    files = resolve(sys.argv[1], **json.loads(sys.argv[2]), progress=lambda *numbers: told.append(numbers))
    answer = {"kind": files.kind, "name": files.name, "path": str(files.path)}
except OctavoError as error:
    answer = {"error": str(error), "type": type(error).__name__}
loaded = [name for name in ("torch", "huggingface_hub") if name in sys.modules]
print(json.dumps(answer | {"told": told, "loaded": loaded}))
"""


def resolve_apart(home: Path, endpoint: str, model: str, **options: Any) -> dict[str, Any]:
    """``resolve`` in a process of its own: huggingface_hub reads its settings once, when it is imported."""
    changes = {"HF_HOME": str(home / "hf"), "OCTAVO_CACHE": str(home / "octavo"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, model, json.dumps(options)],
        env={**os.environ, **changes, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout)


def unreachable() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_directory_with_a_configuration_is_hugging_faces(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == ModelFiles(str(tmp_path), "hf", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "x.gguf").write_bytes(b"")
    assert resolve(str(tmp_path)).kind == "hf"


def test_a_gguf_file_is_found_by_itself_and_in_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    assert resolve(str(path)) == ModelFiles(str(path), "gguf", path)
    assert resolve(str(tmp_path)) == ModelFiles(str(tmp_path), "gguf", path)
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)).kind == "gguf"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ((), "neither config.json nor"),
        (("a.gguf", "b.gguf"), r"2 GGUF files \(a\.gguf, b\.gguf\)"),
        (("model.bin",), "neither config.json nor"),
    ],
)
def test_directories_without_one_model_are_refused(tmp_path: Path, names: tuple[str, ...], what: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelLoadError, match=what):
        resolve(str(tmp_path))


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "../a/b", "missing.gguf", "a/b/c", "", "a b/c", "name/repo:file.bin"])
def test_what_can_be_no_repository_is_refused_without_the_network(model: str) -> None:
    with pytest.raises(ModelLoadError, match=r"no such file or directory|holds neither"):
        resolve(model)


@pytest.mark.parametrize("model", ["~nobody-has-this-name/model", "x" * 5000])
def test_what_cannot_be_asked_for_is_refused(model: str) -> None:
    with pytest.raises(ModelLoadError, match="cannot be a path"):
        resolve(model)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="this is another file"):
        resolve(str(tmp_path / "model.bin"))


def test_a_revision_of_what_is_no_repository_is_refused(tmp_path: Path) -> None:
    for model in (None, str(tmp_path)):
        with pytest.raises(ConfigError, match="revision='v1'"):
            resolve(model, revision="v1")


def test_a_repository_is_fetched_once_without_pickles_and_code(tmp_path: Path, hub: str) -> None:
    first = resolve_apart(tmp_path, hub, "lab/tiny")
    assert (first["kind"], first["name"]) == ("hf", "lab/tiny")
    fetched = sorted(path.name for path in Path(first["path"]).iterdir())
    assert fetched == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (Path(first["path"]) / "model.safetensors").read_bytes() == REPOSITORIES["lab/tiny"]["model.safetensors"]
    assert first["told"][-1] == ["lab/tiny", 7004, 7004]
    assert not [path for path in HubHandler.asked if path.endswith((".bin", ".py"))]
    HubHandler.asked.clear()
    again = resolve_apart(tmp_path, hub, "lab/tiny")
    assert (again["path"], again["loaded"], HubHandler.asked) == (first["path"], [], [])
    refreshed = resolve_apart(tmp_path, hub, "lab/tiny", refresh=True)
    assert refreshed["path"] == first["path"]
    assert HubHandler.asked


def test_a_fetched_repository_that_lost_a_file_is_fetched_again(tmp_path: Path, hub: str) -> None:
    path = Path(resolve_apart(tmp_path, hub, "lab/tiny")["path"]) / "tokenizer.json"
    path.resolve().unlink()
    path.unlink()
    resolve_apart(tmp_path, hub, "lab/tiny")
    assert path.exists()


def test_gguf_files_of_repositories(tmp_path: Path, hub: str) -> None:
    only = resolve_apart(tmp_path, hub, "lab/one-gguf")
    assert (only["kind"], Path(only["path"]).read_bytes()) == ("gguf", b"GGUF")
    named = resolve_apart(tmp_path, hub, "lab/many-ggufs:tiny.Q8_0.gguf", revision="main")
    assert (named["kind"], Path(named["path"]).read_bytes()) == ("gguf", b"GGUF8")
    assert resolve_apart(tmp_path, unreachable(), "lab/one-gguf")["path"] == only["path"]


@pytest.mark.parametrize(
    ("model", "options", "what"),
    [
        ("lab/absent", {}, "no such local path and no such repository"),
        ("lab/tiny", {"revision": "v9"}, "no such revision"),
        ("lab/many-ggufs", {}, "name one as lab/many-ggufs:tiny.Q4_0.gguf"),
        ("lab/many-ggufs:other.gguf", {}, "no such file; its GGUF files: tiny.Q4_0.gguf, tiny.Q8_0.gguf"),
        ("lab/pickles", {}, "neither safetensors nor GGUF"),
    ],
)
def test_what_the_hub_does_not_have_is_said(tmp_path: Path, hub: str, model: str, options: dict[str, Any], what: str) -> None:
    answer = resolve_apart(tmp_path, hub, model, **options)
    assert answer["type"] == "ModelLoadError"
    assert what in answer["error"]


def test_without_a_network_the_error_says_what_was_tried(tmp_path: Path) -> None:
    endpoint = unreachable()
    answer = resolve_apart(tmp_path, endpoint, "lab/tiny")
    assert answer["type"] == "ModelLoadError"
    for part in ("lab/tiny", "a local path", str(tmp_path / "hf" / "hub"), endpoint):
        assert part in answer["error"]


def test_without_a_network_what_another_program_left_in_the_cache_is_used(tmp_path: Path, hub: str) -> None:
    path = resolve_apart(tmp_path, hub, "lab/tiny")["path"]
    for note in (tmp_path / "octavo" / "hub").glob("*.json"):
        note.unlink()
    assert resolve_apart(tmp_path, unreachable(), "lab/tiny")["path"] == path
    (Path(path) / "model.safetensors").unlink()
    assert "not whole" in resolve_apart(tmp_path, unreachable(), "lab/tiny")["error"]
