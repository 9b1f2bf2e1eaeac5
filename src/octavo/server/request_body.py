"""From the bytes of a request's body to a checked request model; every way in which that fails is a clear 4xx."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from octavo.errors import InvalidRequestError
from octavo.server import refused_fields
from octavo.server.disconnect import ClientDisconnectedError
from octavo.server.errors import BodyTooLargeError, ContentTypeError

Model = TypeVar("Model", bound=BaseModel)

_WORDS = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
}
"""Pydantic's error types in the API's words: what the field must be."""


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def parse(request: Request, model: type[Model], limit: int, *, any_type: bool = False) -> Model:
    """Read and check a request's body.

    Args:
        request: the HTTP request.
        model: what the body must be.
        limit: largest body in bytes.
        any_type: whether a body may leave its type undeclared.

    Raises:
        ContentTypeError, BodyTooLargeError: as their names say.
        InvalidRequestError: malformed JSON, a wrong type, a missing, unknown or unavailable field.
        ClientDisconnectedError: the client went away before the body was whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not any_type and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ContentTypeError(f"The body must be JSON: send 'Content-Type: application/json'; got {kind or 'none'!r}.")
    body = await read(request, limit)
    try:
        parsed = model.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            raise _not_json(error, body) from None
        raise explain(error, json.loads(body)) from None
    refused_fields.check(parsed)
    return parsed


async def read(request: Request, limit: int) -> bytes:
    """The whole body, refused as soon as it is known to be longer than ``limit`` bytes, whether it announced so or not.

    Raises:
        BodyTooLargeError: it is longer.
        ClientDisconnectedError: the client went away.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLargeError(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise BodyTooLargeError(limit)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ClientDisconnectedError from None
    return b"".join(chunks)


def _not_json(error: ValidationError, body: bytes) -> InvalidRequestError:
    reason = str(error.errors(include_url=False, include_input=False)[0].get("ctx", {}).get("error", "")) or "it cannot be parsed"
    return InvalidRequestError(f"The body is not valid JSON: {_why_not_json(body, reason)}.", None, "invalid_json")


def explain(error: ValidationError, raw: Any) -> InvalidRequestError:
    """One clear error of Pydantic's list: the deepest place in the body that is wrong, and what it must be.

    Args:
        error: what Pydantic said of ``raw``, the parsed body.
    """
    details = error.errors(include_url=False, include_input=False)
    if not isinstance(raw, dict):
        return InvalidRequestError("The body must be a JSON object.", None, "invalid_type")
    places = [_place(raw, detail) for detail in details]
    # The alternatives of a union each report; the deepest place is the alternative that came nearest.
    top = places[0][0]
    deepest = max((place for place in places if place[0] == top), key=len)
    found = [detail for detail, place in zip(details, places, strict=True) if place == deepest]
    field = _spell(deepest)
    return InvalidRequestError(f"`{field}` {_reason(found)}.", field, "invalid_type")


def _why_not_json(body: bytes, reason: str) -> str:
    """The parser's reason, or a plainer one where it speaks of escapes and bytes."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8"
    if "hex escape" in reason and _SURROGATE.search(body):
        return f"it holds a lone surrogate, half of a character ({reason})"
    return reason


def _place(raw: dict[str, Any], detail: ErrorDetails) -> tuple[str | int, ...]:
    """Where in the body an error lies: Pydantic's location without the names of union alternatives."""
    place: list[str | int] = []
    value: Any = raw
    for step in detail["loc"]:
        in_object = isinstance(value, dict) and isinstance(step, str) and step in value
        if in_object or (isinstance(value, list) and isinstance(step, int)):
            value = value[step]
        elif isinstance(value, dict) and detail["type"] == "missing":
            value = None
        else:
            continue
        place.append(step)
    return tuple(place)


def _reason(details: list[ErrorDetails]) -> str:
    """What is wrong at one place; several types are alternatives."""
    kinds = dict.fromkeys(_WORDS[detail["type"]] for detail in details if detail["type"] in _WORDS)
    if kinds:
        return f"must be {' or '.join(kinds)}"
    if details[0]["type"] == "missing":
        return "is required"
    if details[0]["type"] == "extra_forbidden":
        return "is an unknown field"
    return details[0]["msg"].replace("Input should", "must").replace("List should", "must")


def _spell(place: tuple[str | int, ...]) -> str:
    """``("messages", 0, "content")`` as ``messages[0].content``."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
