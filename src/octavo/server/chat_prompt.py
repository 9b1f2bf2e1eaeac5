"""From a chat's messages to the text that the model sees, through its chat template."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.frontend.chat_template import RESERVED_VARIABLES
from octavo.frontend.tool_calls.prompt import describe_tools
from octavo.server.protocol import Message, TemplateFields
from octavo.server.tool_fields import check_calls, offered

if TYPE_CHECKING:
    from octavo.frontend.chat_template import ChatTemplate
    from octavo.frontend.served_model import ServedModel

LONG_CHAT_CHARS = 65_536
"""From this length on a chat is rendered in a thread."""


async def render(messages: list[Message], fields: TemplateFields, model: ServedModel) -> str:
    """Put messages through the model's chat template.

    Raises:
        InvalidRequestError: the model has no template, the template refuses the messages, a tool or a message is malformed, or
            fields contradict each other.
    """
    template = model.chat_template
    if template is None:
        raise InvalidRequestError(
            "The model has no chat template: use /v1/completions, or start the server with --chat-template FILE.", "messages"
        )
    if reserved := sorted(RESERVED_VARIABLES & (fields.chat_template_kwargs or {}).keys()):
        raise InvalidRequestError(f"chat_template_kwargs may not set {', '.join(reserved)}.", "chat_template_kwargs")
    continues = bool(fields.continue_final_message)
    chat, tools = [_shape(index, message) for index, message in enumerate(messages)], offered(fields)
    if not model.tool_format.in_template:
        chat, tools = describe_tools(chat, tools), []
    render = functools.partial(
        template.render,
        chat,
        add_generation_prompt=not continues if fields.add_generation_prompt is None else fields.add_generation_prompt,
        continue_final_message=continues,
        tools=tools or None,
        documents=_documents(fields, template),
        **_reasoning_effort(fields, template),
        **fields.chat_template_kwargs or {},
    )
    long = sum(_num_chars(message) for message in messages) >= LONG_CHAT_CHARS
    return await asyncio.to_thread(render) if long else render()


def _shape(index: int, message: Message) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.content is None and message.role != "assistant":
        raise InvalidRequestError(f"`{where}.content` is required.", f"{where}.content")
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequestError(f"`{where}.tool_calls` is only for messages of the assistant.", f"{where}.tool_calls")
    if message.tool_call_id is not None and message.role != "tool":
        raise InvalidRequestError(f"`{where}.tool_call_id` is only for messages of the role tool.", f"{where}.tool_call_id")
    check_calls(message.tool_calls or [], where)
    return message.for_template()


def _documents(fields: TemplateFields, template: ChatTemplate) -> list[dict[str, Any]] | None:
    if fields.documents and "documents" not in template.source:
        raise InvalidRequestError("The model's chat template takes no documents; put them into a message.", "documents")
    return fields.documents or None


def _reasoning_effort(fields: TemplateFields, template: ChatTemplate) -> dict[str, Any]:
    """The variables of the template that a reasoning effort sets."""
    effort = fields.reasoning_effort
    if effort is None:
        return {}
    if "reasoning_effort" in template.source:
        return {"reasoning_effort": effort}
    if effort == "none" and "enable_thinking" in template.source:
        return {"enable_thinking": False}
    raise InvalidRequestError(f"The model's chat template takes no reasoning_effort {effort!r}; leave it out.", "reasoning_effort")


def _num_chars(message: Message) -> int:
    content = message.content or ""
    return len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
