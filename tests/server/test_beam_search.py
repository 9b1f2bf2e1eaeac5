"""Beam search over HTTP: the real engine client over an engine that is a table, and over one that a test speaks for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from byte_model import EOS, VOCAB_SIZE, byte_model
from fake_engine import FakeProcess, FakeSpawner
from table_core import TableCore, next_logprobs

from octavo.batch import TokenLogprobs
from octavo.config import engine_options
from octavo.engine.messages import AddRequest, Ready, SequenceUpdate
from octavo.frontend import client as module
from octavo.frontend import replica
from octavo.frontend.beam_search import BeamSearch
from octavo.frontend.chat_template import ChatTemplate
from octavo.frontend.client import EngineClient
from octavo.frontend.outputs import Logprob
from octavo.sampling_params import SamplingParams

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
BEAMS = {"use_beam_search": True, "n": 3, "max_tokens": 6}
COMPLETION = {"prompt": "xy", **BEAMS}
PATHS = {
    "/v1/completions": {"prompt": "xy"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "xy"}]},
    "/generate": {"prompt": "xy"},
}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, FakeSpawner]]:
    """Makes a client; ``core`` None leaves the engine's part to the test."""

    def make_one(core: Any = TableCore, **options: Any) -> tuple[Any, FakeSpawner]:
        spawner = FakeSpawner(core)
        model = byte_model(128, chat_template=ChatTemplate(TEMPLATE, {}), sampling_defaults={"temperature": 0.2, "top_p": 0.9, "top_k": 5})
        monkeypatch.setattr(replica, "EngineProcess", spawner)
        monkeypatch.setattr(module, "resolve", lambda *_: "files")
        monkeypatch.setattr(module, "load_served_model", lambda *_: model)
        client: Any = EngineClient(engine_options(**options))
        client.options, client.hold = engine_options(**options), asyncio.Event()
        return client, spawner

    return make_one


@pytest.fixture
async def url(make: Any, serve: Any) -> AsyncIterator[str]:
    client, _ = make()
    async with serve(client) as base:
        yield base


async def post(url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(url + path, json=body)


def expected(n: int = 3, max_tokens: int = 6, length_penalty: float = 1.0, **params: Any) -> list[str]:
    """The answers that the search finds where the table is asked directly."""
    search = BeamSearch(SamplingParams(n=n, **params), length_penalty, max_tokens, (EOS,), VOCAB_SIZE)
    while not search.done:
        found = []
        for beam in search.live:
            ranked = sorted(next_logprobs([*b"xy", *beam.token_ids]).items(), key=lambda entry: -entry[1])
            found.append({token: Logprob(value, rank, "") for rank, (token, value) in enumerate(ranked, 1)})
        search.advance(found)
    return [bytes(token for token in beam.token_ids if token < EOS).decode() for beam in search.best()]


def texts(path: str, answer: dict[str, Any]) -> list[str]:
    if path == "/generate":
        return list(answer["text"])
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("penalty", [{}, {"length_penalty": -1.0}])
async def test_every_route_returns_the_beams_best_first(url: str, path: str, penalty: dict[str, float]) -> None:
    answer = await post(url, path, PATHS[path] | BEAMS | penalty)
    assert answer.status_code == 200, answer.text
    assert texts(path, answer.json()) == expected(**penalty)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_has_the_beams_at_its_end(url: str, path: str) -> None:
    answer = await post(url, path, PATHS[path] | BEAMS | {"stream": True, "stream_options": {"include_usage": True}})
    whole = (await post(url, path, PATHS[path] | BEAMS)).json()
    found = ["", "", ""]
    usage = None
    for line in answer.text.splitlines():
        if not line or line.endswith("[DONE]"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        usage = chunk.get("usage", usage)
        for index, text in enumerate(chunk.get("text", ())):
            found[index] += text
        for choice in chunk.get("choices", ()):
            found[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
    assert found == texts(path, whole)
    assert usage == whole["usage"]


async def test_usage_counts_the_prompt_once_and_every_kept_beam(url: str) -> None:
    answer = (await post(url, "/v1/completions", COMPLETION | {"ignore_eos": True, "return_token_ids": True})).json()
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 3 * 6
    assert [len(choice["token_ids"]) for choice in answer["choices"]] == [6, 6, 6]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 3
    ending = (await post(url, "/v1/completions", COMPLETION | {"length_penalty": 0, "return_token_ids": True})).json()
    returned = sum(len(choice["token_ids"]) for choice in ending["choices"])
    assert ending["usage"]["completion_tokens"] > returned


async def test_stop_tokens_end_beams_and_show_where_asked_for(url: str) -> None:
    body = COMPLETION | {"stop_token_ids": [ord("a")], "length_penalty": 0.0}
    answer = (await post(url, "/v1/completions", body)).json()
    assert ord("a") in [choice["stop_reason"] for choice in answer["choices"]]
    assert "a" not in "".join(texts("", answer))
    shown = (await post(url, "/v1/completions", body | {"include_stop_str_in_output": True})).json()
    for choice in shown["choices"]:
        assert choice["text"].endswith("a") == (choice["stop_reason"] == ord("a"))


async def test_log_probabilities_and_echo(url: str) -> None:
    answer = (await post(url, "/v1/completions", COMPLETION | {"logprobs": 2, "echo": True, "prompt_logprobs": 1})).json()
    for choice, text in zip(answer["choices"], expected(), strict=True):
        assert choice["text"] == "xy" + text
        logprobs = choice["logprobs"]
        assert logprobs["tokens"][:2] == ["x", "y"] and logprobs["token_logprobs"][:2] == [None, -2.0]
        assert "".join(logprobs["tokens"]).replace("</s>", "") == "xy" + text
        assert all(2 <= len(top) <= 3 for top in logprobs["top_logprobs"][2:])
        assert choice["prompt_logprobs"][0] is None
    chat = (await post(url, "/v1/chat/completions", PATHS["/v1/chat/completions"] | BEAMS | {"logprobs": True, "top_logprobs": 1})).json()
    assert all(len(entry["top_logprobs"]) == 1 for choice in chat["choices"] for entry in choice["logprobs"]["content"])


async def test_several_prompts_are_searched_each_for_itself(url: str) -> None:
    answer = (await post(url, "/v1/completions", COMPLETION | {"prompt": ["xy", "xy"]})).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert texts("", answer) == expected() * 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 5}, "best_of"),
        ({"top_p": 0.5}, "top_p"),
        ({"top_k": 4}, "top_k"),
        ({"min_p": 0.5}, "min_p"),
        ({"seed": 1}, "seed"),
        ({"stop": "x"}, "stop"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"repetition_penalty": 1.5}, "repetition_penalty"),
        ({"temperature": 0.7}, "temperature"),
        ({"length_penalty": 1000.0}, "length_penalty"),
        ({"stop_token_ids": [5000]}, "stop_token_ids"),
        ({"max_tokens": 1000}, "max_tokens"),
        ({"use_beam_search": False, "length_penalty": 0.5}, "length_penalty"),
        ({"priority": 3}, "priority"),
    ],
)
async def test_what_contradicts_a_beam_search_is_a_400_that_names_it(url: str, path: str, fields: dict[str, Any], param: str) -> None:
    answer = await post(url, path, PATHS[path] | BEAMS | fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 1.0}, {"best_of": 3}, {"top_k": -1}, {"truncate_prompt_tokens": 2}])
async def test_what_asks_for_nothing_else_is_let_through(url: str, fields: dict[str, Any]) -> None:
    answer = await post(url, "/v1/completions", COMPLETION | fields)
    assert texts("", answer.json()) == expected()


async def test_a_prompt_is_truncated_where_asked_for(url: str) -> None:
    answer = await post(url, "/v1/completions", COMPLETION | {"prompt": "a" * 500 + "xy", "truncate_prompt_tokens": -1, "echo": True})
    text = answer.json()["choices"][0]["text"]
    assert text == "a" * (128 - 6 - 2) + "xy" + expected()[0]
    refused = await post(url, "/v1/completions", COMPLETION | {"prompt": "a" * 500})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"


async def test_the_default_of_max_tokens_yields_to_the_context(url: str) -> None:
    body = COMPLETION | {"prompt": "a" * 126, "ignore_eos": True, "max_tokens": None}
    answer = (await post(url, "/v1/completions", body)).json()
    assert answer["usage"]["completion_tokens"] == 3 * 2


async def test_a_search_explains_itself_as_one_request(url: str) -> None:
    found = (await post(url, "/v1/completions", COMPLETION | {"ignore_eos": True, "explain": True})).json()["explain"]
    assert (found["queue_ms"], found["prefill_ms"]) == (250, 250)
    assert (found["cached_tokens"], found["preemptions"]) == (1, 1 + 5 * 3)  # the table's engine tells of one for each small request
    assert found["decode_ms"] > 0


# ---- an engine the test speaks for -----------------------------------------------------------------------------------


def candidates(add: AddRequest) -> SequenceUpdate:
    """A step's answer: the likeliest tokens are the letters, in their order."""
    tokens = list(range(97, 97 + (add.params.logprobs or 0)))
    entry = TokenLogprobs([tokens[0], *tokens], [-1.0, *(-1.0 - rank for rank in range(len(tokens)))], 1)
    return SequenceUpdate(add.request_id, 0, tokens[:1], logprobs=[entry], finish_reason="length")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def begin(url: str, spawner: FakeSpawner, **fields: Any) -> tuple[FakeProcess, httpx.AsyncClient, asyncio.Task[httpx.Response]]:
    """A search of which the second step waits for the engine."""
    http = httpx.AsyncClient(timeout=30)
    task = asyncio.create_task(http.post(f"{url}/v1/completions", json=COMPLETION | fields))
    await until(lambda: bool(spawner.processes and spawner.processes[0].adds))
    process = spawner.processes[0]
    process.step(candidates(process.adds[0]))
    await until(lambda: len(process.adds) == 4)
    return process, http, task


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_every_beam(make: Any, serve: Any, stream: bool) -> None:
    client, spawner = make(None)
    async with serve(client) as url:
        process, http, task = await begin(url, spawner, stream=stream)
        task.cancel()
        await http.aclose()
        await until(lambda: len(process.aborts) == 3)
        assert {abort.request_id for abort in process.aborts} == {add.request_id for add in process.adds[1:]}
        async with httpx.AsyncClient() as other:
            assert (await other.get(f"{url}/load")).json() == {"server_load": 0}
            metrics = (await other.get(f"{url}/metrics")).text
        assert re.search(r'vllm:request_success_total\{[^}]*finished_reason="abort"[^}]*\} 1\.0', metrics)
        assert len(process.adds) == 4


async def test_a_beam_search_that_runs_outlives_the_beginning_of_a_drain(make: Any, serve: Any) -> None:
    client, spawner = make(None)
    async with serve(client) as url:
        process, http, task = await begin(url, spawner, max_tokens=3)
        drain = asyncio.create_task(client.drain(30))
        await asyncio.sleep(0.01)
        process.step(*map(candidates, process.adds[1:4]))
        await until(lambda: len(process.adds) == 7)
        assert not drain.done()
        process.step(*map(candidates, process.adds[4:7]))
        answer = await task
        await drain
        assert answer.status_code == 200 and texts("", answer.json())[0] == "aaa"
        assert (await http.post(f"{url}/v1/completions", json=COMPLETION)).status_code == 503
        await http.aclose()


async def test_a_full_queue_turns_new_searches_away_and_no_running_one(make: Any, serve: Any) -> None:
    client, spawner = make(None, max_num_queued_reqs=1, max_num_seqs=1)
    spawner.greet = lambda process: process.say(Ready(128, 0, 64, 16, {}))
    async with serve(client) as url:
        process, http, task = await begin(url, spawner, max_tokens=2)
        refused = await http.post(f"{url}/v1/completions", json=COMPLETION)
        assert refused.status_code == 429
        process.step(*map(candidates, process.adds[1:4]))
        assert (await task).status_code == 200
        await http.aclose()


async def test_an_engine_that_dies_ends_the_search_with_an_error(make: Any, serve: Any) -> None:
    client, spawner = make(None)
    async with serve(client) as url:
        process, http, task = await begin(url, spawner)
        process.die()
        answer = await task
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_dead"
        await http.aclose()


async def test_a_server_that_stops_ends_the_search(make: Any, serve: Any) -> None:
    client, spawner = make(None)
    async with serve(client) as url:
        _, http, task = await begin(url, spawner)
        await client.shutdown()
        answer = await task
        assert answer.status_code == 503
        await http.aclose()
