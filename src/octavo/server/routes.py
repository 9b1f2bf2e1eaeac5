"""The routes that make tokens: parse, translate to a job, answer. All three share one path (``stream.answer``)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from octavo.errors import InvalidRequestError
from octavo.server import chat_prompt
from octavo.server.chat import ChatDialect
from octavo.server.completions import CompletionDialect
from octavo.server.disconnect import WhileConnected
from octavo.server.generate import GenerateDialect
from octavo.server.openapi import describe_route
from octavo.server.protocol import ChatCompletionRequest, CompletionRequest, GenerateRequest, Message, TemplateFields
from octavo.server.request_body import parse
from octavo.server.request_id import request_id_of
from octavo.server.responses import ChatCompletionResponse, CompletionResponse, GenerateResponse
from octavo.server.service import Service, service_of
from octavo.server.stream import EVENTS, JSON_LINES, answer

router = APIRouter()


@router.post("/v1/completions", tags=["OpenAI"], **describe_route(CompletionRequest, CompletionResponse))
async def create_completion(request: Request) -> Response:
    """Continue a text."""
    service = service_of(request)
    body = await parse(request, CompletionRequest, service.options.max_body_bytes)
    async with WhileConnected(request.receive):
        model = await service.model(body.model)
    dialect = CompletionDialect(body, model, service.names[0], request_id_of(request.scope), service.options.max_logprobs)
    return await answer(request, service, dialect, EVENTS if body.stream else None)


@router.post("/v1/chat/completions", tags=["OpenAI"], **describe_route(ChatCompletionRequest, ChatCompletionResponse))
async def create_chat_completion(request: Request) -> Response:
    """Answer a chat."""
    service = service_of(request)
    body = await parse(request, ChatCompletionRequest, service.options.max_body_bytes)
    async with WhileConnected(request.receive):
        model = await service.model(body.model)
        prompt = await chat_prompt.render(body.messages, body, model)
    dialect = ChatDialect(body, prompt, model, service.names[0], request_id_of(request.scope), service.options.max_logprobs)
    try:
        return await answer(request, service, dialect, EVENTS if body.stream else None)
    except InvalidRequestError as error:
        error.param = "messages" if error.param == "prompt" else error.param
        raise


@router.post("/generate", tags=["Octavo"], **describe_route(GenerateRequest, GenerateResponse))
async def generate(request: Request) -> Response:
    """Answer a prompt; streams are JSON lines, or server-sent events where the client accepts ``text/event-stream``."""
    service = service_of(request)
    body = await parse(request, GenerateRequest, service.options.max_body_bytes)
    async with WhileConnected(request.receive):
        dialect = await _generate_dialect(request, service, body)
    wants_events = "text/event-stream" in request.headers.get("accept", "")
    framing = (EVENTS if wants_events else JSON_LINES) if body.stream else None
    return await answer(request, service, dialect, framing)


async def _generate_dialect(request: Request, service: Service, body: GenerateRequest) -> GenerateDialect:
    model = await service.model(body.model)
    prompt, verbatim = body.prompt, True
    if isinstance(prompt, str) and not body.raw and model.chat_template is not None:
        message = Message(role="user", content=prompt)
        prompt, verbatim = await chat_prompt.render([message], TemplateFields(), model), False
    name, request_id = service.names[0], request_id_of(request.scope)
    return GenerateDialect(body, prompt, model, name, request_id, service.options.max_logprobs, verbatim=verbatim)
