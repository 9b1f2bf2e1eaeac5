"""The frameworks applications are written in, langchain and litellm, against the embedded default by URL alone."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from serving import Server

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else litellm asks the internet for prices when it is imported

import litellm
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


class Town(BaseModel):
    """A town."""

    name: Literal["Paris", "Rome", "Oslo"]
    is_capital: bool


class GetWeather(BaseModel):
    """The weather in a city now."""

    city: Literal["Paris", "Rome", "Oslo"]


@pytest.fixture
def chain(server: Server) -> ChatOpenAI:
    options: Any = {
        "base_url": f"{server.url}/v1",
        "api_key": "none",
        "model": "smollm2",
        "temperature": 0,
        "max_tokens": 100,
        "max_retries": 0,
    }
    return ChatOpenAI(**options)


@pytest.fixture
def light(server: Server) -> Iterator[dict[str, Any]]:
    yield {
        "model": "openai/smollm2",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "temperature": 0,
        "max_tokens": 100,
        "max_retries": 0,
    }


def test_langchain_invokes_streams_and_batches(chain: ChatOpenAI) -> None:
    assert chain.invoke(QUESTION).content == ANSWER
    assert "".join(str(chunk.content) for chunk in chain.stream(QUESTION)) == ANSWER
    assert [message.content for message in chain.batch([QUESTION] * 3)] == [ANSWER] * 3
    assert chain.bind(stop=[" France"]).invoke(QUESTION).content == "The capital of"
    scored = chain.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    assert len(scored.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    several = chain.model_copy(update={"n": 2, "temperature": 1.0, "seed": 5}).generate([[HumanMessage(QUESTION)]])
    assert len(several.generations[0]) == 2


def test_langchain_tools_and_schemas(chain: ChatOpenAI) -> None:
    called = chain.bind_tools([GetWeather], tool_choice="required").invoke("How warm is it in Rome?")
    assert isinstance(called, AIMessage)
    assert called.tool_calls[0]["name"] == "GetWeather" and GetWeather(**called.tool_calls[0]["args"])
    streamed: Any = None
    for chunk in chain.bind_tools([GetWeather], tool_choice="required").stream("How warm is it in Rome?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == called.tool_calls[0]["args"]
    result = ToolMessage("21 degrees", tool_call_id=called.tool_calls[0]["id"])
    assert chain.invoke([HumanMessage("How warm is it in Rome?"), called, result]).content
    for method in ("json_schema", "function_calling"):
        town = chain.with_structured_output(Town, method=method).invoke("Describe Rome.")  # type: ignore[arg-type]
        assert isinstance(town, Town)


async def test_langchain_async_errors_timeouts_and_cancellation(chain: ChatOpenAI, server: Server) -> None:
    assert (await chain.ainvoke(QUESTION)).content == ANSWER
    with pytest.raises(openai.BadRequestError):
        await chain.bind(temperature=-1).ainvoke(QUESTION)
    long = chain.bind(max_tokens=1500, extra_body={"ignore_eos": True})
    with pytest.raises(openai.APITimeoutError):
        await long.bind(timeout=0.3).ainvoke(QUESTION)
    task = asyncio.ensure_future(long.ainvoke(QUESTION))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 5, "the aborts")


def test_litellm_completes_and_streams(light: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    assert litellm.completion(messages=messages, **light).choices[0].message.content == ANSWER
    pieces = litellm.completion(messages=messages, stream=True, **light)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ANSWER
    assert litellm.completion(messages=messages, stop=[" France"], **light).choices[0].message.content == "The capital of"
    several = litellm.completion(messages=messages, n=2, logprobs=True, top_logprobs=2, **light)
    assert len(several.choices) == 2
    assert several.choices[0].logprobs.content[0].top_logprobs


def test_litellm_tools_and_schemas(light: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": GetWeather.model_json_schema()}}
    messages = [{"role": "user", "content": "How warm is it in Rome?"}]
    called = litellm.completion(messages=messages, tools=[tool], tool_choice="required", **light).choices[0].message.tool_calls[0]
    assert called.function.name == "get_weather" and GetWeather(**json.loads(called.function.arguments))
    described = litellm.completion(messages=messages, response_format=Town, **light).choices[0].message.content
    assert Town.model_validate_json(described)


async def test_litellm_async_errors_timeouts_and_cancellation(light: dict[str, Any], server: Server) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    assert (await litellm.acompletion(messages=messages, **light)).choices[0].message.content == ANSWER
    with pytest.raises(litellm.BadRequestError):
        await litellm.acompletion(messages=messages, **(light | {"temperature": -1}))
    with pytest.raises(litellm.NotFoundError):
        await litellm.acompletion(messages=messages, **(light | {"model": "openai/gpt-9"}))
    long = light | {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    with pytest.raises(litellm.Timeout):
        await litellm.acompletion(messages=messages, timeout=0.3, **long)
    task = asyncio.ensure_future(litellm.acompletion(messages=messages, **long))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 5, "the aborts")
