"""``/v1/models``: the served names."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from octavo.errors import ModelNotFoundError
from octavo.server.error_shapes import ErrorBody
from octavo.server.openapi import describe_route
from octavo.server.responses import ModelCard, ModelList
from octavo.server.service import Service, service_of
from octavo.server.stream import json_response

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models", **describe_route(None, ModelList, {401: ErrorBody, 503: ErrorBody}))
async def list_models(request: Request) -> Response:
    """The served names; the first is the one that answers carry."""
    return json_response(ModelList(_cards(service_of(request))))


@router.get("/v1/models/{name:path}", **describe_route(None, ModelCard, {401: ErrorBody, 404: ErrorBody, 503: ErrorBody}))
async def get_model(request: Request, name: str) -> Response:
    """One served name."""
    cards = {card.id: card for card in _cards(service_of(request))}
    if name not in cards:
        raise ModelNotFoundError(f"The model `{name}` does not exist. This server has {', '.join(f'`{known}`' for known in cards)}.")
    return json_response(cards[name])


def _cards(service: Service) -> list[ModelCard]:
    model = service.known_model()
    return [ModelCard(name, service.started, model.name, model.max_model_len) for name in service.names]
