"""What form a request's output must have: a JSON schema, any JSON object, a regular expression, a choice or a grammar."""

from __future__ import annotations

import json as json_text
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError

MAX_CONSTRAINT_BYTES = 128 * 1024
"""Most UTF-8 bytes of a schema, a grammar, or all choices together."""
MAX_REGEX_BYTES = 16 * 1024
MAX_CHOICES = 4096
MAX_START_CHARS = 256

KINDS = ("json", "json_object", "regex", "choice", "grammar")
"""The fields of which exactly one is set."""


class StructuredOutputs(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The form that the output must have. Exactly one of the first five is set.

    Attributes:
        json: a JSON schema, as a dictionary or as JSON text; it is kept as text.
        json_object: whether any JSON object will do; False is the same as absent.
        regex: a regular expression that the whole output must match.
        choice: the strings of which the output must be one.
        grammar: a grammar in Lark's syntax, or in GBNF as llama.cpp writes it (told by its ``::=``).
        starts_after: text (such as ``</think>``) until whose end the output is free; None: the form holds from the first token.
            For the server's use, not for clients.

    Raises:
        InvalidRequestError: none or several are set, or one is of a wrong type, empty or too large. Whether it compiles is
            found out when the request comes in.
    """

    json: str | dict[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    starts_after: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.json_object, bool):
            raise _invalid(f"json_object must be true or false; got {self.json_object!r}.")
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "has none of them"
            raise _invalid(f"structured_outputs takes exactly one of {', '.join(KINDS)}; the request {what}.")
        if self.json is not None:
            msgspec.structs.force_setattr(self, "json", _schema_text(self.json))
        for name, most in (("json", MAX_CONSTRAINT_BYTES), ("regex", MAX_REGEX_BYTES), ("grammar", MAX_CONSTRAINT_BYTES)):
            if (text := getattr(self, name)) is not None:
                _check_size(name, _num_bytes(name, text), most)
        if self.choice is not None:
            _check_choice(self.choice)
        if self.starts_after is not None and not 0 < _num_bytes("starts_after", self.starts_after) <= MAX_START_CHARS:
            raise _invalid(f"starts_after must be text of at most {MAX_START_CHARS} bytes.")

    @property
    def kind(self) -> str:
        """Which of ``KINDS`` is set."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False))

    @property
    def key(self) -> bytes:
        """The same for equal forms, and only for those."""
        return msgspec.msgpack.encode(self)

    @property
    def schema(self) -> str:
        """The JSON schema's text where ``kind`` is ``json``."""
        assert isinstance(self.json, str)
        return self.json


def _schema_text(schema: Any) -> str:
    if isinstance(schema, str):
        return schema
    if not isinstance(schema, dict):
        raise _invalid(f"json must be a JSON schema, as an object or as JSON text; got {type(schema).__name__}.")
    try:
        return json_text.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid(f"json is no JSON schema: {error}.") from None


def _check_choice(choice: Any) -> None:
    if not isinstance(choice, list) or not choice:
        raise _invalid("choice must be a list of at least one string.")
    if len(choice) > MAX_CHOICES:
        raise _invalid(f"choice may hold at most {MAX_CHOICES} strings; got {len(choice)}.")
    _check_size("choice", sum(_num_bytes("choice", text) for text in choice), MAX_CONSTRAINT_BYTES)


def _num_bytes(name: str, text: Any) -> int:
    """The text's length in UTF-8, which is at least 1."""
    if not isinstance(text, str) or not text:
        raise _invalid(f"{name} must be {'non-empty strings' if name == 'choice' else 'a non-empty string'}; got {text!r:.80}.")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise _invalid(f"{name} holds a lone surrogate at character {error.start}, which is no text.") from None


def _check_size(name: str, size: int, most: int) -> None:
    if size > most:
        raise _invalid(f"{name} may hold at most {most} bytes; got {size}.")


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, "structured_outputs")
