"""A model behind a running server, as ``octavo chat --url`` talks to it: one blocking request an answer."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from octavo.errors import ConfigError, OctavoError

_TIMEOUT_SECONDS = 600.0


class RemoteModel:
    """A model of an OpenAI-compatible server.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        model: served name; the first the server names when None.
        api_key: sent as a bearer token where the server wants one.

    Raises:
        OctavoError: there is no server at ``url``, or it serves nothing.
    """

    def __init__(self, url: str, model: str | None, api_key: str | None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        if not self._url.startswith(("http://", "https://")):
            raise ConfigError(f"--url takes an address such as http://127.0.0.1:8000; got {url!r}.")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._model = model or self._first_model()

    def answer(self, messages: Sequence[dict[str, str]], given: dict[str, Any], write: Callable[[str], None]) -> str:
        """Answer a conversation, passing the text on as it comes; returns why it ended.

        Raises:
            OctavoError: the server refused, failed or went away.
        """
        body = {"model": self._model, "messages": list(messages), "stream": True, **given}
        reason = "error"
        with self._open("/v1/chat/completions", body) as response:
            try:
                for event in _events(response):
                    if "error" in event:
                        raise OctavoError(f"the server says: {_message(event)}")
                    for choice in event.get("choices", []):
                        write((choice.get("delta") or {}).get("content") or "")
                        reason = choice.get("finish_reason") or reason
            except (OSError, http.client.HTTPException) as error:
                raise OctavoError(f"the server went away while it answered: {error}") from None
        if reason == "error":
            raise OctavoError("the server ended its answer before it was whole.")
        return reason

    def close(self) -> None:
        """Nothing is held between answers."""

    def _first_model(self) -> str:
        with self._open("/v1/models", None) as response:
            try:
                return str(json.loads(response.read())["data"][0]["id"])
            except (ValueError, KeyError, IndexError, TypeError):
                raise OctavoError(f"{self._url}/v1/models names no model.") from None

    def _open(self, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, headers=self._headers)
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            raise OctavoError(f"the server answers {error.code}: {_error_text(error.read())}") from None
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            raise OctavoError(f"cannot reach {self._url} ({getattr(error, 'reason', error)}); is the server running there?") from None
        return response


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        content = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or not content:
            continue
        if content == b"[DONE]":
            return
        try:
            event = json.loads(content)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise OctavoError(f"the server sent a line that is no JSON object: {content[:80].decode(errors='replace')}")
        yield event


def _error_text(body: bytes) -> str:
    try:
        event = json.loads(body)
    except ValueError:
        event = None
    return _message(event) if isinstance(event, dict) else " ".join(body[:200].decode(errors="replace").split())


def _message(event: dict[str, Any]) -> str:
    error = event.get("error", event)
    return str(error.get("message", error) if isinstance(error, dict) else error)
