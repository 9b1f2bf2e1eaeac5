"""The answers of Ollama's API. All durations are nanoseconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

NEVER = "2318-01-01T00:00:00Z"
"""When the model is unloaded: what Ollama says of one that is kept for ever."""


class OllamaCalledFunction(msgspec.Struct):
    """What is called, and with what. ``index`` counts the calls of an answer."""

    index: int
    name: str
    arguments: dict[str, Any]


class OllamaToolCallAnswer(msgspec.Struct):
    """One call of a tool."""

    id: str
    function: OllamaCalledFunction


class OllamaMessageAnswer(msgspec.Struct):
    """The assistant's message, or what is new of it. A call comes whole."""

    content: str
    role: str = "assistant"
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaToolCallAnswer] | UnsetType = UNSET


class OllamaAnswer(msgspec.Struct):
    """The answer of ``/api/generate`` (``response``) and ``/api/chat`` (``message``), and each line of their streams."""

    model: str
    created_at: str
    done: bool
    response: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    message: OllamaMessageAnswer | UnsetType = UNSET
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class ModelDetails(msgspec.Struct):
    """What a model is; empty where it is not known."""

    family: str
    families: list[str]
    parent_model: str = ""
    format: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class TaggedModel(msgspec.Struct):
    """One served name. ``size`` is the weights' bytes, ``digest`` one of the name."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails


class TagList(msgspec.Struct):
    """The answer of ``/api/tags``."""

    models: list[TaggedModel]


class RunningModel(msgspec.Struct):
    """One served name."""

    name: str
    model: str
    size: int
    digest: str
    details: ModelDetails
    expires_at: str
    size_vram: int
    context_length: int


class RunningList(msgspec.Struct):
    """The answer of ``/api/ps``."""

    models: list[RunningModel]


class ShowResponse(msgspec.Struct):
    """The answer of ``/api/show``."""

    template: str
    parameters: str
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(msgspec.Struct):
    """The answer of ``/api/version``."""

    version: str


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 has them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
