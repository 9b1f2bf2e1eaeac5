"""Every row of the error table, over a real socket with raw bodies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import EngineDeadError
from octavo.server.protocol import ChatCompletionRequest, CompletionRequest, GenerateRequest
from octavo.server.refused_fields import NOT_YET

JSON = {"content-type": "application/json"}


async def send(
    url: str, body: bytes | dict[str, Any], path: str = "/v1/completions", headers: dict[str, str] | None = None
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx.AsyncClient() as http:
        return await http.post(url + path, content=content, headers=headers or JSON)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has exactly the promised shape."""
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert "Traceback" not in answer.text and answer.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[1]", b"null", b'"text"', b'{"prompt": "\\ud800"}', b"\xff\xfe\x00", b"{'prompt': 'a'}", b'{"prompt": "a"} x',
        b'{"prompt": "\xff"}', b"[" * 10_000, b'{"prompt": "a", "seed": ' + b"9" * 6000 + b"}", b'{"prompt": "a", "temperature": nan}',
    ],
)  # fmt: skip
async def test_malformed_json_is_400(engine: Any, url: str, body: bytes) -> None:
    answer = await send(url, body)
    assert answer.status_code == 400 and error_of(answer)["param"] is None and not engine.submitted


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", "0.5", "number"), ("temperature", True, "number"), ("temperature", -0.1, "[0, inf)"),
        ("temperature", float("nan"), "finite"),
        ("temperature", float("inf"), "finite"), ("temperature", 1e400, "finite"), ("top_p", 0, "(0, 1]"), ("top_p", 1.5, "(0, 1]"),
        ("top_k", 1.5, "integer"), ("top_k", -2, "[-1"), ("min_p", -1, "[0, 1]"), ("n", 0, "[1, 128]"),
        ("n", 10**6, "[1, 128]"), ("n", "1", "integer"),
        ("n", True, "integer"), ("best_of", 0, "best_of"), ("seed", 2**70, "seed"), ("seed", 1.0, "integer"), ("max_tokens", 0, "[1"),
        ("max_tokens", -1, "[1"), ("max_tokens", 10**30, "max_tokens"), ("min_tokens", 17, "max_tokens"),
        ("presence_penalty", 2.1, "[-2, 2]"),
        ("frequency_penalty", -3, "[-2, 2]"), ("repetition_penalty", 0, "(0, inf)"), ("stop", 5, "string or an array"),
        ("stop", [1], "string"),
        ("stop", [""], "non-empty"), ("stop_token_ids", ["a"], "integer"), ("logit_bias", {"a": 1}, "integer"),
        ("logit_bias", [1], "object"),
        ("logprobs", 21, "--max-logprobs"), ("logprobs", -1, "--max-logprobs"), ("prompt_logprobs", 999, "--max-logprobs"),
        ("stream", "yes", "true or false"), ("stream", 1, "true or false"), ("echo", "no", "true or false"),
        ("allowed_token_ids", [], "empty"),
        ("stream_options", 3, "object"), ("model", 3, "string"), ("bad_words", "x", "array"), ("priority", "high", "integer"),
    ],
)  # fmt: skip
async def test_wrong_type_or_range_is_400_naming_the_field(engine: Any, url: str, field: str, value: Any, words: str) -> None:
    answer = await send(url, {"prompt": "a", field: value})
    error = error_of(answer)
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"].partition("[")[0].partition(".")[0] == field and words in error["message"], error
    assert not engine.submitted


async def test_missing_field_is_named(url: str) -> None:
    error = error_of(await send(url, {"model": "fake-model"}))
    assert error["param"] == "prompt" and "required" in error["message"]


async def test_unknown_field_is_400_with_the_nearest_known_one(url: str) -> None:
    answer = await send(url, {"prompt": "a", "temprature": 1})
    error = error_of(answer)
    assert answer.status_code == 400 and error["param"] == "temprature" and "Did you mean `temperature`?" in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]), ("tool_choice", "auto"), ("guided_decoding_backend", "xgrammar"), ("use_beam_search", True),
        ("length_penalty", 2.0), ("suffix", "x"), ("documents", [{}]), ("reasoning_effort", "low"), ("store", True), ("use_beam_search", 0),
        ("lora_request", {}), ("chat_template", "{{ 1 }}"),
    ],
)  # fmt: skip
async def test_field_that_is_not_honoured_is_refused_by_name(url: str, field: str, value: Any) -> None:
    answer = await send(url, {"prompt": "a", field: value})
    error = error_of(answer)
    assert answer.status_code == 400 and error["param"] == field and error["code"] == "unsupported_field", error


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in NOT_YET.items() for value in (None, *values)])
async def test_value_that_asks_for_nothing_is_accepted(url: str, field: str, value: Any) -> None:
    assert (await send(url, {"prompt": "a", field: value})).status_code == 200


def test_no_known_field_is_both_honoured_and_refused() -> None:
    for model in (ChatCompletionRequest, GenerateRequest):
        assert not set(model.model_fields) & set(NOT_YET)
    assert set(CompletionRequest.model_fields) & set(NOT_YET) == {"echo"}  # a completion echoes, a chat does not


async def test_prompt_longer_than_the_context_is_400_with_both_numbers(url: str) -> None:
    error = error_of(await send(url, {"prompt": "a" * 1500}))
    assert "maximum context length is 1000 tokens" in error["message"] and "1501 input tokens" in error["message"]
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate", "/tokenize", "/detokenize"])
async def test_unknown_model_is_404_naming_those_served(engine: Any, serve: Any, path: str) -> None:
    fields = {"/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]}, "/detokenize": {"tokens": [1]}}
    async with serve(engine, served_model_name=["one", "two"]) as url:
        answer = await send(url, {"model": "X", **fields.get(path, {"prompt": "a"})}, path)
        error = error_of(answer)
        assert answer.status_code == 404 and error["message"] == "The model `X` does not exist. This server has `one`, `two`."
        second = await send(url, {"model": "two", **fields.get(path, {"prompt": "a"})}, path)
    assert second.status_code == 200 and second.json().get("model", "one") == "one"


async def test_wrong_route_method_and_content_type(url: str) -> None:
    async with httpx.AsyncClient() as http:
        missing = await http.get(f"{url}/v1/nothing")
        method = await http.get(f"{url}/v1/completions")
    assert missing.status_code == 404 and "/docs" in error_of(missing)["message"]
    assert method.status_code == 405 and "POST" in error_of(method)["message"] and method.headers["allow"] == "POST"
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = await send(url, {"prompt": "a"}, headers={"content-type": kind})
        assert answer.status_code == 415 and "application/json" in error_of(answer)["message"]
    assert (await send(url, {"prompt": "a"}, headers={"content-type": "Application/JSON; charset=utf-8"})).status_code == 200


async def test_large_body_is_413_whether_announced_or_chunked(engine: Any, serve: Any) -> None:
    sent = 0

    async def chunks() -> Any:
        nonlocal sent
        for _ in range(4000):
            sent += 10_000
            yield b" " * 10_000

    async with serve(engine, max_body_bytes=100_000) as url, httpx.AsyncClient() as http:
        announced = await http.post(f"{url}/v1/completions", content=b" " * 3_000_000, headers=JSON)
        chunked = await http.post(f"{url}/v1/completions", content=chunks(), headers=JSON)
        small = await http.post(f"{url}/v1/completions", json={"prompt": "a"})
    for answer in (announced, chunked):
        assert answer.status_code == 413 and "100000 bytes" in error_of(answer)["message"] and "--max-body-bytes" in answer.text
    assert small.status_code == 200


async def test_key_is_asked_for_on_all_routes_but_the_probes(engine: Any, serve: Any) -> None:
    async with serve(engine, api_key=["first", "second"]) as url, httpx.AsyncClient() as http:
        for path in ("/health", "/ping", "/version", "/metrics"):
            assert (await http.get(url + path)).status_code == 200, path
        for path in ("/v1/models", "/load", "/docs", "/openapi.json", "/nothing", "/health/", "//health"):
            answer = await http.get(url + path)
            assert answer.status_code == 401 and error_of(answer)["code"] == "invalid_api_key", path
        for wrong in ("Bearer wrong", "Bearer", "first", "Basic first", "Bearer firstsecond", "Bearer f\u00fcrst"):
            headers = [(b"authorization", wrong.encode("latin-1"))]
            assert (await http.get(f"{url}/v1/models", headers=headers)).status_code == 401, wrong
        for key in ("first", "second"):
            assert (await http.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            await openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="third").models.list()


async def test_full_queue_is_429_with_retry_after(engine: Any, url: str) -> None:
    engine.room = 0
    answer = await send(url, {"prompt": "a"})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "7" and error_of(answer)["code"] == "queue_full"


@pytest.mark.parametrize("phase", ["draining", "restarting"])
async def test_engine_that_takes_nothing_is_503_with_the_phase(engine: Any, url: str, phase: str) -> None:
    engine.phase = phase
    answer = await send(url, {"prompt": "a"})
    assert answer.status_code == 503 and error_of(answer)["code"] == phase and int(answer.headers["retry-after"]) >= 1


async def test_engine_death_before_the_first_token_is_500_with_the_request_id(engine: Any, url: str) -> None:
    engine.error = EngineDeadError("The engine died.")
    for stream in (False, True):
        answer = await send(url, {"prompt": "a", "stream": stream}, headers={**JSON, "x-request-id": "abc"})
        assert answer.status_code == 500 and "abc" in error_of(answer)["message"]


async def test_failure_in_a_stream_is_an_error_event_and_done(engine: Any, url: str) -> None:
    engine.hold_after, engine.error = 2, EngineDeadError("The engine died.")
    events = (await send(url, {"prompt": "a", "stream": True})).text.strip().split("\n\n")
    assert [json.loads(event[6:])["choices"][0]["text"] for event in events[:-2]] in (["Pa"], ["P", "a"])
    assert "The engine died." in json.loads(events[-2][6:])["error"]["message"] and events[-1] == "data: [DONE]"
    lines = (await send(url, {"prompt": "a", "stream": True}, "/generate")).text.splitlines()
    assert "The engine died." in json.loads(lines[-1])["error"]["message"]
    with pytest.raises(openai.APIError, match="The engine died"):
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        async for _ in await client.completions.create(model="fake-model", prompt="a", stream=True):
            pass


@pytest.mark.parametrize(("reason", "status"), [("error", 500), ("abort", 503)])
async def test_answer_that_is_not_whole_is_an_error(engine: Any, url: str, reason: str, status: int) -> None:
    engine.last_finish = reason
    answer = await send(url, {"prompt": "a"})
    assert answer.status_code == status and error_of(answer)


async def test_fault_nobody_expected_is_500_and_tells_only_its_id(engine: Any, url: str) -> None:
    def broken(*arguments: Any) -> str:
        raise ZeroDivisionError("secret")

    async def submit(*arguments: Any, **named: Any) -> None:
        broken()

    engine.submit = submit
    answer = await send(url, {"prompt": "a"}, headers={**JSON, "x-request-id": "my-id"})
    assert answer.status_code == 500 and "my-id" in error_of(answer)["message"] and "secret" not in answer.text
    assert answer.headers["x-request-id"] == "my-id"


async def test_cors_is_off_unless_an_origin_is_allowed(engine: Any, serve: Any) -> None:
    headers = {"origin": "https://a.example", "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with serve(engine) as url, httpx.AsyncClient() as http:
        assert "access-control-allow-origin" not in (await http.options(f"{url}/v1/completions", headers=headers)).headers
    async with serve(engine, allowed_origins=["https://a.example"], api_key=["key"]) as url, httpx.AsyncClient() as http:
        preflight = await http.options(f"{url}/v1/completions", headers=headers)
        refused = await http.get(f"{url}/v1/models", headers={"origin": "https://a.example"})
        other = await http.get(f"{url}/health", headers={"origin": "https://b.example"})
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "https://a.example"
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in other.headers


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from([*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields, *NOT_YET, "x"])


async def test_no_body_makes_the_server_stumble(engine: Any, url: str) -> None:
    bodies: list[dict[str, Any]] = []

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(FIELDS, VALUES, max_size=6))
    def collect(body: dict[str, Any]) -> None:
        bodies.append(body)

    await asyncio.to_thread(collect)
    async with httpx.AsyncClient() as http:
        for body in bodies:
            for path, whole in (
                ("/v1/completions", {"prompt": "a"}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ):
                answer = await http.post(url + path, content=json.dumps(whole | body).encode(), headers=JSON)
                assert answer.status_code in (200, 400, 404), (body, answer.text)
