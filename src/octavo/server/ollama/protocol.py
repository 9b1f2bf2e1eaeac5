"""The request bodies of Ollama's API: types only, strictly checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.server.protocol import Body
from octavo.server.tool_fields import Tool

_COMMON_NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "truncate": (True, False),
    "shift": (True, False),
}

OPTIONS_NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "logits_all": (),
    "low_vram": (),
    "main_gpu": (),
    "mirostat": (0,),
    "mirostat_eta": (),
    "mirostat_tau": (),
    "num_batch": (),
    "num_gpu": (),
    "num_keep": (),
    "num_thread": (),
    "numa": (),
    "penalize_newline": (),
    "repeat_last_n": (-1,),
    "tfs_z": (1, 1.0),
    "typical_p": (1, 1.0),
    "use_mlock": (),
    "use_mmap": (),
    "vocab_only": (),
}
"""Options of Ollama's that are not served, with the values that ask for nothing."""


class Options(BaseModel):
    """How to sample."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, json_schema_extra={"additionalProperties": False})

    temperature: float | None = Field(default=None, description="0 is greedy (the model's own default).")
    top_k: int | None = Field(default=None, description="0 is off (the model's own default).")
    top_p: float | None = Field(default=None, description="In (0, 1] (the model's own default).")
    min_p: float | None = Field(default=None, description="In [0, 1] (0).")
    num_predict: int | None = Field(default=None, description="Most tokens to generate; -1 and -2 are what the context leaves.")
    num_ctx: int | None = Field(default=None, description="At most the server's context, which stays what it is.")
    seed: int | None = Field(default=None, description="Makes the request's random numbers its own.")
    stop: str | list[str] | None = Field(default=None, description="Strings that end the answer.")
    repeat_penalty: float | None = Field(default=None, description="Above 0 (1).")
    presence_penalty: float | None = Field(default=None, description="In [-2, 2] (0).")
    frequency_penalty: float | None = Field(default=None, description="In [-2, 2] (0).")


class OllamaBody(Body):
    """What ``/api/generate`` and ``/api/chat`` have in common."""

    stream: bool | None = Field(default=None, description="Send the answer while it is made (true).")
    format: Literal["", "json"] | dict[str, Any] | None = Field(default=None, description="json, or a JSON schema that the answer follows.")
    options: Options | None = None
    think: bool | str | None = Field(
        default=None, description="Whether a model that reasons returns its thoughts (true), or how much it thinks."
    )
    keep_alive: str | int | float | None = Field(default=None, description="Changes nothing: the model stays loaded.")


class OllamaGenerateRequest(OllamaBody):
    """``POST /api/generate``: answers a prompt, through the model's chat template unless ``raw``."""

    not_yet: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_COMMON_NOT_YET,
        "context": ([],),
        "images": ([],),
        "suffix": ("",),
        "template": ("",),
    }

    prompt: str | None = Field(default=None, description="The prompt; without one the answer says that the model is loaded.")
    system: str | None = Field(default=None, description="What the model is told first.")
    raw: bool | None = Field(default=None, description="Take the prompt verbatim, without the chat template (false).")


class OllamaFunction(BaseModel):
    """What was called, and with what."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    arguments: dict[str, Any] | None = None
    index: int | None = None


class OllamaToolCall(BaseModel):
    """One call in an assistant's message, as answers give them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    function: OllamaFunction
    id: str | None = None


class OllamaMessage(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = Field(default=None, description="What the assistant thought.")
    tool_calls: list[OllamaToolCall] | None = Field(default=None, description="What the assistant called.")
    tool_name: str | None = Field(default=None, description="What a tool's message is the result of.")
    tool_call_id: str | None = Field(default=None, description="The call that it answers.")


class OllamaChatRequest(OllamaBody):
    """``POST /api/chat``: answers a chat."""

    not_yet: ClassVar[Mapping[str, tuple[Any, ...]]] = {**_COMMON_NOT_YET, "template": ("",)}
    message_not_yet: ClassVar[Mapping[str, tuple[Any, ...]]] = {"images": ([],)}

    messages: list[OllamaMessage] | None = Field(
        default=None, description="The chat; without one the answer says that the model is loaded."
    )
    tools: list[Tool] | None = Field(default=None, description="Functions that the model may call.")


class ShowRequest(BaseModel):
    """``POST /api/show``: what a model is."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra={"additionalProperties": False})
    not_yet: ClassVar[Mapping[str, tuple[Any, ...]]] = {"options": (), "system": ("",), "template": ("",)}

    model: str | None = Field(default=None, description="A served name; the first one when omitted.")
    name: str | None = Field(default=None, description="Older name of model.")
    verbose: bool | None = Field(default=None, description="Changes nothing: the answer is never cut short.")
