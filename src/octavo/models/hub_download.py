"""Fetching a repository from the Hugging Face hub, once.

What a finished download consists of is noted under Octavo's cache directory, so that the next start neither asks the network nor
imports huggingface_hub. The files themselves stay in the hub's own cache, shared with other programs.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from octavo import env
from octavo.errors import ModelLoadError
from octavo.log import get_logger
from octavo.models.progress import ProgressCallback, showing, watching

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

logger = get_logger(__name__)

PATTERNS = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""The files of a repository that are fetched: never pickled weights, never code."""

_LOCK_SECONDS = 3600
_ANSWER_SECONDS = 5.0
"""How long the hub may take to answer the first question; a machine without a network is told so after that."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One download: a repository (or one GGUF file of it) at a revision."""

    repository: str
    file: str | None
    revision: str | None

    def __str__(self) -> str:
        return self.repository + (f":{self.file}" if self.file else "") + (f" at {self.revision}" if self.revision else "")


def fetch_repository(repository: str, file: str | None, revision: str | None, progress: ProgressCallback | None, refresh: bool) -> Path:
    """The directory of a repository's files, or the one GGUF file asked for (or the only one there is).

    Raises:
        ModelLoadError: the repository does not exist, is closed to this user, holds nothing usable, or cannot be reached.
    """
    wanted = _Wanted(repository, file, revision)
    note = env.cache_dir() / "hub" / f"{quote(str(wanted), safe='')}.json"
    if not refresh and (noted := _noted(note)):
        return noted
    import filelock

    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(note.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            if not refresh and (noted := _noted(note)):
                return noted
            path, names = _fetch(wanted, progress)
            if names:
                _write_note(note, path, names)
            return path
    except filelock.Timeout as error:
        raise ModelLoadError(f"{wanted}: another process has been fetching it for {_LOCK_SECONDS} s.") from error


def _noted(note: Path) -> Path | None:
    """What a finished download left, if all of it is still there."""
    try:
        content = json.loads(note.read_text())
        path, names = Path(content["path"]), content["files"]
        return path if path.exists() and all((path / name).exists() for name in names) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_note(note: Path, path: Path, names: list[str]) -> None:
    scratch = note.with_suffix(".new")
    scratch.write_text(json.dumps({"path": str(path), "files": names if path.is_dir() else ["."]}))
    scratch.replace(note)


def _fetch(wanted: _Wanted, progress: ProgressCallback | None) -> tuple[Path, list[str]]:
    """The path, and the names of all the files below it; no names when the network was not asked and they may not be all."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi().model_info(wanted.repository, revision=wanted.revision, timeout=_ANSWER_SECONDS, files_metadata=True)
    except errors.GatedRepoError as error:
        raise ModelLoadError(f"{wanted}: this repository is gated: accept its terms on the hub and set HF_TOKEN.") from error
    except errors.RevisionNotFoundError as error:
        raise ModelLoadError(f"{wanted}: the repository has no such revision.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"{wanted}: there is no such local path and no such repository on the Hugging Face hub (or it is private: set HF_TOKEN)."
        ) from error
    except Exception as error:  # of several HTTP libraries, by version
        return _from_hub_cache(wanted, error), []
    names, sizes = _choose(wanted, info)
    with showing(wanted.repository, sum(sizes.values()), progress) as report:
        path = _download(wanted, info, names, report)
        report(sum(sizes.values()))
    return path, names


def _from_hub_cache(wanted: _Wanted, reason: Exception) -> Path:
    """What an earlier download of this or another program left in the hub's cache."""
    import huggingface_hub
    from huggingface_hub import constants

    cached: Any = None
    try:
        if wanted.file:
            cached = huggingface_hub.try_to_load_from_cache(wanted.repository, wanted.file, revision=wanted.revision)
        else:
            cached = huggingface_hub.snapshot_download(
                wanted.repository, revision=wanted.revision, local_files_only=True, allow_patterns=list(PATTERNS)
            )
    except Exception:  # not there, or not whole: of no more use than no answer
        cached = None
    if isinstance(cached, str) and (wanted.file or _looks_whole(Path(cached))):
        logger.warning("the Hugging Face hub cannot be reached; using the cached state of %s", wanted)
        return Path(cached)
    raise ModelLoadError(
        f"{wanted}: not found. Tried: a local path of that name (there is none); the hub's cache {constants.HF_HUB_CACHE} (it is not "
        f"there, or not whole); the hub {constants.ENDPOINT} (no answer: {type(reason).__name__}: {reason!s:.200})."
    ) from None


def _looks_whole(directory: Path) -> bool:
    """Whether the weights that a snapshot's own index names, or its single file, are there."""
    index = directory / "model.safetensors.index.json"
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        return (directory / "config.json").exists() and all((directory / shard).exists() for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _choose(wanted: _Wanted, info: ModelInfo) -> tuple[list[str], dict[str, int]]:
    """The files to fetch and their sizes in bytes."""
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    ggufs = sorted(name for name in sizes if name.endswith(".gguf"))
    if wanted.file:
        if wanted.file not in sizes:
            raise ModelLoadError(f"{wanted}: the repository has no such file; its GGUF files: {', '.join(ggufs[:12]) or 'none'}.")
        names = [wanted.file]
    elif any(fnmatch.fnmatchcase(name, "model*.safetensors") for name in sizes):
        names = sorted(name for name in sizes if any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS))
    elif len(ggufs) == 1:
        names = ggufs
    elif ggufs:
        raise ModelLoadError(
            f"{wanted}: holds {len(ggufs)} GGUF files ({', '.join(ggufs[:12])}); name one as {wanted.repository}:{ggufs[0]}."
        )
    else:
        raise ModelLoadError(f"{wanted}: holds neither safetensors nor GGUF files; pickled weights are never read.")
    return names, {name: sizes[name] for name in names}


def _download(wanted: _Wanted, info: ModelInfo, names: list[str], report: Callable[[int], None]) -> Path:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=wanted.repository, repo_type="model")
    single = len(names) == 1 and names[0].endswith(".gguf")
    try:
        with _without_bars(), watching(folder, report):
            if single:
                return Path(huggingface_hub.hf_hub_download(wanted.repository, names[0], revision=wanted.revision or "main"))
            path = huggingface_hub.snapshot_download(wanted.repository, revision=wanted.revision, allow_patterns=names)
            return Path(path)
    except Exception as error:  # of several HTTP libraries, by version
        raise ModelLoadError(f"{wanted}: the download failed: {type(error).__name__}: {error!s:.300}") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence the hub's own progress bars: there is one already."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
