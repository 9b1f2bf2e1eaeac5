"""The request bodies of Anthropic's API: types only, strictly checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.server.protocol import Body
from octavo.server.tool_fields import NAME


class TextInput(BaseModel):
    """One block of the system prompt or of a tool's result; only text is served there."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    type: str = Field(description="text")
    text: str | None = None
    cache_control: dict[str, Any] | None = Field(default=None, description="Changes nothing: prompts are cached by what they hold.")


class Block(TextInput):
    """One block of a message's content. Which fields it has goes by its type."""

    type: str = Field(description="text, tool_use, tool_result, thinking or redacted_thinking")
    id: str | None = Field(default=None, description="Of a tool_use.")
    name: str | None = Field(default=None, description="The tool that a tool_use calls.")
    input: dict[str, Any] | None = Field(default=None, description="The arguments of a tool_use.")
    tool_use_id: str | None = Field(default=None, description="The tool_use that a tool_result answers.")
    content: str | list[TextInput] | None = Field(default=None, description="What a tool_result says: a text or text blocks.")
    is_error: bool | None = Field(default=None, description="Whether a tool_result tells of a failure, which the model is told.")
    thinking: str | None = Field(default=None, description="What an assistant thought.")
    signature: str | None = Field(default=None, description="Of a thinking block; changes nothing.")
    data: str | None = Field(default=None, description="Of a redacted_thinking block, which is left out.")


class InputMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(BaseModel):
    """A tool of the client's own."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(pattern=NAME)
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = Field(default=None, description="Calls that a tool_choice requires fit the schema whether or not it is set.")
    cache_control: dict[str, Any] | None = Field(default=None, description="Changes nothing: prompts are cached by what they hold.")


class AnthropicToolChoice(BaseModel):
    """Whether tools are used: as the model likes, at least one, the one named, or none."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(BaseModel):
    """Whether the thoughts of a model that reasons are returned. How long it thinks is its own affair: no budget can be set."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["disabled", "adaptive"]
    display: Literal["summarized"] | None = None


class CountTokensRequest(Body):
    """``POST /v1/messages/count_tokens``: how long a prompt is."""

    not_yet: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "container": (),
        "context_management": (),
        "inference_geo": (),
        "mcp_servers": ([],),
        "output_config": ({},),
        "output_format": (),
        "service_tier": ("auto", "standard_only"),
        "speed": ("standard",),
    }

    messages: list[InputMessage] = Field(min_length=1)
    system: str | list[TextInput] | None = Field(default=None, description="What the model is told first.")
    tools: list[AnthropicTool] | None = Field(default=None, description="What the model may use.")
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    cache_control: dict[str, Any] | None = Field(default=None, description="Changes nothing: prompts are cached by what they hold.")


class MessagesRequest(CountTokensRequest):
    """``POST /v1/messages``: answers a conversation."""

    max_tokens: int = Field(description="Most tokens to generate.")
    stop_sequences: list[str] | None = Field(default=None, description="Strings that end the answer.")
    temperature: float | None = Field(default=None, description="In [0, 1] (the model's own default).")
    top_p: float | None = Field(default=None, description="In (0, 1] (the model's own default).")
    top_k: int | None = Field(default=None, description="0 is off (the model's own default).")
    stream: bool | None = Field(default=None, description="Send the answer while it is made.")
