"""Raw sockets against the server: what a client can make it hold, and how long it waits for one."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from octavo.server import connection
from octavo.server.connection import MAX_HEAD_BYTES, MAX_HEADERS, BoundedHttpProtocol

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b'Content-Length: 15\r\n\r\n{"prompt": "a"}'
PATIENCE = 20
"""Longest a test waits for the server to act, in seconds."""


class Raw:
    """A connection that says what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """The next answer: its status and its JSON."""
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), PATIENCE)).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), json.loads(await self._reader.readexactly(length))

    async def closed(self) -> bool:
        """Whether the server ends the connection and says nothing more."""
        try:
            return await asyncio.wait_for(self._reader.read(), PATIENCE) == b""
        except ConnectionError:
            return True

    def leave(self) -> None:
        self._writer.transport.abort()


async def connect(url: str) -> Raw:
    where = urlsplit(url)
    return Raw(*await asyncio.open_connection(where.hostname, where.port))


async def still_serves(engine: Any, url: str) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.post(f"{url}/v1/completions", json={"prompt": "a"})).status_code == 200
        assert (await http.get(f"{url}/load")).json() == {"server_load": 0}
    assert engine.live == 0


def hurry(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    for name, value in seconds.items():
        monkeypatch.setattr(BoundedHttpProtocol, name, value)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 3 * MAX_HEAD_BYTES,
        b"GET /" + b"a" * 3 * MAX_HEAD_BYTES,
    ],
)
@pytest.mark.parametrize("step", [1000, 10**9])
async def test_head_past_the_limit_is_431(engine: Any, url: str, head: bytes, step: int) -> None:
    raw = await connect(url)
    try:
        for start in range(0, len(head), step):
            await raw.send(head[start : start + step])
    except ConnectionError:
        pass  # refused before all was sent
    status, body = await raw.answer()
    assert status == 431 and body["error"]["code"] == "headers_too_large" and "64 KiB" in body["error"]["message"]
    assert await raw.closed()
    await still_serves(engine, url)


async def test_head_within_the_limit_is_taken_and_counts_anew_for_each_request(engine: Any, url: str) -> None:
    raw = await connect(url)
    for _ in range(3):
        await raw.send(b"GET /version HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (MAX_HEAD_BYTES - 1000) + b"\r\n\r\n")
        assert (await raw.answer())[0] == 200
    for _ in range(3):
        await raw.send(b"GET /version HTTP/1.1\r\n" + b"X: a\r\n" * (MAX_HEADERS - 1) + b"\r\n")
        assert (await raw.answer())[0] == 200
    raw.leave()


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nA\x00B: c\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_400_and_closed(engine: Any, url: str, said: bytes) -> None:
    raw = await connect(url)
    await raw.send(said)
    status, body = await raw.answer()
    assert status == 400 and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert await raw.closed()
    await still_serves(engine, url)


async def test_offer_to_upgrade_is_passed_over(engine: Any, url: str) -> None:
    raw = await connect(url)
    await raw.send(b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert (await raw.answer())[0] == 200
    raw.leave()


async def test_requests_in_one_write_are_answered_in_turn(engine: Any, url: str) -> None:
    raw = await connect(url)
    await raw.send(GOOD * 5)
    assert [(await raw.answer())[0] for _ in range(5)] == [200] * 5
    raw.leave()


@pytest.mark.parametrize("said", [b"", b"GET /health", b"GET /health HTTP/1.1\r\nX: a", HEAD + b"Content-Length: 9\r\n\r\n{"])
async def test_request_that_does_not_come_is_not_waited_for(engine: Any, url: str, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    hurry(monkeypatch, head_seconds=0.2, body_seconds=0.2)
    raw = await connect(url)
    await raw.send(said)
    status, body = await raw.answer()
    assert status == 408 and body["error"]["code"] == "request_timeout" and await raw.closed()
    await still_serves(engine, url)


async def test_head_that_drips_is_not_waited_for(engine: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, head_seconds=0.3)
    raw = await connect(url)

    async def drip() -> None:
        await raw.send(b"GET /health HTTP/1.1\r\n")
        while True:
            await raw.send(b"X: a\r\n")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    assert (await raw.answer())[0] == 408
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)


async def test_answer_may_take_longer_than_a_request(engine: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, head_seconds=0.1, body_seconds=0.1)
    engine.hold.clear()
    raw = await connect(url)
    await raw.send(GOOD)
    await asyncio.sleep(0.5)
    engine.hold.set()
    assert (await raw.answer())[0] == 200
    raw.leave()


async def test_client_that_reads_nothing_is_let_go_and_its_request_aborted(engine: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, write_seconds=0.3)
    engine.reply = lambda prompt, index: "x" * 900
    where = urlsplit(url)
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    stuck.setblocking(False)
    await asyncio.get_running_loop().sock_connect(stuck, (where.hostname, where.port))
    many = json.dumps({"prompt": ["a"] * 200, "stream": True, "max_tokens": 900, "logprobs": 20}).encode()
    await asyncio.get_running_loop().sock_sendall(stuck, HEAD + b"Content-Length: %d\r\n\r\n" % len(many) + many)

    async def gone() -> None:
        while not engine.submitted or engine.live:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(gone(), PATIENCE * 3)
    stuck.close()
    assert engine.aborted
    await still_serves(engine, url)


async def test_body_that_goes_on_after_its_answer_is_cut_off(engine: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_UNREAD_BYTES", 2**20)
    async with serve(engine, max_body_bytes=1000) as url:
        raw = await connect(url)
        await raw.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")

        async def endless() -> None:
            while True:
                await raw.send(b"10000\r\n" + b" " * 2**16 + b"\r\n")

        sending = asyncio.create_task(endless())
        assert (await raw.answer())[0] == 413 and await raw.closed()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(sending, PATIENCE)
        await still_serves(engine, url)


async def test_many_idle_connections_do_not_keep_others_out(engine: Any, url: str) -> None:
    idle = [await connect(url) for _ in range(300)]
    await still_serves(engine, url)
    for raw in idle:
        raw.leave()


@pytest.mark.parametrize(
    "cut", [None, 5, len(HEAD), -MAX_HEAD_BYTES - 1, -1], ids=["whole", "in the head", "before its end", "in the body", "last byte"]
)
async def test_a_long_body_is_no_long_head_wherever_it_is_cut(engine: Any, url: str, cut: int | None) -> None:
    body = json.dumps({"prompt": "a", "user": "x" * 3 * MAX_HEAD_BYTES}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    raw = await connect(url)
    for _ in range(3):
        await raw.send(request[:cut])
        if cut is not None:
            await asyncio.sleep(0.05)  # so that the server reads the two apart
            await raw.send(request[cut:])
        assert (await raw.answer())[0] == 200
    raw.leave()
    await still_serves(engine, url)
