"""HTTPS, unix sockets and the path behind a proxy, as ``octavo serve`` serves them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from octavo.cli.serve import listen
from octavo.config import ServerOptions
from octavo.errors import ConfigError
from octavo.server import http_server
from octavo.server.app import build_app
from octavo.server.http_server import configure


class QuietServer(uvicorn.Server):
    """uvicorn without signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@contextlib.asynccontextmanager
async def listening(client: Any, options: ServerOptions) -> AsyncIterator[socket.socket]:
    """Serve on the socket that the options say."""
    with listen(options) as listener:
        server = QuietServer(configure(build_app(client, client.options, options), options))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield listener
        finally:
            server.should_exit = True
            await task


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        cert,
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([*words, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return key, cert


async def test_https_answers_and_plain_http_does_not(engine: Any, certificate: tuple[str, str]) -> None:
    key, cert = certificate
    async with listening(engine, ServerOptions(port=0, ssl_keyfile=key, ssl_certfile=cert)) as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        trusting = ssl.create_default_context(cafile=cert)
        async with httpx.AsyncClient(verify=trusting) as http:
            answer = await http.post(f"https://{where}/v1/completions", json={"prompt": "a", "stream": True})
            assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
            large = await http.get(f"https://{where}/health", headers={"x": "a" * 70_000})
            assert large.status_code == 431
            with pytest.raises(httpx.TransportError):
                await http.get(f"http://{where}/health")
            assert (await http.get(f"https://{where}/health")).status_code == 200
        old = ssl.create_default_context(cafile=cert)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", listener.getsockname()[1], ssl=old)


def test_tls_files_that_are_none_are_a_clear_error(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    monkeypatch.setattr(http_server, "EngineClient", lambda options: engine)
    options = ServerOptions(port=0, ssl_keyfile=str(wrong), ssl_certfile=str(wrong))
    with listen(options) as listener, pytest.raises(ConfigError, match=r"wrong\.pem"):
        http_server.run(listener, engine.options, options, lambda name: None)
    assert not engine.started


async def test_unix_socket_answers_and_asks_for_keys(engine: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "octavo.sock")
    through = httpx.AsyncHTTPTransport(uds=path)
    async with listening(engine, ServerOptions(uds=path, api_key=["key"])), httpx.AsyncClient(transport=through) as http:
        assert (await http.get("http://octavo/health")).status_code == 200
        assert (await http.get("http://octavo/v1/models")).status_code == 401
        answer = await http.post("http://octavo/v1/completions", json={"prompt": "a"}, headers={"authorization": "Bearer key"})
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/llm", "/a/b"])
async def test_path_behind_a_proxy_is_in_the_document_and_opens_nothing(engine: Any, path: str) -> None:
    async with listening(engine, ServerOptions(port=0, root_path=path, api_key=["key"])) as listener, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        key = {"authorization": "Bearer key"}
        document = (await http.get(f"{url}/openapi.json", headers=key)).json()
        assert document["servers"] == [{"url": path}]
        assert f"{path}/openapi.json" in (await http.get(f"{url}/docs", headers=key)).text
        assert (await http.get(f"{url}/health")).status_code == 200
        for closed in (
            "/v1/models",
            f"{path}/v1/models",
            f"/{path}/health",
            "/health/../v1/models",
            "/%2e/health",
            "/health%2f",
            "/HEALTH",
        ):
            assert (await http.get(url + closed)).status_code == 401, closed
