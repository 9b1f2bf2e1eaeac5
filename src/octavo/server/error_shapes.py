"""How each API spells an error: OpenAI's shape everywhere but on the routes of Anthropic's and Ollama's clients."""

from __future__ import annotations

from typing import Literal

import msgspec


class ErrorDetail(msgspec.Struct):
    """What went wrong.

    Attributes:
        message: for a person. type, code: for a program. param: the field at fault.
    """

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class ErrorBody(msgspec.Struct):
    """The body of an answer that is not a success, as OpenAI's clients read it."""

    error: ErrorDetail


class AnthropicErrorDetail(msgspec.Struct):
    """What went wrong: ``type`` for a program, ``message`` for a person."""

    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct, tag_field="type", tag="error"):
    """The same as Anthropic's clients read it; it is also the event in which a stream fails."""

    error: AnthropicErrorDetail


class OllamaErrorBody(msgspec.Struct):
    """The same as Ollama's clients read it; it is also the line in which a stream fails."""

    error: str


Spelling = Literal["openai", "anthropic", "ollama"]

_SHAPES: dict[Spelling, type[msgspec.Struct]] = {"openai": ErrorBody, "anthropic": AnthropicErrorBody, "ollama": OllamaErrorBody}

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def spelling_of(path: str) -> Spelling:
    """Whose clients call a path (without the server's root path)."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"


def shape_of(path: str) -> type[msgspec.Struct]:
    """What an error looks like on a path."""
    return _SHAPES[spelling_of(path)]


def spell(status: int, body: ErrorBody, path: str) -> msgspec.Struct:
    """An error as the clients of a path read it."""
    spelling = spelling_of(path)
    if spelling == "anthropic":
        return anthropic_error(status, body)
    return OllamaErrorBody(body.error.message) if spelling == "ollama" else body


def anthropic_error(status: int, body: ErrorBody) -> AnthropicErrorBody:
    """An error in Anthropic's words."""
    return AnthropicErrorBody(AnthropicErrorDetail(_ANTHROPIC_TYPES.get(status, "invalid_request_error"), body.error.message))
