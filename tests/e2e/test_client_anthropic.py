"""Anthropic's own client against the embedded default."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from serving import Server

CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
GREEDY = {"temperature": 0}  # a field that the client no longer has
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city now.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120) as made:
        yield made


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_whole_and_streamed(client: anthropic.Anthropic) -> None:
    body: Any = {"model": "smollm2", "messages": CAPITAL, "max_tokens": 40, "extra_body": GREEDY}
    whole = client.messages.create(**body)
    assert text_of(whole) == ANSWER
    assert (whole.stop_reason, whole.stop_sequence, whole.role) == ("end_turn", None, "assistant")
    with client.messages.stream(**body) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    assert text_of(final) == ANSWER
    assert final.usage.output_tokens == whole.usage.output_tokens
    read = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert client.messages.count_tokens(model="smollm2", messages=CAPITAL).input_tokens == read


def test_system_stop_sequences_and_the_limit(client: anthropic.Anthropic) -> None:
    body: Any = {"model": "smollm2", "messages": CAPITAL, "max_tokens": 40, "extra_body": GREEDY}
    stopped = client.messages.create(**body, stop_sequences=[" France"])
    assert (text_of(stopped), stopped.stop_reason, stopped.stop_sequence) == ("The capital of", "stop_sequence", " France")
    assert client.messages.create(**(body | {"max_tokens": 2})).stop_reason == "max_tokens"
    plain = client.messages.count_tokens(model="smollm2", messages=CAPITAL).input_tokens
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        client.messages.create(**(body | {"thinking": {"type": "enabled", "budget_tokens": 1024}}))
    told = client.messages.count_tokens(model="smollm2", messages=CAPITAL, system="Answer in one word, and never in two words.")
    assert told.input_tokens != plain


def test_a_tool_is_used_whole_and_streamed(client: anthropic.Anthropic) -> None:
    body: Any = {"model": "smollm2", "messages": [{"role": "user", "content": "How warm is it in Paris?"}], "tools": [WEATHER]}
    body |= {"tool_choice": {"type": "tool", "name": "get_weather"}, "max_tokens": 100, "extra_body": GREEDY}
    whole = client.messages.create(**body)
    used: Any = next(block for block in whole.content if block.type == "tool_use")
    assert used.name == "get_weather" and set(used.input) == {"city"} and whole.stop_reason == "tool_use"
    with client.messages.stream(**body) as stream:
        streamed: Any = next(block for block in stream.get_final_message().content if block.type == "tool_use")
    assert streamed.input == used.input
    result = {"type": "tool_result", "tool_use_id": used.id, "content": "21 degrees"}
    history: Any = [
        *body["messages"],
        {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
        {"role": "user", "content": [result]},
    ]
    answer = client.messages.create(
        model="smollm2", messages=history, tools=[WEATHER], tool_choice={"type": "none"}, max_tokens=30, extra_body=GREEDY
    )
    assert text_of(answer)


def test_errors_are_the_clients_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="claude-9", messages=CAPITAL, max_tokens=5)
    assert unknown.value.body == {"type": "error", "error": {"type": "not_found_error", "message": unknown.value.body["error"]["message"]}}  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(model="smollm2", messages=CAPITAL, max_tokens=5, extra_body={"temperature": 7})
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        client.messages.create(model="smollm2", messages=[{"role": "user", "content": "word " * 5000}], max_tokens=5)


async def test_async_cancellation_and_timeouts_free_the_engine(server: Server) -> None:
    long: Any = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Write a very long story about the sea."}],
        "max_tokens": 1500,
    }
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120) as client:
        with pytest.raises(anthropic.APITimeoutError):
            await client.with_options(timeout=0.3).messages.create(**long)
        task = asyncio.ensure_future(client.messages.create(**long))
        answer = await client.messages.create(model="smollm2", messages=CAPITAL, max_tokens=40, extra_body=GREEDY)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert text_of(answer) == ANSWER
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 5, "the aborts")
