"""What probes, scrapers and balancers ask: health, load, version, metrics. All but ``/load`` are open without a key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

import octavo
from octavo.server.error_shapes import ErrorBody
from octavo.server.openapi import describe_route
from octavo.server.responses import Health, Load, Version
from octavo.server.service import service_of
from octavo.server.stream import json_response

router = APIRouter(tags=["Probes"])

_RETRY_SECONDS = {"starting": 1, "downloading": 5, "loading": 2, "restarting": 2, "draining": 1, "failed": 30}


@router.get("/health", **describe_route(None, Health, {503: Health}))
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 when requests are served; 503 with the phase and Retry-After otherwise."""
    client = service_of(request).client
    if client.phase == "ready":
        return json_response(Health("ok", "ready", 1.0))
    retry = {"Retry-After": str(_RETRY_SECONDS.get(client.phase, 1))}
    return json_response(Health("unavailable", client.phase, client.progress), 503, retry)


@router.get("/ping", **describe_route(None, Health, {503: Health}))
@router.post("/ping", include_in_schema=False)
async def ping(request: Request) -> Response:
    """The same under the name that SageMaker asks for."""
    return await health(request)


@router.get("/load", **describe_route(None, Load, {401: ErrorBody}))
async def load(request: Request) -> Response:
    """How many requests have not ended."""
    return json_response(Load(service_of(request).in_flight))


@router.get("/version", **describe_route(None, Version))
async def version() -> Response:
    """Octavo's version."""
    return json_response(Version(octavo.__version__))


@router.get("/metrics", response_class=PlainTextResponse, response_model=None)
async def metrics(request: Request) -> Response:
    """Everything counted, in Prometheus's text format."""
    return Response(service_of(request).update_metrics().render(), media_type=CONTENT_TYPE_LATEST)
