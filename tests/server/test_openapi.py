"""The OpenAPI document against the running server: what it names is taken, what it does not name is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from octavo.config import ServerOptions
from octavo.server.app import build_app
from octavo.server.refused_fields import LABELS

UNLIKELY = {"?": [{"?": None}]}
"""No field takes this, whatever its type; one that takes any object is sent a number instead."""


def bodies(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The body's model of every path that has one."""
    found = {}
    for path, methods in document["paths"].items():
        if "requestBody" in methods.get("post", {}):
            schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            found[path] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def takes_objects(schema: dict[str, Any]) -> bool:
    return any(one.get("type") == "object" or "$ref" in one or not one for one in schema.get("anyOf", [schema]))


@pytest.fixture
def document(engine: Any) -> dict[str, Any]:
    return build_app(engine, engine.options, ServerOptions()).openapi()


async def test_every_field_that_a_body_names_is_looked_at(document: dict[str, Any], url: str) -> None:
    """A field that the server ignored would be let through with any value; one that it refuses would have no place in the document."""
    async with httpx.AsyncClient() as http:
        for path, model in bodies(document).items():
            for field, schema in model["properties"].items():
                wrong: Any = 0.5 if takes_objects(schema) else UNLIKELY
                answer = await http.post(url + path, json={**example(model, document), field: wrong})
                assert answer.status_code == 400, f"{path} takes {field} = {wrong}: {answer.text}"
                text = answer.text
                assert field in text, f"{path} does not say that {field} is wrong: {text}"
                assert "unknown_field" not in text and "unsupported_field" not in text, f"{path} names {field} and refuses it: {text}"


async def test_every_field_that_a_body_does_not_name_is_refused(document: dict[str, Any], url: str) -> None:
    models = bodies(document)
    everything = {field for model in models.values() for field in model["properties"]} - LABELS | {"no_such_field"}
    async with httpx.AsyncClient() as http:
        for path, model in models.items():
            assert model.get("additionalProperties") is False, path
            for field in sorted(everything - set(model["properties"])):
                answer = await http.post(url + path, json={field: UNLIKELY, **example(model, document)})
                assert answer.status_code == 400 and field in answer.text, f"{path} takes {field}: {answer.status_code} {answer.text}"


def example(model: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The smallest body that the model takes: its required fields."""
    return {field: _value(model["properties"][field], document) for field in model.get("required", ())}


def _value(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    one = schema.get("anyOf", [schema])[0]
    if "$ref" in one:
        return example(document["components"]["schemas"][one["$ref"].rpartition("/")[2]], document)
    if "enum" in one or "const" in one:
        return "user" if "user" in one.get("enum", ()) else one.get("const", one.get("enum", [None])[0])
    if one.get("type") == "array":
        return [_value(one["items"], document)]
    return {"integer": 1, "number": 1.0, "boolean": False, "string": "a", "object": {}}.get(str(one.get("type")), "a")


async def test_every_path_answers_its_methods_and_no_other(document: dict[str, Any], url: str) -> None:
    async with httpx.AsyncClient() as http:
        for path, methods in document["paths"].items():
            place = url + path.format(name="fake-model")
            for method in ("get", "post"):
                answer = await http.request(method, place, json={} if method == "post" else None)
                if method in methods or (method, path) == ("post", "/ping"):
                    assert answer.status_code != 405 and str(answer.status_code) in methods.get(method, {"responses": "200"})["responses"]
                else:
                    assert answer.status_code == 405 and answer.headers["allow"], f"{method} {path}"


async def test_every_route_asks_for_a_key_where_the_document_has_a_401(engine: Any, serve: Any, document: dict[str, Any]) -> None:
    async with serve(engine, api_key=["key"]) as url, httpx.AsyncClient() as http:
        for path, methods in document["paths"].items():
            for method, told in methods.items():
                answer = await http.request(method, url + path.format(name="fake-model"))
                assert (answer.status_code == 401) == ("401" in told["responses"]), f"{method} {path}: {answer.status_code}"
