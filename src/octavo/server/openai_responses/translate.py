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
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""A chat's fields that have other names here."""

_FIELDS = {
    "message": {"role", "content"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
    "reasoning": {"content", "summary"},
}
_TYPED = set().union(*_FIELDS.values())
"""Fields that items of some types have and those of others do not."""

_HARMLESS = {"annotations": ([],), "logprobs": ([],), "phase": ("final_answer",), "encrypted_content": (), "namespace": ()}
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
        for index, item in enumerate(body.input):
            _add(messages, item, f"input[{index}]")
    fields = {
        "model": body.model,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "response_format": _response_format(body),
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        **_tools(body),
    }
    return chat_body(messages, fields)


def _tools(body: ResponsesRequest) -> dict[str, Any]:
    """Tools and their choice, with the function where a chat has it."""
    fields: dict[str, Any] = {}
    if body.tools:
        fields["tools"] = [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in body.tools]
    if body.tool_choice is not None:
        choice = body.tool_choice
        fields["tool_choice"] = choice if isinstance(choice, str) else {"type": "function", "function": {"name": choice.name}}
    return fields


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


def _add(messages: list[dict[str, Any]], item: InputItem, where: str) -> None:
    """Put an item behind the messages: what one answer thought, said and called is one message of a chat."""
    _check_extra(item, where)
    kind = item.type or "message"
    unfit = [name for name in sorted(_TYPED - _FIELDS.get(kind, _TYPED)) if getattr(item, name) is not None]
    if unfit:
        raise InvalidRequestError(f"Unknown field `{where}.{unfit[0]}` in an item of type {kind}.", f"{where}.{unfit[0]}", "unknown_field")
    match kind:
        case "message":
            made = _message(item, where)
        case "function_call":
            function = {"name": _needed(item.name, f"{where}.name"), "arguments": _needed(item.arguments, f"{where}.arguments")}
            call = {"id": _needed(item.call_id, f"{where}.call_id"), "type": "function", "function": function}
            made = {"role": "assistant", "content": "", "tool_calls": [call]}
        case "function_call_output":
            parts = [item.output] if isinstance(item.output, str) else _texts(item.output, f"{where}.output", ("input_text", "output_text"))
            messages.append({"role": "tool", "tool_call_id": _needed(item.call_id, f"{where}.call_id"), "content": "\n".join(parts)})
            return
        case "reasoning":
            thoughts = item.content if isinstance(item.content, list) else []
            made = {
                "role": "assistant",
                "content": "",
                "reasoning_content": "".join(_texts(thoughts, f"{where}.content", ("reasoning_text",))),
            }
        case _:
            raise refuse(f"{where}.type", f"{item.type!r:.60} items are not served.")
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or made["role"] != "assistant" or (last["content"] and made["content"]):
        messages.append(made)
        return
    last["content"] = last["content"] or made["content"]
    for name in ("tool_calls", "reasoning_content"):
        if name in made:
            last[name] = last[name] + made[name] if name in last else made[name]


def _message(item: InputItem, where: str) -> dict[str, Any]:
    if item.role is None:
        raise InvalidRequestError(f"`{where}.role` is required.", f"{where}.role", "invalid_type")
    if item.content is None:
        raise InvalidRequestError(f"`{where}.content` is required.", f"{where}.content", "invalid_type")
    if isinstance(item.content, str):
        return {"role": item.role, "content": item.content}
    parts = [{"type": "text", "text": text} for text in _texts(item.content, f"{where}.content", ("input_text", "output_text"))]
    return {"role": item.role, "content": parts}


def _texts(parts: list[InputPart] | None, where: str, kinds: tuple[str, ...]) -> list[str]:
    if parts is None:
        raise InvalidRequestError(f"`{where}` is required.", where, "invalid_type")
    return [_text(part, f"{where}[{index}]", kinds) for index, part in enumerate(parts)]


def _text(part: InputPart, where: str, kinds: tuple[str, ...]) -> str:
    if part.type not in kinds:
        raise refuse(f"{where}.type", f"{part.type!r:.60} parts are not served here, only {' and '.join(map(repr, kinds))}.")
    _check_extra(part, where)
    return _needed(part.text, f"{where}.text")


def _needed(value: str | None, where: str) -> str:
    if value is None:
        raise InvalidRequestError(f"`{where}` is required.", where, "invalid_type")
    return value


def _check_extra(part: BaseModel, where: str) -> None:
    for name, value in (part.__pydantic_extra__ or {}).items():
        if value is not None and value not in _HARMLESS.get(name, ()):
            raise InvalidRequestError(f"Unknown field `{where}.{name}`.", f"{where}.{name}", "unknown_field")
