"""Reading values out of files that may lie: each is checked for its type and range, and an error names the file and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError

MAX_JSON_BYTES = 2**26
"""Larger JSON files are refused unread; the index of a very large checkpoint has a few megabytes."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelLoadError: the file is missing, too large, not JSON or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelLoadError(f"{path}: {size} bytes is too large for a JSON file; at most {MAX_JSON_BYTES} are read.")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: not sound JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: a JSON object is needed, the file holds a {type(value).__name__}.")
    return value


class Fields:
    """Named values of one file. A field that is absent or null counts as missing.

    Args:
        path: the file, for messages.
        values: its fields.
        prefix: what to write before a field's name in messages, such as ``rope_scaling.``.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def error(self, name: str, what: str) -> ModelLoadError:
        """The error to raise for a field, naming file and field."""
        return ModelLoadError(f"{self.path}: field {self.prefix + name!r} {what}.")

    def _required(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise self.error(name, "is missing")
        return default

    def integer(self, name: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1) -> int:
        """A whole number in [low, high]; required where there is no default."""
        value = self._required(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"must be a whole number from {low} to {high}, not {value!r:.100}")
        return value

    def optional_integer(self, name: str, low: int = 1, high: int = 2**31 - 1) -> int | None:
        """As ``integer``; None where the field is missing."""
        return self.integer(name, None, low, high) if name in self else None

    def number(self, name: str, default: float | None = None, low: float = 0.0, above: bool = True, high: float = 1e12) -> float:
        """A finite number up to ``high``, greater than ``low`` (or equal to it, unless ``above``)."""
        value = self._required(name, default)
        sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value <= high
        if not sound or not (value > low if above else value >= low):
            raise self.error(name, f"must be a number {'above' if above else 'from'} {low:g} up to {high:g}, not {value!r:.100}")
        return float(value)

    def optional_number(self, name: str, low: float = 0.0, above: bool = True, high: float = 1e12) -> float | None:
        """As ``number``; None where the field is missing."""
        return self.number(name, None, low, above, high) if name in self else None

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._required(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, not {value!r:.100}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._required(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, not {value!r:.100}")
        return value

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of ``count`` positive finite numbers."""
        value = self._required(name, None)
        if not isinstance(value, list) or len(value) != count:
            raise self.error(name, f"must be a list of {count} numbers, not {value!r:.100}")
        listed = Fields(self.path, {f"{name}[{i}]": item for i, item in enumerate(value)}, self.prefix)
        return [listed.number(item) for item in listed.values]

    def object(self, name: str) -> Fields | None:
        """The fields of a nested object, or None where it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object, not {value!r:.100}")
        return Fields(self.path, value, f"{self.prefix}{name}.")

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them; none where the field is missing."""
        value = self.values.get(name)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
            raise self.error(name, f"must be a token id or a list of them, not {value!r:.100}")
        return tuple(dict.fromkeys(ids))
