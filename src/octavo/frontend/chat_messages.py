"""Chat messages as clients send them: checked, and brought to the form that chat templates take."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import InvalidRequestError

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_TEXT_PARTS = {"text": "text", "refusal": "refusal"}
"""Kinds of content parts that are text, and the field it is in."""


def normalise_messages(messages: Any, *, takes_parts: bool, maps_developer: bool) -> list[dict[str, Any]]:
    """Check a conversation and make it a template's input. The given messages are left alone.

    Args:
        messages: the conversation; each message has ``role`` and ``content`` (text, or a list of parts such as
            ``{"type": "text", "text": ...}``; None is no text) and may have other fields, which templates see as they are.
        takes_parts: whether the template handles lists of parts; if not, their texts are joined by newlines.
        maps_developer: whether the ``developer`` role becomes ``system`` (for templates that do not know it).

    Raises:
        InvalidRequestError: what is wrong with which message.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequestError("messages must be a non-empty list of messages.", "messages")
    made = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise InvalidRequestError(f"{where} must be an object with role and content; got {type(message).__name__}.", "messages")
        copy = dict(message)
        copy["role"] = _role(message.get("role"), where, maps_developer=maps_developer)
        copy["content"] = _content(message.get("content"), where, takes_parts=takes_parts)
        if copy.get("tool_calls") is None:
            copy.pop("tool_calls", None)
        else:
            copy["tool_calls"] = _tool_calls(copy["tool_calls"], where)
        made.append(copy)
    return made


def _role(role: Any, where: str, *, maps_developer: bool) -> str:
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise InvalidRequestError(f"{where}.role must be a role such as system, user, assistant or tool; got {role!r:.100}.", "messages")
    return "system" if role == "developer" and maps_developer else role


def _content(content: Any, where: str, *, takes_parts: bool) -> str | list[dict[str, Any]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidRequestError(f"{where}.content must be a string or a list of parts; got {type(content).__name__}.", "messages")
    texts = [_part_text(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts] if takes_parts else "\n".join(texts)


def _part_text(part: Any, where: str) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InvalidRequestError(f'{where} must be an object with a type, such as {{"type": "text", "text": "..."}}.', "messages")
    kind = part["type"]
    if kind not in _TEXT_PARTS:
        raise InvalidRequestError(f"{where} has type {kind!r:.100}, which this model cannot take: it reads text only.", "messages")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}.{_TEXT_PARTS[kind]} must be a string; got {type(text).__name__}.", "messages")
    return text


def _tool_calls(calls: Any, where: str) -> list[Any]:
    """Templates take a call's arguments as an object; the OpenAI API sends them as JSON text."""
    if not isinstance(calls, list):
        raise InvalidRequestError(f"{where}.tool_calls must be a list; got {type(calls).__name__}.", "messages")
    made = []
    for index, call in enumerate(calls):
        place = f"{where}.tool_calls[{index}]"
        if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
            raise InvalidRequestError(f"{place} must be an object with a function.", "messages")
        function = dict(call["function"])
        if isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError):
                raise InvalidRequestError(f"{place}.function.arguments is not valid JSON.", "messages") from None
        made.append({**call, "function": function})
    return made
