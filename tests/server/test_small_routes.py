"""Models, tokenizer, probes and the API's own description."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

import octavo
from octavo.metrics import EngineFigures
from octavo.server.load_log import line
from octavo.server.service import Service


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.get(url)


async def post(url: str, body: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(url, json=body)


async def test_models_lists_every_served_name(engine: Any, serve: Any) -> None:
    async with serve(engine, served_model_name=["org/first", "second"]) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        models = [model async for model in client.models.list()]
        one: Any = await client.models.retrieve("org/first")
        with pytest.raises(openai.NotFoundError, match="`second`"):
            await client.models.retrieve("third")
    assert [model.id for model in models] == ["org/first", "second"]
    assert one.object == "model" and one.max_model_len == 1000 and one.root == "fake-model"


async def test_tokenize_takes_text_and_chats_and_detokenize_undoes_it(engine: Any, url: str) -> None:
    text = (await post(f"{url}/tokenize", {"prompt": "ab", "return_token_strs": True})).json()
    assert text == {"count": 3, "max_model_len": 1000, "tokens": [1, 97, 98], "token_strs": ["\x01", "a", "b"]}
    plain = (await post(f"{url}/tokenize", {"prompt": "ab", "add_special_tokens": False})).json()
    assert plain["tokens"] == [97, 98] and plain["token_strs"] is None
    chat = (await post(f"{url}/tokenize", {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False})).json()
    assert (await post(f"{url}/detokenize", {"tokens": chat["tokens"]})).json() == {"prompt": "<user>a"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/detokenize", {"tokens": [0x3000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1], "temperature": 1}, "temperature"),
    ],
)
async def test_wrong_input_is_refused(url: str, path: str, body: dict[str, Any], param: str) -> None:
    answer = await post(url + path, body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


async def test_probes(engine: Any, url: str) -> None:
    assert (await get(f"{url}/version")).json() == {"version": octavo.__version__}
    assert (await get(f"{url}/load")).json() == {"server_load": 0}
    async with httpx.AsyncClient() as http:
        assert (await http.head(f"{url}/health")).status_code == 200
        assert (await http.post(f"{url}/ping")).status_code == 200
    engine.phase = "restarting"
    assert (await get(f"{url}/ping")).status_code == 503 and (await get(f"{url}/health")).json()["phase"] == "restarting"


async def test_openapi_describes_the_real_requests_and_answers(url: str) -> None:
    document = (await get(f"{url}/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path, model in (
        ("/v1/chat/completions", "ChatCompletionRequest"),
        ("/v1/completions", "CompletionRequest"),
        ("/generate", "GenerateRequest"),
    ):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{model}"}
        assert {"temperature", "top_k", "stream_options", "cache_salt"} <= set(schemas[model]["properties"])
        assert schemas[model]["additionalProperties"] is False
    missing = {ref for ref in _references(document) if ref.removeprefix("#/components/schemas/") not in schemas}
    assert not missing
    assert (await get(f"{url}/docs")).status_code == 200


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        return {value for key, value in node.items() if key == "$ref"} | {ref for value in node.values() for ref in _references(value)}
    return {ref for value in node for ref in _references(value)} if isinstance(node, list) else set()


async def test_root_path_is_stripped_and_open_routes_stay_open(engine: Any, serve: Any) -> None:
    async with serve(engine, root_path="/llm", api_key=["key"]) as url:
        assert (await get(f"{url}/health")).status_code == 200
        assert (await get(f"{url}/v1/models")).status_code == 401


async def test_request_id_of_the_client_is_kept_where_it_is_sane(url: str) -> None:
    async with httpx.AsyncClient() as http:
        kept = await http.post(f"{url}/v1/completions", json={"prompt": "a"}, headers={"x-request-id": "my-id"})
        drawn = await http.post(f"{url}/v1/completions", json={"prompt": "a"}, headers={"x-request-id": "a b" * 99})
    assert kept.headers["x-request-id"] == "my-id" and kept.json()["id"] == "cmpl-my-id"
    assert drawn.headers["x-request-id"] in drawn.json()["id"] and " " not in drawn.headers["x-request-id"]


async def test_line_of_load_tells_the_figures(engine: Any) -> None:
    service = Service(engine, engine.options, None)  # type: ignore[arg-type]
    service.metrics.engines[0].update(EngineFigures(3, 4, 0.25, prefix_queries=10, prefix_hits=5))
    assert line(service, 100.0, 20.5) == (
        "load: 3 running, 4 waiting, prompt 100.0 tokens/s, generation 20.5 tokens/s, KV pages 25.0% used, prefix cache 50.0% hit"
    )
