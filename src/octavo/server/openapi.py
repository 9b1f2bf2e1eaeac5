"""The description of the API: routes read their bodies themselves, so their models are put into the OpenAPI document here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from octavo.server.error_shapes import ErrorBody

_REF = "#/components/schemas/"
_STATUSES = {
    400: "Wrong input; `param` names the field",
    401: "Missing or wrong key",
    404: "Unknown model",
    413: "Body too large",
    415: "Body not declared as JSON",
    429: "Queue full; see Retry-After",
    500: "Internal error",
    503: "Loading, draining or restarting; see Retry-After",
}
_requests: dict[str, type[BaseModel]] = {}
_responses: dict[str, type[msgspec.Struct]] = {}


def describe_route(
    request: type[BaseModel] | None,
    response: type[msgspec.Struct],
    also: Mapping[int, type[msgspec.Struct]] | None = None,
    error: type[msgspec.Struct] = ErrorBody,
) -> dict[str, Any]:
    """Keyword arguments of a route: what it takes and what it answers.

    Args:
        request: the body's model; None for a route without one.
        response: the answer's struct.
        also: what other statuses answer. With a body, these come on top of the usual errors.
        error: how those are spelled.
    """
    bodies = dict.fromkeys(_STATUSES, error) if request is not None else {}
    answers = {200: {"description": "The answer", "content": _json(response)}}
    answers |= {status: {"description": _STATUSES[status], "content": _json(body)} for status, body in (bodies | dict(also or {})).items()}
    extra: dict[str, Any] = {"responses": {str(status): answer for status, answer in answers.items()}}
    if request is not None:
        _requests[request.__name__] = request
        extra["requestBody"] = {"required": True, "content": _reference(request.__name__)}
    return {"response_model": None, "openapi_extra": extra}


def describe_refusal(status: int, text: str) -> dict[str, Any]:
    """Keyword arguments of a route that always answers with an error."""
    answers = {str(code): {"description": told, "content": _json(ErrorBody)} for code, told in ((401, _STATUSES[401]), (status, text))}
    return {"response_model": None, "status_code": status, "openapi_extra": {"responses": answers}}


def install(app: FastAPI) -> None:
    """Make ``/openapi.json`` hold the models that ``describe_route`` refers to. Built when first read."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                operation["responses"].pop("422", None)  # FastAPI's own answer to wrong parameters, which no route here gives
            document["components"] = {"schemas": _schemas()}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schemas() -> dict[str, Any]:
    _, definitions = models_json_schema([(model, "validation") for model in _requests.values()], ref_template=_REF + "{model}")
    _, components = msgspec.json.schema_components(list(_responses.values()), ref_template=_REF + "{name}")
    if twice := definitions["$defs"].keys() & components.keys():
        raise ValueError(f"bodies and answers must have different names in the document: {sorted(twice)}")
    return {**definitions["$defs"], **components}


def _json(body: type[msgspec.Struct]) -> dict[str, Any]:
    _responses[body.__name__] = body
    return _reference(body.__name__)


def _reference(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF + name}}}
