"""One streamed request to an OpenAI-compatible server, timed chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from octavo.bench.datasets import Prompt, Sample
from octavo.bench.metrics import Record
from octavo.bench.options import CHAT, GENERATE

_CONNECT_SECONDS = 30.0
_SILENCE_SECONDS = 1800.0
"""A server that sends nothing for that long is given up: a request in a long line is quiet until its first token."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they say besides the prompt.

    Attributes:
        base_url: scheme, host and port.
        model: the served name.
        fields: request fields that every request carries (temperature, ignore_eos, ...).
        usage_in_stream: whether the server accepts ``stream_options: {"include_usage": true}``.
    """

    base_url: str
    endpoint: str
    model: str
    fields: dict[str, Any]
    usage_in_stream: bool = True

    @property
    def url(self) -> str:
        return self.base_url + self.endpoint

    def payload(self, prompt: Prompt, max_tokens: int) -> dict[str, Any]:
        """The body of one request."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "stream": True, **self.fields}
        if self.endpoint == CHAT:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.endpoint == GENERATE:
            body["raw"] = True
        elif self.usage_in_stream:
            body["stream_options"] = {"include_usage": True}
        return body


def new_session(api_key: str | None) -> aiohttp.ClientSession:
    """A session that opens as many connections as there are requests in flight."""
    headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=timeout)


class StreamError(Exception):
    """The answer is not whole; the message says in which way."""


async def send(session: aiohttp.ClientSession, target: Target, sample: Sample) -> Record:
    """Send one request and follow its stream to the end. Never raises for what the server does: the record says it."""
    record = Record(requested_prompt_tokens=sample.prompt_len)
    body = msgspec.json.encode(target.payload(sample.prompt, sample.output_len))
    record.sent = time.perf_counter()
    try:
        async with session.post(target.url, data=body, headers={"Content-Type": "application/json"}) as response:
            if response.status != 200:
                raise StreamError(f"HTTP {response.status}: {_error_text(await response.read())}")
            await _follow(response, record)
    except StreamError as error:
        record.error = str(error)
    except TimeoutError:
        record.error = f"no answer within {_SILENCE_SECONDS:g} seconds"
    except aiohttp.ClientError as error:
        record.error = f"{type(error).__name__}: {error}"
    if record.error is not None or not record.ended:
        record.ended = time.perf_counter()
    return record


async def _follow(response: aiohttp.ClientResponse, record: Record) -> None:
    finished = False
    async for event, arrived in events(response):
        if "error" in event:
            raise StreamError(f"in the stream: {_message(event)}")
        if usage := event.get("usage"):
            record.prompt_tokens = usage.get("prompt_tokens", record.prompt_tokens)
            record.output_tokens = usage.get("completion_tokens", record.output_tokens)
        text, ends = read_event(event)
        if text:
            record.text_times.append(arrived)
        if text or ends:
            record.ended = arrived
        finished = finished or ends
    if not finished:
        raise StreamError("the stream ended before the answer did")
    if not record.text_times and record.output_tokens:
        record.text_times.append(record.ended)  # tokens without text (special ones): they came with the end at the latest
    if not record.text_times:
        raise StreamError("the answer has no token")


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[dict[str, Any], float]]:
    """JSON objects of a stream, server-sent events or JSON lines, with the time their bytes came. ``[DONE]`` ends it.

    Raises:
        StreamError: a line that is not JSON.
    """
    buffer = b""
    async for data in response.content.iter_any():
        arrived = time.perf_counter()
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            content = line.removeprefix(b"data:").strip()
            if content == b"[DONE]":
                return
            if not content or content.startswith((b":", b"event:", b"id:", b"retry:")):
                continue
            try:
                event = msgspec.json.decode(content)
            except msgspec.DecodeError:
                event = None
            if not isinstance(event, dict):
                raise StreamError(f"a line of the stream is no JSON object: {content[:80].decode(errors='replace')}")
            yield event, arrived


def read_event(event: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a chunk of any of the endpoints carries generated text, and whether it ends the answer."""
    choices = event.get("choices")
    if choices is None:  # /generate: {"text": [...]} and {"finish_reason": ...}
        text = event.get("text")
        return bool("".join(text) if isinstance(text, list) else text), _any(event.get("finish_reason"))
    text, ends = False, False
    for choice in choices:
        delta = choice.get("delta") or {}
        parts = (choice.get("text"), delta.get("content"), delta.get("reasoning_content"), delta.get("reasoning"), delta.get("tool_calls"))
        text = text or any(parts)
        ends = ends or choice.get("finish_reason") is not None
    return text, ends


def _any(reasons: Any) -> bool:
    return any(reason is not None for reason in reasons) if isinstance(reasons, list) else reasons is not None


def _error_text(body: bytes) -> str:
    try:
        event = msgspec.json.decode(body)
    except msgspec.DecodeError:
        event = None
    return _message(event) if isinstance(event, dict) else " ".join(body[:200].decode(errors="replace").split())


def _message(event: dict[str, Any]) -> str:
    error = event.get("error", event.get("detail", event.get("message", event)))
    return str(error.get("message", error) if isinstance(error, dict) else error)
