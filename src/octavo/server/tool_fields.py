"""The fields by which a request offers tools, and those of messages that call them: types, and what they come to together."""

from __future__ import annotations

import json
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from octavo.errors import InvalidRequestError

MAX_TOOLS = 256
NAME = r"^[A-Za-z0-9_.-]{1,128}$"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Function(_Part):
    """A function on offer. ``parameters`` is a JSON schema of an object."""

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description="Calls that a tool_choice makes fit the schema whether or not it is set.")


class Tool(_Part):
    """One entry of ``tools``."""

    type: Literal["function"]
    function: Function


class ChosenFunction(_Part):
    """The name of the function that must be called."""

    name: str


class NamedTool(_Part):
    """A ``tool_choice`` of one function."""

    type: Literal["function"]
    function: ChosenFunction


class CalledFunction(_Part):
    """What the assistant called; ``arguments`` is JSON text."""

    name: str
    arguments: str


class MessageToolCall(_Part):
    """One call in an assistant's message, as answers give them."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class OffersTools(Protocol):
    """The part of a body that ``offered`` looks at."""

    tools: list[Tool] | None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None


def offered(body: OffersTools) -> list[dict[str, Any]]:
    """The tools that a model is told of, as chat templates take them; none where it may not call any.

    Raises:
        InvalidRequestError: too many, two of one name, or a ``tool_choice`` that they do not allow.
    """
    tools = body.tools or []
    names = [tool.function.name for tool in tools]
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"tools may hold at most {MAX_TOOLS} tools; got {len(tools)}.", "tools")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequestError(f"tools has two functions named {twice!r}; names must differ.", "tools")
    choice = body.tool_choice
    if choice == "required" and not tools:
        raise InvalidRequestError("tool_choice 'required' needs tools.", "tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        known = f"; there are {', '.join(names)}" if names else ""
        raise InvalidRequestError(f"tool_choice names {choice.function.name!r}, which is not among the tools{known}.", "tool_choice")
    return [] if choice == "none" else [tool.model_dump(exclude_none=True) for tool in tools]


def check_calls(calls: list[MessageToolCall], where: str) -> None:
    """Refuse calls in a message whose arguments are no JSON object: templates cannot show them.

    Raises:
        InvalidRequestError: naming the call.
    """
    for index, call in enumerate(calls):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            field = f"{where}.tool_calls[{index}].function.arguments"
            raise InvalidRequestError(f"`{field}` must be the text of a JSON object.", field)
