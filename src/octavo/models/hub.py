"""From what the user names to files on this machine: the embedded default, a directory, a GGUF file or a Hugging Face repository.

When everything is here already this takes milliseconds and imports neither torch nor huggingface_hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo.errors import ConfigError, ModelLoadError
from octavo.models import embedded
from octavo.models.progress import ProgressCallback

_REPOSITORY = re.compile(r"([\w-][\w.-]{0,95}(?:/[\w-][\w.-]{0,95})?)(?::([^:]+\.gguf))?")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's files on this machine.

    Attributes:
        name: what the user called it; the default name it is served under.
        kind: ``hf`` (a directory with config.json and safetensors) or ``gguf`` (one file).
        path: that directory or file.
    """

    name: str
    kind: Literal["hf", "gguf"]
    path: Path


def resolve(model: str | None, revision: str | None = None, progress: ProgressCallback | None = None, refresh: bool = False) -> ModelFiles:
    """Find a model's files, fetching them where they are not here yet.

    Args:
        model: a directory, a GGUF file, a Hugging Face repository id (``name/repo``, or ``name/repo:file.gguf`` for one file of it),
            or None for the embedded default.
        revision: branch, tag or commit of the repository.
        progress: told what is fetched, the bytes that have arrived and the bytes in all; a terminal gets a bar where it is None.
        refresh: ask the hub for a newer state of the branch even when an older one is here.

    Raises:
        ConfigError: a revision is given for what is no repository.
        ModelLoadError: nothing usable is there, naming what was tried.
    """
    path = None if model is None else _path(model)
    if revision is not None and (path is None or path.exists()):
        raise ConfigError(f"revision={revision!r} selects a state of a Hugging Face repository; {model or 'the default model'} is none.")
    if model is None or path is None:
        return ModelFiles(embedded.NAME, "gguf", embedded.embedded_model(progress))
    if path.is_dir():
        return _from_directory(model, path)
    if path.exists():
        if path.suffix.lower() != ".gguf" or not path.is_file():
            raise ModelLoadError(f"{path}: a model is a directory, a .gguf file or a Hugging Face repository id; this is another file.")
        return ModelFiles(model, "gguf", path)
    match = _REPOSITORY.fullmatch(model)
    if match is None or (match[2] is None and path.suffix.lower() == ".gguf"):
        raise ModelLoadError(f"{model}: there is no such file or directory, and it is not a Hugging Face repository id (name/repository).")
    from octavo.models.hub_download import fetch_repository

    found = fetch_repository(match[1], match[2], revision, progress, refresh)
    return _from_directory(model, found) if found.is_dir() else ModelFiles(model, "gguf", found)


def _path(model: str) -> Path:
    """What the user named, as a path that can be asked whether it exists."""
    try:
        path = Path(model).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, an unknown user's home
        raise ModelLoadError(f"{model:.200}: cannot be a path or a repository: {error!s:.200}.") from error
    return path


def _from_directory(name: str, directory: Path) -> ModelFiles:
    """A directory is read as Hugging Face's, unless its only weights are one GGUF file."""
    ggufs = sorted(directory.glob("*.gguf"))
    has_config = (directory / "config.json").is_file()
    if has_config and (len(ggufs) != 1 or any(directory.glob("*.safetensors"))):
        return ModelFiles(name, "hf", directory)
    if len(ggufs) == 1:
        return ModelFiles(name, "gguf", ggufs[0])
    if ggufs:
        listed = ", ".join(path.name for path in ggufs[:8])
        raise ModelLoadError(f"{directory}: holds {len(ggufs)} GGUF files ({listed}); name the one to serve.")
    raise ModelLoadError(f"{directory}: holds neither config.json nor a .gguf file.")
