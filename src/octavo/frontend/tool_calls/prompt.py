"""Tools for models whose chat template knows none: described in the system message, their calls and results put into plain messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_INSTRUCTION = """You can call these functions:
{tools}

To call a function, answer with nothing but a JSON object of this form:
{{"name": "the function's name", "arguments": {{"parameter": "value"}}}}
To call several, answer with a JSON list of such objects. You are then given what they return.
If no function helps, answer in plain text."""


def describe_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages that tell a model of tools in plain words.

    Args:
        messages: as ``normalise_messages`` takes them; left alone.
        tools: in OpenAI's form, ``{"type": "function", "function": {...}}``; empty where past calls remain without them.
    """
    told = [_plain(message) for message in messages]
    if not tools:
        return told
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    instruction = _INSTRUCTION.format(tools=listed)
    if told and told[0].get("role") in ("system", "developer"):
        content = told[0].get("content")
        before = content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content or [])
        told[0]["content"] = f"{before}\n\n{instruction}" if before else instruction
    else:
        told.insert(0, {"role": "system", "content": instruction})
    return told


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without the roles and fields that only templates with tools know."""
    made = dict(message)
    calls = made.pop("tool_calls", None)
    made.pop("tool_call_id", None)
    if made.get("role") == "tool":
        name = made.pop("name", None)
        content = made.get("content")
        text = content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content or [])
        return {"role": "user", "content": f"The function {name} returned:\n{text}" if name else f"The function returned:\n{text}"}
    if calls:
        written = [{"name": call["function"]["name"], "arguments": _arguments(call["function"].get("arguments"))} for call in calls]
        text = json.dumps(written[0] if len(written) == 1 else written, ensure_ascii=False)
        content = made.get("content")
        made["content"] = f"{content}\n{text}" if isinstance(content, str) and content else text
    return made


def _arguments(written: Any) -> Any:
    """Arguments as an object; what is no JSON stays as it was written."""
    if not isinstance(written, str):
        return written or {}
    try:
        return json.loads(written or "{}")
    except ValueError:
        return written
