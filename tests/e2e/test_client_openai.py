"""OpenAI's own client against the embedded default: what an application does with it, in one go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from serving import Server

CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CALL_WEATHER: Any = {"model": "smollm2", "messages": [{"role": "user", "content": "How warm is it in Paris?"}], "tools": [WEATHER]}


class Town(BaseModel):
    """What the structured answers must look like."""

    name: Literal["Paris", "Rome", "Oslo"]
    inhabitants: int
    is_capital: bool


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_chat_whole_and_streamed_are_one_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=40)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(
        model="smollm2", messages=CAPITAL, temperature=0, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage == whole.usage or (chunks[-1].usage is not None and chunks[-1].usage.total_tokens == whole.usage.total_tokens)


def test_the_streaming_helper_collects_the_same_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=40) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds
    assert final.choices[0].message.content == ANSWER


def test_n_seeds_stop_and_logprobs(client: openai.OpenAI) -> None:
    def ask(**changes: Any) -> Any:
        body = {"model": "smollm2", "messages": CAPITAL, "max_tokens": 20, "temperature": 1.0, "seed": 7, "n": 3} | changes
        return client.chat.completions.create(**body)

    first, again = ask(), ask()
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    stopped = ask(n=1, temperature=0, stop=[" France"]).choices[0]
    assert stopped.message.content == "The capital of" and stopped.finish_reason == "stop"
    likely = ask(n=1, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    tokens = likely.logprobs.content
    assert "".join(token.token for token in tokens).startswith(ANSWER)
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.logprob == max(entry.logprob for entry in token.top_logprobs)
    assert ask(n=1, max_tokens=2).choices[0].finish_reason == "length"


def test_a_required_call_parses_whole_and_streamed(client: openai.OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        body: Any = CALL_WEATHER | {"tool_choice": choice, "temperature": 0, "max_tokens": 100}
        whole = client.chat.completions.create(**body).choices[0]
        assert whole.message.tool_calls is not None
        call: Any = whole.message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather" and call.id and call.type == "function"
        assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("celsius", "fahrenheit")
        with client.chat.completions.stream(**body) as stream:
            for _ in stream:
                pass
            streamed: Any = stream.get_final_completion().choices[0]
        assert streamed.message.tool_calls[0].function.name == "get_weather"
        assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
        assert streamed.finish_reason == whole.finish_reason


def test_a_conversation_with_a_tool_goes_on(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**CALL_WEATHER, tool_choice="required", temperature=0, max_tokens=100)
    message: Any = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"celsius": 21}'}
    history: Any = [*CALL_WEATHER["messages"], message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(model="smollm2", messages=history, tools=[WEATHER], tool_choice="none", max_tokens=30)
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_a_schema_given_as_a_type_comes_back_as_one(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Describe Rome as JSON."}]
    parsed = client.chat.completions.parse(model="smollm2", messages=messages, response_format=Town, max_tokens=200, temperature=0)
    town = parsed.choices[0].message.parsed
    assert isinstance(town, Town)
    loose = client.chat.completions.create(
        model="smollm2", messages=messages, response_format={"type": "json_object"}, max_tokens=300, temperature=0
    )
    if loose.choices[0].finish_reason == "stop":  # a small model may go on until the limit; what it wrote is JSON's beginning
        assert isinstance(json.loads(loose.choices[0].message.content or ""), dict)
    else:
        assert (loose.choices[0].message.content or "").startswith("{")


def test_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="smollm2", input=CAPITAL[0]["content"], temperature=0, max_output_tokens=40, store=False)
    assert whole.output_text == ANSWER and whole.status == "completed"
    with client.responses.stream(model="smollm2", input=CAPITAL[0]["content"], temperature=0, max_output_tokens=40) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == ANSWER
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"


def test_completions_with_token_ids(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm2", prompt=[[504, 3575], [504]], max_tokens=3, temperature=0, logprobs=1)
    assert len(answer.choices) == 2
    assert answer.choices[0].logprobs is not None and len(answer.choices[0].logprobs.tokens or []) == 3


def test_errors_are_the_clients_own(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=CAPITAL)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "word " * 5000}])
    with pytest.raises(openai.BadRequestError, match="schema"):
        bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
        client.chat.completions.create(model="smollm2", messages=CAPITAL, response_format=bad)


def test_a_timeout_frees_the_request(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.4).completions.create(
            model="smollm2", prompt="Count:", max_tokens=1500, temperature=0, extra_body={"ignore_eos": True}
        )
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 5, "the abort")
    assert client.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=0).choices[0].message.content == ANSWER


async def test_async_many_at_once_some_cancelled(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:

        async def ask() -> str | None:
            answer = await client.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=40)
            return answer.choices[0].message.content

        async def count() -> None:
            stream = await client.completions.create(
                model="smollm2", prompt="Count:", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
            )
            async for _ in stream:
                pass

        lost = [asyncio.ensure_future(count()) for _ in range(4)]
        answers = await asyncio.gather(*(ask() for _ in range(8)))
        for task in lost:
            task.cancel()
        await asyncio.gather(*lost, return_exceptions=True)
    assert answers == [ANSWER] * 8
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 5, "the aborts")
    assert server.metric("vllm:kv_cache_usage_perc") == 0
