"""From a chat's messages to the text that the model sees, through its chat template."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.frontend.chat_template import RESERVED_VARIABLES
from octavo.server.protocol import Message, TemplateFields

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel

LONG_CHAT_CHARS = 65_536
"""From this length on a chat is rendered in a thread."""


async def render(messages: list[Message], fields: TemplateFields, model: ServedModel) -> str:
    """Put messages through the model's chat template.

    Raises:
        InvalidRequestError: the model has no template, the template refuses the messages, or fields contradict each other.
    """
    template = model.chat_template
    if template is None:
        raise InvalidRequestError(
            "The model has no chat template: use /v1/completions, or start the server with --chat-template FILE.", "messages"
        )
    if reserved := sorted(RESERVED_VARIABLES & (fields.chat_template_kwargs or {}).keys()):
        raise InvalidRequestError(f"chat_template_kwargs may not set {', '.join(reserved)}.", "chat_template_kwargs")
    continues = bool(fields.continue_final_message)
    render = functools.partial(
        template.render,
        [_shape(index, message) for index, message in enumerate(messages)],
        add_generation_prompt=not continues if fields.add_generation_prompt is None else fields.add_generation_prompt,
        continue_final_message=continues,
        **fields.chat_template_kwargs or {},
    )
    long = sum(_num_chars(message) for message in messages) >= LONG_CHAT_CHARS
    return await asyncio.to_thread(render) if long else render()


def _shape(index: int, message: Message) -> dict[str, Any]:
    if message.content is None and message.role != "assistant":
        raise InvalidRequestError(f"`messages[{index}].content` is required.", f"messages[{index}].content")
    return message.for_template()


def _num_chars(message: Message) -> int:
    content = message.content or ""
    return len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
