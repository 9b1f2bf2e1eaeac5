"""Fields that are more than sampling, through the socket on every route that has them, with the real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Server, serving

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": f"{SYSTEM}<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": QUESTION}]},
    "/generate": {"prompt": QUESTION},
}


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One seat, and priorities."""
    flags = ("--scheduling-policy", "priority", "--max-num-seqs", "1", "--max-model-len", "1024", "--kv-cache-memory-bytes", "64M")
    with serving(tmp_path_factory.mktemp("ranked"), *flags) as running:
        yield running


def post(server: Server, route: str, **fields: Any) -> dict[str, Any]:
    """The answer to the route's question under more fields."""
    answer = httpx.post(server.url + route, json=ROUTES[route] | {"temperature": 0, "max_tokens": 12} | fields, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def stream(server: Server, route: str, **fields: Any) -> list[dict[str, Any]]:
    answer = httpx.post(server.url + route, json=ROUTES[route] | {"temperature": 0, "max_tokens": 12, "stream": True} | fields, timeout=60)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [json.loads(line) for line in lines if line and line != "[DONE]"]


def texts(answer: dict[str, Any]) -> list[str]:
    if "text" in answer:
        return list(answer["text"])
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]


def place(route: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Where completions have what others have at the top."""
    return dict(answer["choices"][0]) if route == "/v1/completions" else answer


def cached(server: Server, route: str, **fields: Any) -> int:
    return int(post(server, route, explain=True, **fields)["explain"]["cached_tokens"])


@pytest.mark.parametrize("route", ROUTES)
def test_best_of_returns_the_likeliest_and_counts_all(server: Server, route: str) -> None:
    answer = post(server, route, n=2, best_of=4, temperature=1.0, seed=3, ignore_eos=True)
    assert len(texts(answer)) == 2
    assert answer["usage"]["completion_tokens"] == 4 * 12
    last = stream(server, route, n=2, best_of=4, temperature=1.0, seed=3, ignore_eos=True, stream_options={"include_usage": True})[-1]
    assert last["usage"] == answer["usage"] | {name: last["usage"][name] for name in last["usage"] if name == "prompt_tokens_details"}


@pytest.mark.parametrize("route", ROUTES)
def test_prompt_logprobs_and_token_ids_line_up(server: Server, route: str) -> None:
    answer = post(server, route, prompt_logprobs=2, return_token_ids=True)
    there = place(route, answer)
    prompt, scores = there["prompt_token_ids"], there["prompt_logprobs"]
    assert len(prompt) == len(scores) == answer["usage"]["prompt_tokens"]
    assert scores[0] is None
    for token, position in zip(prompt[1:], scores[1:], strict=True):
        assert next(iter(position)) == str(token)
        assert 2 <= len(position) <= 3 and all(entry["logprob"] <= 0 for entry in position.values())
    ids = answer["token_ids"][0] if route == "/generate" else answer["choices"][0]["token_ids"]
    assert len(ids) == answer["usage"]["completion_tokens"]
    text = httpx.post(f"{server.url}/detokenize", json={"tokens": ids}).json()["prompt"]
    assert text.removesuffix("<|im_end|>") == texts(answer)[0] == ANSWER


@pytest.mark.parametrize("route", ROUTES)
def test_a_truncated_prompt_is_its_end(server: Server, route: str) -> None:
    whole = place(route, post(server, route, return_token_ids=True))["prompt_token_ids"]
    answer = post(server, route, truncate_prompt_tokens=5, return_token_ids=True)
    assert place(route, answer)["prompt_token_ids"] == whole[-5:]
    assert answer["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize("route", ROUTES)
def test_prompts_are_shared_under_the_same_salt_only(server: Server, route: str) -> None:
    salt = f"salt of {route}"
    assert cached(server, route, cache_salt=salt) == 0
    assert cached(server, route, cache_salt=salt) >= 16
    assert cached(server, route, cache_salt=f"{salt}!") == 0
    assert texts(post(server, route, cache_salt=salt)) == [ANSWER]


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_the_request_id_is_in_the_answers_id(server: Server, route: str) -> None:
    assert post(server, route, request_id="my-own")["id"].endswith("-my-own")
    assert all(chunk["id"].endswith("-my-own") for chunk in stream(server, route, request_id="my-own"))


@pytest.mark.parametrize("route", ROUTES)
def test_usage_grows_from_chunk_to_chunk_where_asked_for(server: Server, route: str) -> None:
    chunks = stream(server, route, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 8
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {37}
    assert len(set(counts)) > 2


@pytest.mark.parametrize("route", ROUTES)
async def test_the_smaller_priority_is_served_first(ranked: Server, route: str) -> None:
    ended: list[int] = []
    async with httpx.AsyncClient(timeout=120) as client:

        async def ask(rank: int, tokens: int) -> None:
            body = ROUTES[route] | {"priority": rank, "max_tokens": tokens, "ignore_eos": True}
            answer = await client.post(ranked.url + route, json=body)
            assert answer.status_code == 200, answer.text
            ended.append(rank)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask(-9, 800))  # long enough for the others to come meanwhile
            await ranked.reach("vllm:num_requests_running")
            for number, rank in enumerate((5, 1, -5), 1):
                group.create_task(ask(rank, 4))
                await ranked.reach("vllm:num_requests_waiting", number)
    assert ended == [-9, -5, 1, 5]


def test_a_final_message_is_gone_on_with(server: Server) -> None:
    messages = [*ROUTES["/v1/chat/completions"]["messages"], {"role": "assistant", "content": "The capital of France is"}]
    answer = post(server, "/v1/chat/completions", messages=messages, continue_final_message=True, return_token_ids=True)
    assert texts(answer) == [" Paris."]
    ids = answer["prompt_token_ids"]
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": ids}).json()["prompt"].endswith("assistant\nThe capital of France is")


def test_the_opening_of_the_answer_is_left_out_where_asked_for(server: Server) -> None:
    prompts = {}
    for opened in (True, False):
        ids = post(server, "/v1/chat/completions", add_generation_prompt=opened, return_token_ids=True)["prompt_token_ids"]
        prompts[opened] = httpx.post(f"{server.url}/detokenize", json={"tokens": ids}).json()["prompt"]
    assert prompts[True] == prompts[False] + "<|im_start|>assistant\n"


def test_an_echoed_prompt_has_the_scores_that_prompt_logprobs_gives(server: Server) -> None:
    for prompt in ("The capital of France is", [504, 3575, 282, 4649, 314]):
        fields = {"prompt": prompt, "logprobs": 0, "echo": True, "prompt_logprobs": 0, "return_token_ids": True, "max_tokens": 1}
        choice = post(server, "/v1/completions", **fields)["choices"][0]
        assert choice["text"] == "The capital of France is Paris"
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
        scores = [next(iter(position.values()))["logprob"] for position in choice["prompt_logprobs"][1:]]
        assert choice["logprobs"]["token_logprobs"][:-1] == [None, *scores]
        only = post(server, "/v1/completions", **fields | {"max_tokens": 0})["choices"][0]
        assert only["text"] == "The capital of France is"
        assert only["logprobs"]["token_logprobs"] == [None, *scores]
