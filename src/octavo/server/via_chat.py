"""What the APIs that are not OpenAI's chat have in common: their requests are put as a chat's, and fail in their own words."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.requests import Request

from octavo.errors import InvalidRequestError
from octavo.server import chat_prompt
from octavo.server.chat import ChatDialect
from octavo.server.disconnect import WhileConnected
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.request_body import explain
from octavo.server.request_id import request_id_of
from octavo.server.service import Service

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel


def chat_body(messages: list[dict[str, Any]], fields: Mapping[str, Any]) -> ChatCompletionRequest:
    """A chat request of checked parts; fields that are None count as left out.

    Raises:
        InvalidRequestError: a part is none that a chat may have; named as in a chat.
    """
    raw = {"messages": messages, **{name: value for name, value in fields.items() if value is not None}}
    try:
        return ChatCompletionRequest.model_validate(raw)
    except ValidationError as error:
        raise explain(error, raw) from None


async def served_model(request: Request, service: Service, name: str | None) -> ServedModel:
    """The model a request asks for, once it is there; gives up when the client does."""
    async with WhileConnected(request.receive):
        return await service.model(name)


async def chat_dialect(
    request: Request, service: Service, model: ServedModel, body: ChatCompletionRequest, prefix: str, *, prompt: str | None = None
) -> ChatDialect:
    """The chat that a request was put as, ready to generate.

    Args:
        model: what ``served_model`` gave.
        prefix: of the answer's id.
        prompt: what the model sees; None for the messages through the chat template.

    Raises:
        InvalidRequestError: naming the field of the chat request at fault.
    """
    if prompt is None:
        async with WhileConnected(request.receive):
            prompt = await chat_prompt.render(body.messages, body, model)
    request_id = request_id_of(request.scope)
    chat = ChatDialect(body, prompt, model, service.names[0], request_id, service.options.max_logprobs)
    chat.job.request_id = f"{prefix}{request_id}"
    return chat


@contextlib.contextmanager
def own_names(names: Mapping[str, str]) -> Iterator[None]:
    """Errors raised inside name the fields of the client's own API.

    Args:
        names: a chat's field to the field that it was made of.
    """
    try:
        yield
    except InvalidRequestError as error:
        if error.param is None:
            raise
        field, rest = re.fullmatch(r"(\w*)(.*)", error.param, re.DOTALL).groups()  # type: ignore[union-attr]
        if field not in names:
            raise
        message = re.sub(rf"\b{field}\b(?!=)", names[field], error.message)
        raise InvalidRequestError(message, names[field] + rest, error.code) from None


def arguments_object(arguments: str) -> dict[str, Any]:
    """A call's arguments; those that are no JSON object, which only a model left free writes, as they were written."""
    try:
        parsed = json.loads(arguments)
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"arguments": arguments}


def refuse(field: str, why: str) -> InvalidRequestError:
    """The error of a field that is known and cannot be honoured."""
    return InvalidRequestError(f"`{field}` is not available in this version of Octavo: {why}", field, "unsupported_field")
