"""``/v1/responses`` through the real openai client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from octavo.errors import EngineDeadError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def create(url: str, **fields: Any) -> Any:
    return await client_of(url).responses.create(**{"model": "fake-model", "input": "hi", **fields})


async def test_answer_has_openai_s_shape(engine: Any, url: str) -> None:
    made = await create(url, metadata={"a": "b"}, instructions="S", temperature=0.5, max_output_tokens=9)
    assert made.id.startswith("resp_") and (made.object, made.status, made.model) == ("response", "completed", "fake-model")
    assert made.output_text == "Paris" and made.output[0].type == "message" and made.output[0].role == "assistant"
    assert (made.store, made.metadata, made.instructions, made.temperature, made.max_output_tokens) == (False, {"a": "b"}, "S", 0.5, 9)
    assert made.text.format.type == "text" and made.error is None and made.incomplete_details is None
    prompt = len("<system>S<user>hi<assistant>")
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (prompt, 5, prompt + 5)
    assert made.usage.input_tokens_details.cached_tokens == 1 and made.usage.output_tokens_details.reasoning_tokens == 0


async def test_items_become_the_chat(engine: Any, url: str) -> None:
    first = await create(url)
    items = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        *[item.model_dump() for item in first.output],  # as clients send back what they were given
        {"role": "user", "content": "more"},
    ]
    await create(url, input=items)
    assert engine.submitted[-1].prompt == "<system>D<user>hi<assistant>Paris<user>more<assistant>"


async def test_stream_says_the_same_as_the_whole_answer(engine: Any, url: str) -> None:
    whole = await create(url)
    events: list[Any] = []
    async with client_of(url).responses.stream(model="fake-model", input="hi") as stream:
        events += [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == whole.output_text and final.usage == whole.usage
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert "".join(event.delta for event in events[4:-4]) == events[-4].text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_answer_cut_short_is_incomplete(engine: Any, url: str) -> None:
    made = await create(url, max_output_tokens=2)
    assert (made.status, made.incomplete_details.reason, made.output_text) == ("incomplete", "max_output_tokens", "Pa")
    kinds = [event.type async for event in await create(url, max_output_tokens=2, stream=True)]
    assert kinds[-1] == "response.incomplete"


async def test_text_format_is_the_form_of_the_answer(engine: Any, url: str) -> None:
    made = await create(url, text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}})
    assert made.text.format.schema_ == SCHEMA and made.text.format.name == "n"
    await create(url, text={"format": {"type": "json_object"}})
    await create(url, text={"format": {"type": "text"}, "verbosity": "medium"})
    forms = [request.params.structured_outputs for request in engine.submitted]
    assert (json.loads(forms[0].json), forms[1].json_object, forms[2]) == (SCHEMA, True, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "a", "mood": "b"}]}, "input[0].mood"),
        ({"input": "a" * 1000}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 2000}, "max_output_tokens"),  # more than the context holds
        ({"temperature": -1}, "temperature"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"text": {"format": {"type": "text", "name": "n"}}}, "text.format.name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"max_tokens": 4}, "max_tokens"),
    ],
)
async def test_wrong_fields_are_refused_by_name(engine: Any, url: str, fields: dict[str, Any], param: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/responses", json={"input": "hi", **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["message"], error
    assert not engine.submitted


async def test_failure_after_the_stream_began_is_the_last_event(engine: Any, url: str) -> None:
    engine.hold.clear()
    engine.hold_after, engine.error = 2, EngineDeadError("The engine died.")
    events = []
    async for event in await create(url, stream=True):
        events.append(event)
        if event.type == "response.content_part.added":
            engine.hold.set()
    assert events[-1].type == "response.failed" and "The engine died." in events[-1].response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_events_carry_their_names(engine: Any, url: str) -> None:
    async with httpx.AsyncClient() as http:
        text = (await http.post(f"{url}/v1/responses", json={"input": "hi", "stream": True})).text
    for event in text.strip().split("\n\n"):
        name, data = event.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/pooling", "/score", "/rerank", "/v1/rerank", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"]
)
async def test_features_of_later_versions_answer_501(engine: Any, url: str, path: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(url + path, json={"input": "hi"})
    error = answer.json()["error"]
    assert (
        answer.status_code == 501
        and path in error["message"]
        and (error["type"], error["code"]) == ("not_implemented_error", "not_available")
    )
