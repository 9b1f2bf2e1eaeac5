"""``/api/generate`` and ``/api/chat``, and what Ollama's clients ask before them."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

import octavo
from octavo.server.error_shapes import OllamaErrorBody
from octavo.server.ollama import catalogue, translate
from octavo.server.ollama.answers import (
    OllamaAnswer,
    OllamaMessageAnswer,
    OllamaVersion,
    RunningList,
    ShowResponse,
    TagList,
    timestamp,
)
from octavo.server.ollama.dialect import LINES, OllamaDialect
from octavo.server.ollama.protocol import OllamaChatRequest, OllamaGenerateRequest, ShowRequest
from octavo.server.openapi import describe_route
from octavo.server.request_body import Model, parse
from octavo.server.service import Service, service_of
from octavo.server.stream import answer, json_response
from octavo.server.via_chat import chat_dialect, own_names, served_model

router = APIRouter(tags=["Ollama"])


@router.post("/api/generate", **describe_route(OllamaGenerateRequest, OllamaAnswer, error=OllamaErrorBody))
async def generate(request: Request) -> Response:
    """Answer a prompt, in JSON lines unless ``stream`` is false."""
    arrival, service = time.monotonic(), service_of(request)
    body = await _parse(request, OllamaGenerateRequest, service)
    translate.check_options(body)
    model = await served_model(request, service, translate.served_name(body.model, service))
    loaded = time.monotonic()
    if not body.prompt:
        return json_response(_loaded(service, as_message=False))
    asked, verbatim = translate.chat_of_prompt(body, model)
    with own_names({**translate.NAMES, "messages": "prompt"}):
        chat = await chat_dialect(request, service, model, asked, "ollama-", prompt=verbatim)
        dialect = OllamaDialect(chat, service.names[0], arrival, loaded, as_message=False)
        return await answer(request, service, dialect, None if body.stream is False else LINES)


@router.post("/api/chat", **describe_route(OllamaChatRequest, OllamaAnswer, error=OllamaErrorBody))
async def chat(request: Request) -> Response:
    """Answer a chat, in JSON lines unless ``stream`` is false."""
    arrival, service = time.monotonic(), service_of(request)
    body = await _parse(request, OllamaChatRequest, service)
    translate.check_options(body)
    model = await served_model(request, service, translate.served_name(body.model, service))
    loaded = time.monotonic()
    if not body.messages:
        return json_response(_loaded(service, as_message=True))
    asked = translate.chat_of(body, model)
    with own_names({**translate.NAMES, "prompt": "messages"}):
        chat = await chat_dialect(request, service, model, asked, "ollama-")
        dialect = OllamaDialect(chat, service.names[0], arrival, loaded, as_message=True)
        return await answer(request, service, dialect, None if body.stream is False else LINES)


@router.get("/api/tags", **describe_route(None, TagList, {401: OllamaErrorBody}))
async def tags(request: Request) -> Response:
    """The served names."""
    return json_response(TagList(catalogue.tagged(service_of(request))))


@router.get("/api/ps", **describe_route(None, RunningList, {401: OllamaErrorBody}))
async def ps(request: Request) -> Response:
    """The served names again: what is served is loaded, and stays so."""
    return json_response(RunningList(catalogue.running(service_of(request))))


@router.post("/api/show", **describe_route(ShowRequest, ShowResponse, error=OllamaErrorBody))
async def show(request: Request) -> Response:
    """What a model is."""
    service = service_of(request)
    body = await _parse(request, ShowRequest, service)
    model = await served_model(request, service, translate.served_name(body.model or body.name, service))
    return json_response(catalogue.shown(service, model))


@router.get("/api/version", **describe_route(None, OllamaVersion, {401: OllamaErrorBody}))
async def version() -> Response:
    """Octavo's version."""
    return json_response(OllamaVersion(octavo.__version__))


async def _parse(request: Request, model: type[Model], service: Service) -> Model:
    """Ollama's users send JSON without saying so. Browsers, which name an origin, have to say it, or any page could send requests."""
    return await parse(request, model, service.options.max_body_bytes, any_type="origin" not in request.headers)


def _loaded(service: Service, *, as_message: bool) -> OllamaAnswer:
    """What a request without a prompt is for: to have the model loaded, which it is."""
    made = OllamaAnswer(service.names[0], timestamp(time.time()), done=True, done_reason="load")
    if as_message:
        made.message = OllamaMessageAnswer("")
    else:
        made.response = ""
    return made
