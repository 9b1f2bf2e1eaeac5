"""From Anthropic's requests to chats."""

from __future__ import annotations

import json
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.server.anthropic.protocol import Block, CountTokensRequest, MessagesRequest, TextInput
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.via_chat import chat_body, refuse

NAMES = {"stop": "stop_sequences", "prompt": "messages", "parallel_tool_calls": "tool_choice"}
"""A chat's fields that have other names here."""


def chat_of(body: MessagesRequest) -> ChatCompletionRequest:
    """The chat that a request for a message asks for.

    Raises:
        InvalidRequestError: naming the field at fault.
    """
    if body.temperature is not None and not 0 <= body.temperature <= 1:
        raise InvalidRequestError(f"temperature must be in [0, 1] on this route; got {body.temperature}.", "temperature")
    fields = {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
    }
    return _chat(body, fields)


def chat_of_prompt(body: CountTokensRequest) -> ChatCompletionRequest:
    """The chat whose prompt is counted.

    Raises:
        InvalidRequestError: naming the field at fault.
    """
    return _chat(body, {})


def _chat(body: CountTokensRequest, fields: dict[str, Any]) -> ChatCompletionRequest:
    messages = _messages(body)
    last = messages[-1]
    continues = last["role"] == "assistant" and not last.get("tool_calls")
    return chat_body(messages, {"model": body.model, "continue_final_message": continues, **_tools(body), **fields})


def _tools(body: CountTokensRequest) -> dict[str, Any]:
    """The fields of a chat that offer tools and say whether thoughts are returned."""
    fields: dict[str, Any] = {"include_reasoning": body.thinking is not None and body.thinking.type == "adaptive"}
    if body.tools:
        functions = [
            {"name": tool.name, "description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
            for tool in body.tools
        ]
        fields["tools"] = [{"type": "function", "function": function} for function in functions]
    choice = body.tool_choice
    if choice is None:
        return fields
    if (choice.type == "tool") != (choice.name is not None):
        raise InvalidRequestError("tool_choice.name belongs to a tool_choice of type tool, and to no other.", "tool_choice.name")
    named = {"type": "function", "function": {"name": choice.name}}
    fields["tool_choice"] = named if choice.type == "tool" else "required" if choice.type == "any" else choice.type
    fields["parallel_tool_calls"] = False if choice.disable_parallel_tool_use else None
    return fields


def _messages(body: CountTokensRequest) -> list[dict[str, Any]]:
    """The turns behind the system prompt. Turns of one role that follow each other are one turn, as Anthropic has it."""
    made: list[dict[str, Any]] = []
    if system := _texts(body.system, "system"):
        made.append({"role": "system", "content": _parts(system)})
    for index, message in enumerate(body.messages):
        turns = _assistant_turn if message.role == "assistant" else _user_turns
        for turn in turns(message.content, f"messages[{index}].content"):
            if made and made[-1]["role"] == turn["role"] != "tool":
                _join(made[-1], turn)
            else:
                made.append(turn)
    return made


def _join(before: dict[str, Any], turn: dict[str, Any]) -> None:
    before["content"] += turn["content"]
    if "tool_calls" in turn:
        before["tool_calls"] = before.get("tool_calls", []) + turn["tool_calls"]
    if "reasoning_content" in turn:
        before["reasoning_content"] = before.get("reasoning_content", "") + turn["reasoning_content"]


def _user_turns(content: str | list[Block], where: str) -> list[dict[str, Any]]:
    """What a user's turn says: the results of tools first, each a message of its own, then its texts."""
    if isinstance(content, str):
        return [{"role": "user", "content": _parts([content] if content else [])}]
    results, texts = [], []
    for index, block in enumerate(content):
        place = f"{where}[{index}]"
        if block.type == "tool_result":
            _only(block, place, "tool_use_id", "content", "is_error")
            told = "\n".join(_texts(block.content, f"{place}.content"))
            call = _needed(block.tool_use_id, f"{place}.tool_use_id")
            results.append({"role": "tool", "tool_call_id": call, "content": f"Error: {told}" if block.is_error else told})
        else:
            texts.append(_text(block, place))
    return results + ([{"role": "user", "content": _parts(texts)}] if texts or not results else [])


def _assistant_turn(content: str | list[Block], where: str) -> list[dict[str, Any]]:
    """What an assistant's turn said, thought and called."""
    if isinstance(content, str):
        return [{"role": "assistant", "content": _parts([content] if content else [])}]
    texts, thoughts, calls = [], "", []
    for index, block in enumerate(content):
        place = f"{where}[{index}]"
        if block.type == "tool_use":
            _only(block, place, "id", "name", "input")
            function = {"name": _needed(block.name, f"{place}.name"), "arguments": json.dumps(block.input or {}, ensure_ascii=False)}
            calls.append({"id": _needed(block.id, f"{place}.id"), "type": "function", "function": function})
        elif block.type == "thinking":
            _only(block, place, "thinking", "signature")
            thoughts += _needed(block.thinking, f"{place}.thinking")
        elif block.type == "redacted_thinking":
            _only(block, place, "data")
        else:
            texts.append(_text(block, place))
    turn: dict[str, Any] = {"role": "assistant", "content": _parts(texts)}
    if thoughts:
        turn["reasoning_content"] = thoughts
    if calls:
        turn["tool_calls"] = calls
    return [turn]


def _needed(value: str | None, where: str) -> str:
    if value is None:
        raise InvalidRequestError(f"`{where}` is required.", where, "invalid_type")
    return value


def _only(block: TextInput, where: str, *fields: str) -> None:
    """Refuse fields that a block of this type does not have."""
    given = [*block.model_fields_set, *(name for name, value in (block.__pydantic_extra__ or {}).items() if value is not None)]
    for name in given:
        harmless = name == "citations" and not (block.__pydantic_extra__ or {}).get(name)  # clients send back what they were given
        if name not in (*fields, "type", "cache_control") and not harmless and getattr(block, name, True) is not None:
            raise InvalidRequestError(
                f"Unknown field `{where}.{name}` in a block of type {block.type}.", f"{where}.{name}", "unknown_field"
            )


def _parts(texts: list[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _texts(content: str | list[TextInput] | None, where: str) -> list[str]:
    if content is None or isinstance(content, str):
        return [content] if content else []
    return [_text(block, f"{where}[{index}]") for index, block in enumerate(content)]


def _text(block: TextInput, where: str) -> str:
    if block.type != "text":
        raise refuse(f"{where}.type", f"{block.type!r:.60} blocks are not served here, only text (and in messages, tools and thinking).")
    _only(block, where, "text")
    return _needed(block.text, f"{where}.text")
