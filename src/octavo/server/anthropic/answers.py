"""The answers of Anthropic's API, and the events of its streams. Each event's tag is its type and its name."""

from __future__ import annotations

from typing import Any

import msgspec


class AnthropicUsage(msgspec.Struct):
    """Tokens read and made. ``input_tokens`` are those of the prompt that were not found in the prefix cache."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    """A text."""

    text: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: dict[str, Any]


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought. There is nothing to sign: thoughts come back as they are."""

    thinking: str
    signature: str = ""


AnswerBlock = TextBlock | ToolUseBlock | ThinkingBlock


class MessagesResponse(msgspec.Struct, tag_field="type", tag="message"):
    """The answer of ``/v1/messages``."""

    id: str
    model: str
    content: list[AnswerBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage
    role: str = "assistant"


class CountTokensResponse(msgspec.Struct):
    """The answer of ``/v1/messages/count_tokens``."""

    input_tokens: int


# ---- events ----------------------------------------------------------------------------------------------------------


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """The message, still empty."""

    message: MessagesResponse


class ContentBlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """A block begins, still empty."""

    index: int
    content_block: AnswerBlock


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """What is new of a text."""

    text: str


class InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """What is new of a call's arguments, as JSON text."""

    partial_json: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """What is new of a thought."""

    thinking: str


class ContentBlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """What is new of a block."""

    index: int
    delta: TextDelta | InputJsonDelta | ThinkingDelta


class ContentBlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """A block is whole."""

    index: int


class StopDelta(msgspec.Struct):
    """Why the message ended."""

    stop_reason: str | None
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The end of the message, with the final usage."""

    delta: StopDelta
    usage: AnthropicUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The last event."""
