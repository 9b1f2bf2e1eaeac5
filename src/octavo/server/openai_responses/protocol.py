"""The request body of OpenAI's responses API: types only, strictly checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.server.protocol import Body
from octavo.server.tool_fields import NAME


class InputPart(BaseModel):
    """One part of a message, of a function's output or of what was thought; only text is served."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    type: str = Field(description="input_text or output_text; reasoning_text in a reasoning item")
    text: str | None = None


class InputItem(BaseModel):
    """One item of the input. Which fields it has goes by its type."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    type: str | None = Field(default=None, description="message (the default), function_call, function_call_output or reasoning")
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = Field(default=None, description="Of a function_call, and of the function_call_output that answers it.")
    name: str | None = Field(default=None, description="What a function_call calls.")
    arguments: str | None = Field(default=None, description="The text of a JSON object: with what a function_call calls it.")
    output: str | list[InputPart] | None = Field(default=None, description="What the function returned.")
    summary: list[Any] | None = Field(default=None, description="Of a reasoning item; changes nothing.")
    id: str | None = Field(default=None, description="Of an item that was answered before; changes nothing.")
    status: str | None = Field(default=None, description="Of an item that was answered before; changes nothing.")


class TextFormat(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(default=None, description="A label.")
    description: str | None = Field(default=None, description="A label.")
    schema_: dict[str, Any] | None = Field(default=None, alias="schema", description="The JSON schema.")
    strict: bool | None = Field(default=None, description="Has no effect: the schema is always held to.")


class TextConfig(BaseModel):
    """How the answer's text is to be."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_obfuscation: Literal[False] | None = Field(default=None, description="Events are never padded.")


class FunctionTool(BaseModel):
    """A function on offer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description="Calls that a tool_choice requires fit the schema whether or not it is set.")


class NamedFunction(BaseModel):
    """A ``tool_choice`` of one function."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    name: str


class ReasoningConfig(BaseModel):
    """How the model is to reason."""

    model_config = ConfigDict(strict=True, extra="forbid")

    effort: str | None = Field(default=None, description="For models whose chat template takes it.")


class ResponsesRequest(Body):
    """``POST /v1/responses``: answers an input. Nothing is stored."""

    not_yet: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "include": ([],),
        "max_tool_calls": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "prompt_cache_options": ({},),
        "prompt_cache_retention": ("in_memory", "in-memory"),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    input: str | list[InputItem] = Field(description="A text, or messages.")
    instructions: str | None = Field(default=None, description="What the model is told first.")
    max_output_tokens: int | None = Field(default=None, description="Most tokens to generate (what the context leaves).")
    temperature: float | None = Field(default=None, description="0 is greedy (1, or the model's own default).")
    top_p: float | None = Field(default=None, description="In (0, 1] (1, or the model's own default).")
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = Field(default=None, description="Functions that the model may call.")
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = Field(default=None, description="Whether an answer may make several calls (true).")
    reasoning: ReasoningConfig | None = None
    metadata: dict[str, str] | None = Field(default=None, description="The client's own notes; the answer has them too.")
    stream: bool | None = Field(default=None, description="Send the answer while it is made.")
    stream_options: ResponseStreamOptions | None = None
