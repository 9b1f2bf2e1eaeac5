"""Ollama's routes as its clients call them: JSON without a content type, answered in JSON lines."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

import octavo
from octavo.errors import EngineDeadError

USER = [{"role": "user", "content": "hi"}]
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
ROUTES = [("/api/generate", {"prompt": "hi"}), ("/api/chat", {"messages": USER})]


async def post(url: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(url + path, content=json.dumps(body), headers=headers)


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/x-ndjson"), answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def text_of(line: dict[str, Any]) -> str:
    return str(line["message"]["content"] if "message" in line else line["response"])


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_stream_is_the_default_and_says_the_same_as_the_whole_answer(engine: Any, url: str, path: str, body: Any) -> None:
    whole = (await post(url, path, {**body, "stream": False})).json()
    lines = lines_of(await post(url, path, body))
    assert "".join(map(text_of, lines)) == text_of(whole) == "Paris" and len(lines) > 2
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    last = lines[-1]
    assert set(last) == set(whole) and "total_duration" not in lines[0]
    for made in (last, whole):
        assert (made["model"], made["done_reason"]) == ("fake-model", "stop") and made["created_at"].endswith("Z")
        assert (made["prompt_eval_count"], made["eval_count"]) == (len("<user>hi<assistant>"), 5)
        assert all(type(made[name]) is int and made[name] >= 0 for name in DURATIONS)
        assert made["prompt_eval_duration"] == 10_000_000 and made["eval_duration"] == 480_000_000  # as the engine told


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_options_reach_the_engine(engine: Any, url: str, path: str, body: Any) -> None:
    options = {
        "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "num_predict": 3, "num_ctx": 1000, "seed": 4, "stop": ["x"],
        "repeat_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": -1, "mirostat": 0, "typical_p": 1.0,
    }  # fmt: skip
    made = (await post(url, path, {**body, "options": options, "stream": False, "keep_alive": "5m"})).json()
    assert (text_of(made), made["done_reason"]) == ("Par", "length")
    params = engine.submitted[0].params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.5, 7, 0.9, 0.1)
    assert (params.max_tokens, params.seed, params.stop, params.repetition_penalty) == (3, 4, ["x"], 1.1)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)


async def test_generate_uses_the_template_unless_raw(engine: Any, url: str) -> None:
    await post(url, "/api/generate", {"prompt": "hi", "system": "S"})
    await post(url, "/api/generate", {"prompt": "hi", "raw": True})
    engine.template = None
    await post(url, "/api/generate", {"prompt": "hi"})
    assert [(request.prompt, request.special) for request in engine.submitted] == [
        ("<system>S<user>hi<assistant>", False),
        ("hi", True),
        ("hi", True),
    ]


async def test_chat_continues_an_assistant_s_last_message(engine: Any, url: str) -> None:
    await post(url, "/api/chat", {"messages": [*USER, {"role": "assistant", "content": "Once", "tool_calls": []}]})
    assert engine.submitted[0].prompt == "<user>hi<assistant>Once"


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_format_is_the_form_of_the_answer(engine: Any, url: str, path: str, body: Any) -> None:
    schema = {"type": "object"}
    for form in ("json", schema, ""):
        assert (await post(url, path, {**body, "format": form})).status_code == 200
    forms = [request.params.structured_outputs for request in engine.submitted]
    assert (forms[0].json_object, json.loads(forms[1].json), forms[2]) == (True, schema, None)


@pytest.mark.parametrize("limit", [-1, -2])
async def test_num_predict_without_a_limit_is_what_the_context_leaves(engine: Any, url: str, limit: int) -> None:
    await post(url, "/api/generate", {"prompt": "hi", "options": {"num_predict": limit}})
    assert engine.submitted[0].params.max_tokens is None


@pytest.mark.parametrize(("path", "body"), [("/api/generate", {}), ("/api/chat", {"messages": []})])
async def test_request_without_a_prompt_says_that_the_model_is_loaded(engine: Any, url: str, path: str, body: Any) -> None:
    made = (await post(url, path, {"model": "fake-model", **body})).json()
    assert (made["done"], made["done_reason"], text_of(made)) == (True, "load", "") and not engine.submitted


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("/api/generate", {"suffix": "x"}, "`suffix`"),
        ("/api/generate", {"images": ["aa"]}, "`images`"),
        ("/api/generate", {"template": "x"}, "`template`"),
        ("/api/generate", {"context": [1]}, "`context`"),
        ("/api/generate", {"think": True}, "`think`"),
        ("/api/generate", {"prompt": "a" * 1000}, "maximum context length"),
        ("/api/generate", {"raw": True, "system": "S"}, "system"),
        ("/api/generate", {"format": "xml"}, "format"),
        ("/api/generate", {"options": {"num_ctx": 1001}}, "options.num_ctx must be in [1, 1000]"),
        ("/api/generate", {"options": {"num_predict": 0}}, "options.num_predict must be"),
        ("/api/generate", {"options": {"repeat_penalty": 0}}, "options.repeat_penalty must be"),
        ("/api/generate", {"options": {"temperature": -1}}, "options.temperature must be"),
        ("/api/generate", {"options": {"num_gpu": 1}}, "`options.num_gpu`"),
        ("/api/generate", {"options": {"top_kk": 1}}, "Did you mean `options.top_k`?"),
        ("/api/generate", {"stop": ["x"]}, "Unknown field `stop`"),
        ("/api/chat", {"tools": [{}]}, "`tools[0].type`"),
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["aa"]}]}, "`messages[0].images`"),
        ("/api/chat", {"messages": [{"role": "user", "text": "a"}]}, "`messages[0].text`"),
        ("/api/chat", {"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ("/api/chat", {"messages": {}}, "`messages` must be an array"),
    ],
)
async def test_wrong_fields_are_refused_by_name_in_ollama_s_shape(
    engine: Any, url: str, path: str, fields: dict[str, Any], words: str
) -> None:
    body = {"prompt": "hi"} if path == "/api/generate" else {"messages": USER}
    answer = await post(url, path, {**body, **fields})
    assert answer.status_code == 400 and set(answer.json()) == {"error"} and words in answer.json()["error"], answer.text
    assert not engine.submitted


async def test_names_are_known_with_and_without_latest(engine: Any, url: str) -> None:
    for name, status in (("fake-model", 200), ("fake-model:latest", 200), ("fake-model:7b", 404)):
        for path, body in ROUTES:
            answer = await post(url, path, {**body, "model": name})
            assert answer.status_code == status, answer.text
    assert "fake-model" in answer.json()["error"]


async def test_failure_after_the_stream_began_is_the_last_line(engine: Any, url: str) -> None:
    engine.hold.clear()
    engine.hold_after, engine.error = 2, EngineDeadError("The engine died.")
    async with httpx.AsyncClient() as http, http.stream("POST", f"{url}/api/chat", json={"messages": USER}) as stream:
        lines = []
        async for line in stream.aiter_lines():
            lines.append(json.loads(line))
            engine.hold.set()
    assert set(lines[-1]) == {"error"} and "The engine died." in lines[-1]["error"]


async def test_browsers_have_to_say_that_they_send_json(engine: Any, url: str) -> None:
    answer = await post(url, "/api/chat", {"messages": USER}, origin="http://elsewhere.example", **{"content-type": "text/plain"})
    assert answer.status_code == 415 and set(answer.json()) == {"error"} and not engine.submitted


async def test_catalogue_names_what_is_served(engine: Any, serve: Any) -> None:
    async with serve(engine, served_model_name=["a", "b"]) as url, httpx.AsyncClient() as http:
        tags = (await http.get(f"{url}/api/tags")).json()["models"]
        running = (await http.get(f"{url}/api/ps")).json()["models"]
        shown = await post(url, "/api/show", {"model": "b:latest"})
        by_name = await post(url, "/api/show", {"name": "b"})
        missing = await post(url, "/api/show", {"model": "c"})
        version = (await http.get(f"{url}/api/version")).json()
    assert [model["model"] for model in tags] == [model["name"] for model in running] == ["a", "b"]
    assert tags[0]["size"] == 1000 and len(tags[0]["digest"]) == 64 and tags[0]["details"]["family"] == "llama"
    assert running[0]["context_length"] == 1000
    assert shown.json() == by_name.json() and missing.status_code == 404
    assert shown.json()["capabilities"] == ["completion"] and shown.json()["model_info"]["llama.context_length"] == 1000
    assert "{% for message" in shown.json()["template"]
    assert version == {"version": octavo.__version__}
