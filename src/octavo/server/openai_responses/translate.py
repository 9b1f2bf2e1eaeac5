"""From requests for responses to chats."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from octavo.errors import InvalidRequestError
from octavo.server.openai_responses.protocol import InputItem, InputPart, ResponsesRequest
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.via_chat import chat_body, refuse

NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "response_format": "text.format",
}
"""A chat's fields that have other names here."""

_HARMLESS = {"annotations": ([],), "logprobs": ([],), "phase": ("final_answer",)}
"""Fields of answers that clients send back."""


def chat_of(body: ResponsesRequest) -> ChatCompletionRequest:
    """The chat that a request asks for.

    Raises:
        InvalidRequestError: naming the field at fault.
    """
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    elif not body.input:
        raise InvalidRequestError("input must hold at least one message.", "input")
    else:
        messages += [_message(item, f"input[{index}]") for index, item in enumerate(body.input)]
    fields = {
        "model": body.model,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "response_format": _response_format(body),
    }
    return chat_body(messages, fields)


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    """The form of the answer, with the schema where a chat has it."""
    if body.text is None or body.text.format is None:
        return None
    given = body.text.format.model_dump(by_alias=True, exclude_none=True)
    kind = given.pop("type")
    if kind == "json_schema":
        return {"type": kind, "json_schema": given}
    if given:
        raise InvalidRequestError(
            f"text.format.{next(iter(given))} is only for a format of type json_schema.", f"text.format.{next(iter(given))}"
        )
    return {"type": kind}


def _message(item: InputItem, where: str) -> dict[str, Any]:
    if item.type not in (None, "message"):
        raise refuse(f"{where}.type", f"{item.type!r:.60} items are not served, only messages.")
    _check_extra(item, where)
    if item.role is None:
        raise InvalidRequestError(f"`{where}.role` is required.", f"{where}.role", "invalid_type")
    if item.content is None:
        raise InvalidRequestError(f"`{where}.content` is required.", f"{where}.content", "invalid_type")
    if isinstance(item.content, str):
        return {"role": item.role, "content": item.content}
    parts = [{"type": "text", "text": _text(part, f"{where}.content[{index}]")} for index, part in enumerate(item.content)]
    return {"role": item.role, "content": parts}


def _text(part: InputPart, where: str) -> str:
    if part.type not in ("input_text", "output_text"):
        raise refuse(f"{where}.type", f"{part.type!r:.60} parts are not served, only 'input_text' and 'output_text'.")
    _check_extra(part, where)
    if part.text is None:
        raise InvalidRequestError(f"`{where}.text` is required.", f"{where}.text", "invalid_type")
    return part.text


def _check_extra(part: BaseModel, where: str) -> None:
    for name, value in (part.__pydantic_extra__ or {}).items():
        if value is not None and value not in _HARMLESS.get(name, ()):
            raise InvalidRequestError(f"Unknown field `{where}.{name}`.", f"{where}.{name}", "unknown_field")
