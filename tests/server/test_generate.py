"""``/generate``, the first example that users meet."""

from __future__ import annotations

import json
from typing import Any

import httpx


async def post(url: str, body: dict[str, Any], **options: Any) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(f"{url}/generate", json=body, **options)


async def test_first_example_answers_exactly_as_promised(engine: Any, serve: Any) -> None:
    engine.reply = lambda prompt, index: "The capital of France is Paris."
    body = {"prompt": "What is the capital of France?", "model": "llama-2-7b-chat-hf", "max_tokens": 50, "temperature": 0.7, "top_p": 0.9}
    async with serve(engine, served_model_name=["llama-2-7b-chat-hf"]) as url:
        answer = await post(url, body)
    tokens = len("<user>What is the capital of France?<assistant>")
    assert answer.json() == {
        "text": ["The capital of France is Paris."],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 31, "total_tokens": tokens + 31},
        "model": "llama-2-7b-chat-hf",
    }
    params = engine.submitted[0].params
    assert (params.max_tokens, params.temperature, params.top_p) == (50, 0.7, 0.9)


async def test_string_goes_through_the_template_unless_raw_or_without_one(engine: Any, url: str) -> None:
    await post(url, {"prompt": "hi"})
    await post(url, {"prompt": "hi", "raw": True})
    await post(url, {"prompt": [104, 105]})
    engine.template = None
    await post(url, {"prompt": "hi"})
    assert [(request.prompt, request.special) for request in engine.submitted] == [
        ("<user>hi<assistant>", False),
        ("hi", True),
        ([104, 105], True),
        ("hi", True),
    ]
    assert engine.submitted[0].params.max_tokens == 16


async def test_one_text_for_each_of_n(engine: Any, url: str) -> None:
    assert (await post(url, {"prompt": "hi", "n": 3})).json()["text"] == ["Paris", "Paris!", "Paris!!"]


async def test_stream_is_json_lines_that_add_up_to_the_answer(engine: Any, url: str) -> None:
    whole = (await post(url, {"prompt": "hi", "n": 2})).json()
    answer = await post(url, {"prompt": "hi", "n": 2, "stream": True})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert ["".join(line["text"][index] for line in lines) for index in range(2)] == whole["text"]
    assert lines[-1] == {"text": ["", ""], "model": "fake-model", "usage": whole["usage"], "finish_reason": ["stop", "stop"]}


async def test_stream_is_events_where_the_client_accepts_them(engine: Any, url: str) -> None:
    answer = await post(url, {"prompt": "hi", "stream": True}, headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.removeprefix("data: ") for event in answer.text.strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(event)["text"][0] for event in events[:-1]) == "Paris"


async def test_details_come_only_where_asked_for(engine: Any, url: str) -> None:
    body = {"prompt": "hi", "raw": True, "logprobs": 1, "prompt_logprobs": 1, "return_token_ids": True}
    made = (await post(url, body)).json()
    assert made["token_ids"] == [[ord(character) for character in "Paris"]] and made["prompt_token_ids"] == [1, 104, 105]
    assert made["logprobs"][0][0] == {str(ord("P")): {"logprob": -0.25, "rank": 1, "decoded_token": "P"}}
    assert made["prompt_logprobs"][0] is None and len(made["prompt_logprobs"]) == 3
    lines = [json.loads(line) for line in (await post(url, {**body, "stream": True})).text.splitlines()][:-1]
    assert [position for line in lines for position in line["logprobs"][0]] == made["logprobs"][0]
    assert [token for line in lines for token in line["token_ids"][0]] == made["token_ids"][0]
    assert lines[0]["prompt_token_ids"] == made["prompt_token_ids"] and lines[0]["prompt_logprobs"] == made["prompt_logprobs"]
