"""Thousands of random requests, right and wrong, from many clients at once: each gets what it deserves, and the server is as before.

``OCTAVO_TEST_REQUESTS=10000 pytest tests/e2e/test_random_requests.py`` runs more than the default few hundred.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Server, serving

COUNT = int(os.environ.get("OCTAVO_TEST_REQUESTS", "400"))
CLIENTS = 24
SECONDS = 120
CONTEXT = 256
QUESTION = {"prompt": "What is the capital of France?", "max_tokens": 50, "temperature": 0}
WORDS = ["river", "stone", "cloud", "brød", "\U0001f33f", "\u0000", "\n\n", "3.14", "<|im_end|>", "ﷺ", "e\u0301", " "]
VALID: dict[str, list[Any]] = {
    "temperature": [0, 0.01, 1, 2.5, 100],
    "top_p": [0.01, 0.9, 1],
    "top_k": [-1, 0, 1, 40, 10**6],
    "min_p": [0, 0.1, 1],
    "n": [1, 2, 3],
    "seed": [0, -1, 2**63],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 0.5],
    "repetition_penalty": [0.5, 1.3],
    "stop": ["\n", [" the", "a"], []],
    "stop_token_ids": [[], [5]],
    "logit_bias": [{}, {"5": 100}, {"7": -100.5}],
    "allowed_token_ids": [[10, 11, 12]],
    "bad_words": [["the"], []],
    "ignore_eos": [True, False],
    "min_tokens": [0, 1],
    "skip_special_tokens": [False],
    "include_stop_str_in_output": [True],
    "prompt_logprobs": [0, 2],
    "return_token_ids": [True],
    "cache_salt": ["salt"],
    "user": ["someone"],
    "stream": [True, False],
}
WRONG: dict[str, list[Any]] = {
    "temperature": [-1, "hot", [], 1e400],
    "top_p": [0, 1.1, "x"],
    "top_k": [-2, 1.5, 2**40],
    "min_p": [-0.1, 2],
    "n": [0, -1, 129, 10**30, True],
    "seed": [2**65, "lucky"],
    "presence_penalty": [2.1],
    "repetition_penalty": [0, -1],
    "stop": [[""], 7, ["a"] * 65],
    "stop_token_ids": [["a"], [10**9]],
    "logit_bias": [{"cat": 1}, {"99999999": 1}, [1]],
    "allowed_token_ids": [[], [-1]],
    "max_tokens": [0, -1, "many", CONTEXT * 4],
    "min_tokens": [-1, 99],
    "prompt_logprobs": [-2, 10**6],
    "stream_options": [{"include_usage": "yes"}, {"no_such": True}],
    "truncate_prompt_tokens": [0, -2],
    "cache_salt": ["x" * 1000],
    "priority": ["high", 7],
    "no_such_field": [1],
    "model": ["no-such-model"],
}
BROKEN = [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"prompt": "a", "top_p": NaN}', b"[" * 5000, b"{}"]


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--max-model-len", str(CONTEXT), "--kv-cache-memory-bytes", "64M")
    with serving(tmp_path_factory.mktemp("random"), *flags) as running:
        yield running


class Draw:
    """One request, decided by its number alone."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.path = self.random.choice(["/generate", "/v1/completions", "/v1/chat/completions"])
        self.kind = self.random.choices(["right", "wrong", "long", "broken", "leaves"], [50, 30, 4, 8, 8])[0]
        self.body = self._body()

    def text(self, most: int) -> str:
        return "Say " + " ".join(self.random.choice(WORDS) for _ in range(self.random.randrange(most)))

    def _body(self) -> dict[str, Any]:
        text = self.text(12) if self.kind != "long" else "word " * CONTEXT * 2
        body: dict[str, Any] = {"max_tokens": self.random.randrange(2, 9)}
        if self.path == "/v1/chat/completions":
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        for name in self.random.sample(sorted(VALID), self.random.randrange(5)):
            body[name] = self.random.choice(VALID[name])
        if self.kind == "wrong":
            name = self.random.choice(sorted(WRONG))
            body[name] = self.random.choice(WRONG[name])
        return body


def content_of(body: dict[str, Any]) -> bytes:
    return json.dumps(body).replace("Infinity", "1e999").encode()


def judge(draw: Draw, answer: httpx.Response) -> None:
    """Fail where an answer is not what the request deserves."""
    about = f"{draw.kind} {draw.path} {draw.body} -> {answer.status_code} {answer.text[:500]}"
    if draw.kind == "right":
        assert answer.status_code == 200 and '"error"' not in answer.text, about
        if draw.body.get("stream"):
            whole = "data: [DONE]\n\n" if draw.path != "/generate" else "\n"
            assert answer.text.endswith(whole), about
        else:
            usage = answer.json()["usage"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0, about
        return
    expected = 404 if draw.kind == "wrong" and draw.body.get("model") else 400
    assert answer.status_code == expected, about
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], about


async def send(http: httpx.AsyncClient, draw: Draw) -> None:
    headers = {"Content-Type": "application/json"}
    if draw.kind == "leaves":
        async with http.stream("POST", draw.path, json=draw.body | {"stream": True, "max_tokens": 64, "ignore_eos": True}) as answer:
            async for _ in answer.aiter_bytes():
                return
        return
    content = draw.random.choice(BROKEN) if draw.kind == "broken" else content_of(draw.body)
    judge(draw, await http.post(draw.path, content=content, headers=headers))


async def test_random_requests_leave_the_server_as_it_was(small_server: Server) -> None:
    before = httpx.post(f"{small_server.url}/generate", json=QUESTION, timeout=SECONDS).json()
    numbers = iter(range(COUNT))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=small_server.url, timeout=SECONDS) as http:
            for number in numbers:
                await send(http, Draw(number))

    async with asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(client())
    small_server.wait_until(lambda: httpx.get(f"{small_server.url}/load").json() == {"server_load": 0}, 30, "no request in flight")
    small_server.wait_until(lambda: small_server.metric("vllm:num_requests_running") == 0, 30, "an idle engine")
    assert small_server.metric("vllm:num_requests_waiting") == 0 and small_server.metric("vllm:kv_cache_usage_perc") == 0
    assert httpx.get(f"{small_server.url}/health").json() == {"status": "ok", "phase": "ready", "progress": 1.0}
    after = httpx.post(f"{small_server.url}/generate", json=QUESTION, timeout=SECONDS).json()
    assert after == before and after["text"] == ["The capital of France is Paris."]
    assert small_server.process.poll() is None and "Traceback" not in small_server.log(), small_server.log()
