"""What a server is like, found out by asking it: its model's name, whether it takes token ids, how long its tokens are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from octavo.bench.client import Target, send
from octavo.bench.datasets import WORDS, WORDS_TEXT, Sample, Text, TokenIds, Tongue
from octavo.bench.options import CHAT
from octavo.errors import OctavoError

TOKENS_PER_WORD, TOKENS_PER_CHARACTER = 1.3, 0.25
"""Guesses for English, used where the server tells nothing."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found out.

    Attributes:
        target: the target, with what the server cannot do left out.
        tongue: how to write random prompts.
        count: tokens of a text.
        note: how long prompts are known to be, for the report.
    """

    target: Target
    tongue: Tongue
    count: Callable[[str], Awaitable[int]]
    note: str


async def find_model(session: aiohttp.ClientSession, base_url: str) -> str:
    """The first model the server names.

    Raises:
        OctavoError: there is no server, or it names none.
    """
    listing = await _json(session, "GET", base_url + "/v1/models", None)
    try:
        return str(listing["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise OctavoError(f"{base_url}/v1/models names no model; say which with --model.") from None


async def probe(session: aiohttp.ClientSession, target: Target) -> Probe:
    """Send a few one-token requests (they also warm the server up) and ask ``/tokenize``.

    Raises:
        OctavoError: the server is not there, or refuses the plainest request.
    """
    target, tokens_per_word = await _plain_request(session, target)
    pool = await _tokenize(session, target, WORDS_TEXT)
    if pool is None:
        guessed = tokens_per_word is None
        per_word = tokens_per_word or TOKENS_PER_WORD

        async def estimate(text: str) -> int:
            return max(1, round(len(text) * (TOKENS_PER_CHARACTER if guessed else per_word * len(WORDS) / len(WORDS_TEXT))))

        how = "guessed: the server has no /tokenize and gives no usage" if guessed else "estimated from the server's usage"
        return Probe(target, Text(per_word), estimate, f"text, length {how}")

    async def count(text: str) -> int:
        tokens = await _tokenize(session, target, text)
        if tokens is None:
            raise OctavoError(f"{target.base_url}/tokenize stopped answering.")
        return len(tokens)

    if target.endpoint != CHAT and await _takes_ids(session, target, pool):
        return Probe(target, TokenIds(sorted(set(pool))), count, "token ids")
    return Probe(target, Text(len(pool) / len(WORDS)), count, "text, length estimated with /tokenize")


async def _plain_request(session: aiohttp.ClientSession, target: Target) -> tuple[Target, float | None]:
    """Send the words once and twice; the difference in the server's usage, free of chat templates, gives tokens a word."""
    first = await send(session, target, Sample(WORDS_TEXT, 0, 1))
    if first.error and target.usage_in_stream and "stream_options" in first.error:
        target = replace(target, usage_in_stream=False)
        first = await send(session, target, Sample(WORDS_TEXT, 0, 1))
    if first.error:
        raise OctavoError(f"a test request to {target.url} failed: {first.error}")
    second = await send(session, target, Sample(f"{WORDS_TEXT} {WORDS_TEXT}", 0, 1))
    if not first.prompt_tokens or not second.prompt_tokens or second.prompt_tokens <= first.prompt_tokens:
        return target, None
    return target, (second.prompt_tokens - first.prompt_tokens) / len(WORDS)


async def _takes_ids(session: aiohttp.ClientSession, target: Target, pool: list[int]) -> bool:
    record = await send(session, target, Sample(pool[:16], 16, 1))
    return record.error is None and record.prompt_tokens in (None, 16)


async def _tokenize(session: aiohttp.ClientSession, target: Target, text: str) -> list[int] | None:
    body = {"model": target.model, "prompt": text, "add_special_tokens": False}
    try:
        answer = await _json(session, "POST", target.base_url + "/tokenize", body)
    except OctavoError:
        return None
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    good = isinstance(tokens, list) and tokens and all(isinstance(token, int) for token in tokens)
    return tokens if good else None


async def _json(session: aiohttp.ClientSession, method: str, url: str, body: dict[str, Any] | None) -> Any:
    try:
        async with session.request(method, url, json=body, headers={"Accept": "application/json"}) as response:
            if response.status != 200:
                raise OctavoError(f"{url} answers HTTP {response.status}: {' '.join((await response.text())[:200].split())}")
            return await response.json(content_type=None)
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise OctavoError(f"{url} is no address; say --base-url http://HOST:PORT.") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise OctavoError(f"cannot reach {url} ({error}); is the server running there?") from None
    except ValueError:
        raise OctavoError(f"{url} does not answer with JSON.") from None
