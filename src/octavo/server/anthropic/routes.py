"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from octavo.server import chat_prompt
from octavo.server.anthropic import translate
from octavo.server.anthropic.answers import CountTokensResponse, MessagesResponse
from octavo.server.anthropic.dialect import EVENTS, MessagesDialect
from octavo.server.anthropic.protocol import CountTokensRequest, MessagesRequest
from octavo.server.error_shapes import AnthropicErrorBody
from octavo.server.openapi import describe_route
from octavo.server.request_body import parse
from octavo.server.service import service_of
from octavo.server.stream import answer, json_response
from octavo.server.via_chat import chat_dialect, own_names, served_model

router = APIRouter(tags=["Anthropic"])


@router.post("/v1/messages", **describe_route(MessagesRequest, MessagesResponse, error=AnthropicErrorBody))
async def create_message(request: Request) -> Response:
    """Answer a conversation; an assistant's turn at its end is continued."""
    service = service_of(request)
    body = await parse(request, MessagesRequest, service.options.max_body_bytes)
    asked = translate.chat_of(body)
    model = await served_model(request, service, body.model)
    with own_names(translate.NAMES):
        chat = await chat_dialect(request, service, model, asked, "msg_")
        return await answer(request, service, MessagesDialect(chat, service.names[0]), EVENTS if body.stream else None)


@router.post("/v1/messages/count_tokens", **describe_route(CountTokensRequest, CountTokensResponse, error=AnthropicErrorBody))
async def count_tokens(request: Request) -> Response:
    """How many tokens the model would see."""
    service = service_of(request)
    body = await parse(request, CountTokensRequest, service.options.max_body_bytes)
    asked = translate.chat_of_prompt(body)
    model = await served_model(request, service, body.model)
    text = await chat_prompt.render(asked.messages, asked, model)
    tokens = await asyncio.to_thread(model.tokenizer.encode, text, add_special_tokens=False)
    return json_response(CountTokensResponse(len(tokens)))
