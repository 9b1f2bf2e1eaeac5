"""The FastAPI application: routes, errors and middleware put together around one engine client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

import octavo
from octavo.config import EngineOptions, ServerOptions
from octavo.errors import OctavoError
from octavo.server import models, openapi, probes, routes, tokenize, tracing, unavailable
from octavo.server.anthropic import routes as anthropic_routes
from octavo.server.auth import ApiKeys
from octavo.server.disconnect import ClientDisconnectedError
from octavo.server.errors import InternalErrors, answer_http_exception, answer_nobody, answer_octavo_error
from octavo.server.load_log import log_load
from octavo.server.ollama import routes as ollama_routes
from octavo.server.openai_responses import routes as responses_routes
from octavo.server.request_id import RequestIds
from octavo.server.service import Service

if TYPE_CHECKING:
    from octavo.frontend.client import EngineClient


def build_app(client: EngineClient, engine: EngineOptions, server: ServerOptions) -> FastAPI:
    """Make the application. Its lifespan starts the client, which loads in the background, and shuts it down.

    Args:
        client: the engine's client, not started.
        engine: the engine's options. server: the server's.

    Raises:
        ConfigError: traces are asked for and cannot be made.
    """
    spans = tracing.start(server.otlp_traces_endpoint) if server.otlp_traces_endpoint else None
    service = Service(client, engine, server, spans)
    app = FastAPI(
        title="Octavo",
        version=octavo.__version__,
        description="Large language models over HTTP: OpenAI's API and a short one of its own.",
        lifespan=lambda app: _lifespan(service),
        redoc_url=None,
    )
    app.state.service = service
    for feature in (routes, responses_routes, anthropic_routes, ollama_routes, models, tokenize, probes, unavailable):
        app.include_router(feature.router)
    openapi.install(app)
    app.add_exception_handler(OctavoError, answer_octavo_error)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(ClientDisconnectedError, answer_nobody)
    # The last one added is the outermost: a request gets its id, then CORS (preflights bring no key), the key check, the routes.
    app.add_middleware(InternalErrors)
    if spans is not None:
        app.add_middleware(tracing.TraceContexts)
    if server.api_key:
        app.add_middleware(ApiKeys, keys=server.api_key)
    if server.allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=server.allowed_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(RequestIds)
    return app


@contextlib.asynccontextmanager
async def _lifespan(service: Service) -> AsyncIterator[None]:
    await service.client.start()
    background = None if service.options.disable_log_stats else asyncio.create_task(log_load(service))
    try:
        yield
    finally:
        if background is not None:
            background.cancel()
        await service.client.shutdown()
        if service.tracing is not None:
            await asyncio.to_thread(service.tracing.shutdown)
