"""The keys that clients must send: from the flags, a file or the environment. No message here says what a key is."""

from __future__ import annotations

import re
from pathlib import Path

from octavo import env
from octavo.errors import ConfigError

_SENDABLE = re.compile(r"[!-~]+")
"""What survives the way through a header unchanged, whatever the client."""


def resolve(given: list[str], file: str | None) -> list[str]:
    """All keys that open: those given and those of the file together, else those of ``$OCTAVO_API_KEY``.

    Args:
        given: of ``--api-key`` and the configuration file.
        file: ``--api-key-file``: a key a line; blank lines and lines that begin with ``#`` are left out.

    Returns:
        No key where none was given anywhere: the server is then open. A source that was given and holds none is refused.

    Raises:
        ConfigError: the file cannot be read or holds no key, or a key cannot be sent in a header.
    """
    keys = list(given)
    if any(not key for key in given):
        raise ConfigError("api_key must not be empty.")
    if file is not None:
        keys += _read(file)
    if not keys and env.api_keys_text():
        keys = env.api_keys()
        if not keys:
            raise ConfigError("$OCTAVO_API_KEY holds no key; unset it, or give keys separated by commas.")
    for index, key in enumerate(keys):
        if not _SENDABLE.fullmatch(key):
            raise ConfigError(f"API key {index + 1} of {len(keys)} holds a character other than printable ASCII without spaces.")
    return list(dict.fromkeys(keys))


def _read(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file: cannot read {file!r}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.") from None
    lines = (line.strip() for line in text.splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file: {file!r} holds no key; it takes one a line.")
    return keys
