"""The request bodies of Anthropic's API: types only, strictly checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.server.protocol import Body


class Block(BaseModel):
    """One block of a message's content or of the system prompt; only text is served."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    type: str = Field(description="text")
    text: str | None = None
    cache_control: dict[str, Any] | None = Field(default=None, description="Changes nothing: prompts are cached by what they hold.")


class InputMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["user", "assistant"]
    content: str | list[Block]


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
        "thinking": ({"type": "disabled"},),
        "tool_choice": ({"type": "none"}, {"type": "auto"}),
        "tools": ([],),
    }

    messages: list[InputMessage] = Field(min_length=1)
    system: str | list[Block] | None = Field(default=None, description="What the model is told first.")
    cache_control: dict[str, Any] | None = Field(default=None, description="Changes nothing: prompts are cached by what they hold.")


class MessagesRequest(CountTokensRequest):
    """``POST /v1/messages``: answers a conversation."""

    max_tokens: int = Field(description="Most tokens to generate.")
    stop_sequences: list[str] | None = Field(default=None, description="Strings that end the answer.")
    temperature: float | None = Field(default=None, description="In [0, 1] (the model's own default).")
    top_p: float | None = Field(default=None, description="In (0, 1] (the model's own default).")
    top_k: int | None = Field(default=None, description="0 is off (the model's own default).")
    stream: bool | None = Field(default=None, description="Send the answer while it is made.")
