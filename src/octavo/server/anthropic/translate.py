"""From Anthropic's requests to chats."""

from __future__ import annotations

from typing import Any

from octavo.errors import InvalidRequestError
from octavo.server.anthropic.protocol import Block, CountTokensRequest, MessagesRequest
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.via_chat import chat_body, refuse

NAMES = {"stop": "stop_sequences", "prompt": "messages"}
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
    continues = body.messages[-1].role == "assistant"
    return chat_body(_messages(body), {"model": body.model, "continue_final_message": continues, **fields})


def _messages(body: CountTokensRequest) -> list[dict[str, Any]]:
    """The turns behind the system prompt. Turns of one role that follow each other are one turn, as Anthropic has it."""
    made: list[dict[str, Any]] = []
    if system := _texts(body.system, "system"):
        made.append({"role": "system", "content": _parts(system)})
    for index, message in enumerate(body.messages):
        texts = _texts(message.content, f"messages[{index}].content")
        if made and made[-1]["role"] == message.role:
            made[-1]["content"] += _parts(texts)
        else:
            made.append({"role": message.role, "content": _parts(texts)})
    return made


def _parts(texts: list[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _texts(content: str | list[Block] | None, where: str) -> list[str]:
    if content is None or isinstance(content, str):
        return [content] if content else []
    return [_text(block, f"{where}[{index}]") for index, block in enumerate(content)]


def _text(block: Block, where: str) -> str:
    if block.type != "text":
        raise refuse(f"{where}.type", f"{block.type!r:.60} blocks are not served, only 'text'.")
    for name, value in (block.__pydantic_extra__ or {}).items():
        if name == "citations" and not value:  # clients send back what they were given
            continue
        raise InvalidRequestError(f"Unknown field `{where}.{name}`.", f"{where}.{name}", "unknown_field")
    if block.text is None:
        raise InvalidRequestError(f"`{where}.text` is required.", f"{where}.text", "invalid_type")
    return block.text
