"""Start-up, disconnects, draining and the end: over a real socket, with real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from octavo.config import ServerOptions, engine_options
from octavo.errors import ModelLoadError
from octavo.server.app import build_app
from octavo.server.http_server import DrainingServer, _serve

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


async def until(condition: Any) -> None:
    """Wait until a condition holds; the test's own limit is the suite's."""
    while not condition():
        await asyncio.sleep(0.005)


# ---- loading ---------------------------------------------------------------------------------------------------------


async def test_requests_before_the_model_is_loaded_wait_in_line(engine: Any, serve: Any) -> None:
    engine.load_later()
    async with serve(engine) as url, httpx.AsyncClient(timeout=30) as http:
        health = await http.get(f"{url}/health")
        models = await http.get(f"{url}/v1/models")
        asked = [
            asyncio.create_task(http.post(f"{url}{path}", json=body))
            for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "a"}), ("/generate", {"prompt": "a"}))
        ]
        await _until_waiting(http, url, 3)
        assert not engine.submitted
        engine.finish_loading()
        answers = await asyncio.gather(*asked)
        ready = await http.get(f"{url}/health")
    assert health.status_code == 503 and health.json() == {"status": "unavailable", "phase": "loading", "progress": 0.25}
    assert int(health.headers["retry-after"]) >= 1 and models.status_code == 503
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert ready.status_code == 200 and ready.json() == {"status": "ok", "phase": "ready", "progress": 1.0}


async def test_line_before_loading_is_bounded(engine: Any, serve: Any) -> None:
    engine.load_later()
    engine.options = engine_options(max_num_queued_reqs=1)
    async with serve(engine) as url, httpx.AsyncClient(timeout=30) as http:
        first = asyncio.create_task(http.post(f"{url}/v1/completions", json={"prompt": "a"}))
        await _until_waiting(http, url, 1)
        second = await http.post(f"{url}/v1/completions", json={"prompt": "a"})
        engine.finish_loading()
        assert (await first).status_code == 200
    assert second.status_code == 429 and int(second.headers["retry-after"]) >= 1


async def _until_waiting(http: httpx.AsyncClient, url: str, count: int) -> None:
    text = ""
    while f'num_requests_waiting{{engine="0",model_name=""}} {count}.0' not in text:
        text = (await http.get(f"{url}/metrics")).text


async def test_failed_start_answers_those_in_line(engine: Any, serve: Any) -> None:
    engine.load_later()
    async with serve(engine) as url, httpx.AsyncClient(timeout=30) as http:
        asked = asyncio.create_task(http.post(f"{url}/v1/completions", json={"prompt": "a"}))
        await _until_waiting(http, url, 1)
        engine.start_up_error = ModelLoadError("no such directory: nowhere")
        engine.loaded.set()
        answer = await asked
    assert answer.status_code == 503 and "no such directory" in answer.json()["error"]["message"]


# ---- disconnects -----------------------------------------------------------------------------------------------------


async def _leave(url: str, body: str, path: str, ready: Any) -> None:
    """Send a request on a raw connection and close it once ``ready()`` holds."""
    port = int(url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body.encode())
    await writer.drain()
    await until(ready)
    writer.close()


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
@pytest.mark.parametrize("stream", ["true", "false"])
async def test_client_that_leaves_aborts_its_request_at_once(engine: Any, url: str, stream: str, path: str) -> None:
    engine.hold.clear()
    engine.hold_after = 2
    await _leave(url, f'{{"prompt": "a", "stream": {stream}, "n": 2}}', path, lambda: engine.submitted)
    await until(lambda: engine.aborted)
    assert engine.aborted == [engine.submitted[0].id]
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{url}/load")).json() == {"server_load": 0}
        assert 'finished_reason="abort",model_name="fake-model"} 1.0' in (await http.get(f"{url}/metrics")).text


async def test_client_that_leaves_aborts_all_its_prompts(engine: Any, url: str) -> None:
    engine.hold.clear()
    await _leave(url, '{"prompt": ["a", "b", "c"], "stream": true}', "/v1/completions", lambda: len(engine.submitted) == 3)
    await until(lambda: len(engine.aborted) == 3)
    assert sorted(engine.aborted) == sorted(request.id for request in engine.submitted)


async def test_client_that_leaves_the_line_is_forgotten(engine: Any, serve: Any) -> None:
    engine.load_later()
    async with serve(engine) as url, httpx.AsyncClient() as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post(f"{url}/v1/completions", json={"prompt": "a"}, timeout=0.2)
        await _until_waiting(http, url, 0)
        engine.finish_loading()
        assert (await http.post(f"{url}/v1/completions", json={"prompt": "b"})).status_code == 200
    assert [request.prompt for request in engine.submitted] == ["b"]


# ---- the end ---------------------------------------------------------------------------------------------------------


class Process:
    """What ``octavo serve`` runs, on this test's loop."""

    def __init__(self, engine: Any, timeout: float = 30.0) -> None:
        self.engine = engine
        self.ready: list[str] = []
        options = ServerOptions(shutdown_timeout=timeout)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        config = uvicorn.Config(build_app(engine, engine.options, options), log_config=None, lifespan="on", timeout_graceful_shutdown=5)
        self.http = DrainingServer(config, engine, timeout)
        self.task = asyncio.create_task(_serve(self.http, engine, self.listener, options, self.ready.append))

    async def up(self) -> None:
        await until(lambda: self.http.started)


async def test_signal_drains_running_requests_finish_and_new_ones_get_503(engine: Any) -> None:
    process = Process(engine)
    await process.up()
    engine.hold.clear()
    engine.hold_after = 1
    async with httpx.AsyncClient(timeout=30) as http:
        running = asyncio.create_task(http.post(f"{process.url}/v1/completions", json={"prompt": "a"}))
        await until(lambda: engine.submitted)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: engine.phase == "draining")
        refused = await http.post(f"{process.url}/v1/completions", json={"prompt": "b"})
        health = await http.get(f"{process.url}/health")
        engine.hold.set()
        answer = await running
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining" and refused.headers["retry-after"]
    assert health.status_code == 503 and health.json()["phase"] == "draining"
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == "Paris"
    assert await process.task == 0 and engine.shut_down and process.ready == ["fake-model"]


async def test_requests_that_outlive_the_drain_are_ended_with_an_error(engine: Any) -> None:
    process = Process(engine, timeout=0.05)
    await process.up()
    engine.hold.clear()
    engine.hold_after = 1
    client = openai.AsyncOpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0)
    stream = await client.completions.create(model="fake-model", prompt="a", stream=True)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(openai.APIError, match="draining"):
        async for _ in stream:
            pass
    await client.close()
    assert await process.task == 0


async def test_second_signal_stops_at_once(engine: Any) -> None:
    process = Process(engine, timeout=1000)
    await process.up()
    engine.hold.clear()
    async with httpx.AsyncClient(timeout=30) as http:
        running = asyncio.create_task(http.post(f"{process.url}/v1/completions", json={"prompt": "a"}))
        await until(lambda: engine.submitted)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: engine.phase == "draining")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            await running
    assert await process.task == 0 and engine.aborted == [engine.submitted[0].id] and engine.shut_down


async def test_start_up_that_fails_ends_the_process_with_1(engine: Any) -> None:
    engine.load_later()
    engine.start_up_error = ModelLoadError("no such directory")
    process = Process(engine)
    engine.phase, engine.failure = "failed", "no such directory"
    engine.loaded.set()
    assert await process.task == 1 and process.ready == []
