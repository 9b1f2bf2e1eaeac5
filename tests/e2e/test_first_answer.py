"""What a new user does first: the contract's example, the openai client, the command line."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from serving import Server

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def test_generate_answers_the_contracts_example(server: Server) -> None:
    body = {"prompt": QUESTION, "model": "smollm2", "max_tokens": 50, "temperature": 0}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=60).json()
    assert answer["text"] == [ANSWER]
    assert answer["model"] == "smollm2"
    rendered = httpx.post(f"{server.url}/tokenize", json={"messages": [{"role": "user", "content": QUESTION}]}).json()
    usage = answer["usage"]
    assert usage["prompt_tokens"] == rendered["count"]
    # The answer's tokens and the end-of-sequence token that ended it.
    spoken = httpx.post(f"{server.url}/tokenize", json={"prompt": ANSWER, "add_special_tokens": False}).json()["count"]
    assert usage["completion_tokens"] == spoken + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_generate_streams_json_lines_and_events(server: Server) -> None:
    body = {"prompt": QUESTION, "max_tokens": 50, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=60) as stream:
        lines = [json.loads(line) for line in stream.iter_lines() if line]
    assert "".join(line["text"][0] for line in lines if line.get("text")) == ANSWER
    with httpx.stream("POST", f"{server.url}/generate", json=body, headers={"Accept": "text/event-stream"}, timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [line for line in stream.iter_lines() if line]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"


def test_raw_skips_the_chat_template(server: Server) -> None:
    body = {"prompt": "The capital of France is", "raw": True, "max_tokens": 4, "temperature": 0}
    raw = httpx.post(f"{server.url}/generate", json=body, timeout=60).json()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        completion = client.completions.create(model="smollm2", prompt=body["prompt"], max_tokens=4, temperature=0)
    assert raw["text"] == [completion.choices[0].text]
    assert completion.usage is not None
    assert raw["usage"]["prompt_tokens"] == completion.usage.prompt_tokens


def test_openai_client_chats_and_streams(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["smollm2", "default"]
        whole = client.chat.completions.create(model="default", messages=[{"role": "user", "content": QUESTION}], temperature=0)
        assert whole.choices[0].message.content == ANSWER
        assert whole.choices[0].finish_reason == "stop"
        stream = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage == whole.usage


async def test_asynchronous_openai_client(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": QUESTION}], temperature=0, n=3, seed=5
        )
    assert [choice.message.content for choice in answer.choices] == [ANSWER] * 3


def test_stop_logprobs_and_seed_through_the_api(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stopped = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": QUESTION}], temperature=0, stop=[" Par"], logprobs=True, top_logprobs=3
        )
        assert stopped.choices[0].message.content == "The capital of France is"
        logprobs = stopped.choices[0].logprobs
        assert logprobs is not None and logprobs.content is not None
        assert all(len(position.top_logprobs) == 3 for position in logprobs.content)
        assert all(position.logprob == pytest.approx(position.top_logprobs[0].logprob) for position in logprobs.content)
        texts = [
            client.completions.create(model="smollm2", prompt="Once upon a time", max_tokens=12, temperature=0.8, seed=11).choices[0].text
            for _ in range(2)
        ]
    assert texts[0] == texts[1]


def test_best_of_counts_all_that_was_generated(server: Server) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 6, "ignore_eos": True, "best_of": 3, "seed": 1}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    assert len(answer["choices"]) == 1
    assert answer["usage"]["completion_tokens"] == 18
