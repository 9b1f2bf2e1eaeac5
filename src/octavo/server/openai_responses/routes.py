"""``/v1/responses``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from octavo.server.openai_responses import translate
from octavo.server.openai_responses.answers import ResponsesResponse
from octavo.server.openai_responses.dialect import ResponsesDialect
from octavo.server.openai_responses.protocol import ResponsesRequest
from octavo.server.openapi import describe_route
from octavo.server.request_body import parse
from octavo.server.service import service_of
from octavo.server.stream import answer
from octavo.server.via_chat import chat_dialect, own_names, served_model

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/responses", **describe_route(ResponsesRequest, ResponsesResponse))
async def create_response(request: Request) -> Response:
    """Answer an input; nothing is stored."""
    service = service_of(request)
    body = await parse(request, ResponsesRequest, service.options.max_body_bytes)
    with own_names(translate.NAMES):
        asked = translate.chat_of(body)
        model = await served_model(request, service, body.model)
        chat = await chat_dialect(request, service, model, asked, "resp_")
        dialect = ResponsesDialect(body, chat, service.names[0])
        return await answer(request, service, dialect, dialect.framing if body.stream else None)
