"""Tokenizers in Hugging Face's layout: ``tokenizer.json`` or ``tokenizer.model``, and the small files beside them.

The rules are those of transformers 5. A ``tokenizer.json`` says itself what stands around a text, so ``add_bos_token`` and
``add_eos_token`` of the config count only for a ``tokenizer.model``. ``chat_template.jinja`` comes before the config's template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from octavo.errors import ModelLoadError
from octavo.frontend.tokenizer_parts import NAMED_TOKENS, TokenizerParts, frame
from octavo.frontend.tokenizer_spm import build_backend, read_sentencepiece

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
_SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")
_TEMPLATES_DIRECTORY = "additional_chat_templates"


def read_directory(directory: Path) -> TokenizerParts:
    """Read the tokenizer of a checkpoint's directory.

    Raises:
        ModelLoadError: there is none, or it is broken.
    """
    for name in (JSON_FILE, *SENTENCEPIECE_FILES):
        if (directory / name).is_file():
            return read_file(directory / name)
    wanted = ", ".join((JSON_FILE, *SENTENCEPIECE_FILES))
    raise ModelLoadError(
        f"{directory}: no tokenizer here; looked for {wanted}. Name one with --tokenizer (a directory, file or repository)."
    )


def read_file(path: Path) -> TokenizerParts:
    """Read a tokenizer from its main file and what stands beside it.

    Raises:
        ModelLoadError: a file is broken.
    """
    config = _read_object(path.with_name("tokenizer_config.json"))
    named, extra = _special_tokens(path.parent, config)
    if path.suffix == ".json":
        backend = _read_tokenizer_json(path)
        model = None
    else:
        model = read_sentencepiece(path)
        backend = build_backend(model, path, legacy=bool(config.get("legacy", False)), add_prefix_space=config.get("add_prefix_space"))
        for name, text in model.named_tokens.items():
            named.setdefault(name, text)
    try:
        _add_tokens(backend, path.parent, config, named, extra)
    except (TypeError, ValueError) as error:
        raise ModelLoadError(f"{path.parent}: the added tokens of tokenizer_config.json are malformed: {error}") from error
    parts = TokenizerParts(backend, str(path), named, set(extra), _chat_templates(path.parent, config))
    if model is not None:
        _frame_as_told(parts, config)
    return parts


def fetch_tokenizer(repo_id: str, revision: str | None) -> Path:
    """Fetch a repository's tokenizer files, no weights, into the Hugging Face cache.

    Returns:
        The directory they are in.

    Raises:
        ModelLoadError: the repository cannot be reached or does not exist.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [JSON_FILE, *SENTENCEPIECE_FILES, *_SIDE_FILES, f"{_TEMPLATES_DIRECTORY}/*.jinja"]
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(
            f"--tokenizer {repo_id}: neither a file or directory here nor a repository that can be fetched: {error}"
        ) from error


def _read_tokenizer_json(path: Path) -> Backend:
    try:
        return Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for malformed files
        raise ModelLoadError(f"{path}: not a sound tokenizer.json: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file that need not be there."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path}: holds no JSON object.")
    return content


# ---- special and added tokens ----------------------------------------------------------------------------------------


def _special_tokens(directory: Path, config: dict[str, Any]) -> tuple[dict[str, str], dict[str, AddedToken]]:
    """Special tokens by name, and further ones by text.

    ``special_tokens_map.json`` is the older place: it counts (and then comes first) where the config lists no added tokens.
    """
    merged = dict(config)
    if "added_tokens_decoder" not in config:
        merged.update(_read_object(directory / "special_tokens_map.json"))
    named: dict[str, str] = {}
    extra: dict[str, AddedToken] = {}
    for key, value in merged.items():
        if key.endswith("_token") and (token := _as_token(value)) is not None:
            if key in NAMED_TOKENS:
                named[key] = token.content
            extra[token.content] = token
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = merged.get(key) or []
        for value in listed.values() if isinstance(listed, dict) else listed:
            if (token := _as_token(value)) is not None:
                extra[token.content] = token
    return named, extra


def _as_token(value: Any) -> AddedToken | None:
    """A special token from its text or from its serialised form; None for what is neither."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=True, normalized=False)
    if isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]:
        return _added_token({**value, "special": True})
    return None


def _added_token(entry: dict[str, Any]) -> AddedToken:
    flags = {name: bool(entry[name]) for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in entry}
    return AddedToken(entry["content"], **flags)


def _add_tokens(backend: Backend, directory: Path, config: dict[str, Any], named: dict[str, str], extra: dict[str, AddedToken]) -> None:
    """Tell the backend of the tokens that only the side files know, in the order of their ids, then of the special ones."""
    listed: dict[int, AddedToken] = {}
    for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise ValueError(f"entry {token_id} has no content")
        listed[int(token_id)] = _added_token(entry)
    if not listed:
        for text, token_id in _read_object(directory / "added_tokens.json").items():
            is_special = text in extra or text in named.values()
            listed[int(token_id)] = AddedToken(text, special=is_special, normalized=not is_special)
    backend.add_tokens([listed[token_id] for token_id in sorted(listed)])
    marked = dict(extra)
    for text in named.values():
        marked.setdefault(text, AddedToken(text, special=True, normalized=False))
    backend.add_special_tokens(list(marked.values()))


def _frame_as_told(parts: TokenizerParts, config: dict[str, Any]) -> None:
    """Begin and end tokens for a ``tokenizer.model``, which cannot tell itself."""
    wanted: dict[str, str | None] = {}
    for name in ("bos", "eos"):
        wanted[name] = parts.named_tokens.get(f"{name}_token") if config.get(f"add_{name}_token", False) else None
    frame(parts.backend, wanted["bos"], wanted["eos"])


# ---- chat templates --------------------------------------------------------------------------------------------------


def _chat_templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name: from files of their own, else from the config, else from a processor's ``chat_template.json``."""
    found: dict[str, str] = {}
    if (directory / "chat_template.jinja").is_file():
        found["default"] = _read_text(directory / "chat_template.jinja")
    for path in sorted((directory / _TEMPLATES_DIRECTORY).glob("*.jinja")):
        found[path.stem] = _read_text(path)
    if found:
        return found
    listed = config.get("chat_template") or _read_object(directory / "chat_template.json").get("chat_template")
    if isinstance(listed, str):
        return {"default": listed}
    if isinstance(listed, list):
        entries = [(entry.get("name"), entry.get("template")) for entry in listed if isinstance(entry, dict)]
        return {name: template for name, template in entries if isinstance(name, str) and isinstance(template, str)}
    if isinstance(listed, dict):
        return {name: template for name, template in listed.items() if isinstance(template, str)}
    return {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: cannot be read as text: {error}") from error
