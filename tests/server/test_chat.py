"""``/v1/chat/completions`` through the real openai client."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

USER = [{"role": "user", "content": "hi"}]


def client_of(url: str, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, **options)


TOOL = {"type": "function", "function": {"name": "f"}}


async def test_answer_has_openai_s_shape(engine: Any, url: str) -> None:
    made = await client_of(url).chat.completions.create(model="fake-model", messages=USER)
    assert made.object == "chat.completion" and made.id.startswith("chatcmpl-") and made.model == "fake-model"
    assert made.choices[0].message.role == "assistant" and made.choices[0].message.content == "Paris"
    assert made.choices[0].finish_reason == "stop"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (len("<user>hi<assistant>"), 5, 24)
    assert made.usage.prompt_tokens_details.cached_tokens == 1


async def test_prompt_goes_through_the_template_without_further_special_tokens(engine: Any, url: str) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    extra = {"chat_template_kwargs": {"shout": "!"}}
    await client_of(url).chat.completions.create(model="fake-model", messages=messages, extra_body=extra)
    assert engine.submitted[0].prompt == "<system>S!<user>a\nb!<assistant>"
    assert engine.submitted[0].special is False


async def test_continue_final_message_leaves_the_last_message_open(engine: Any, url: str) -> None:
    messages = [*USER, {"role": "assistant", "content": "Once upon"}]
    await client_of(url).chat.completions.create(model="fake-model", messages=messages, extra_body={"continue_final_message": True})
    assert engine.submitted[0].prompt == "<user>hi<assistant>Once upon"


async def test_max_tokens_default_is_what_the_context_leaves(engine: Any, url: str) -> None:
    client = client_of(url)
    await client.chat.completions.create(model="fake-model", messages=USER)
    await client.chat.completions.create(model="fake-model", messages=USER, max_completion_tokens=3)
    await client.chat.completions.create(model="fake-model", messages=USER, max_tokens=2)
    assert [request.params.max_tokens for request in engine.submitted] == [None, 3, 2]


async def test_model_s_sampling_defaults_apply_where_the_request_is_silent(engine: Any, url: str) -> None:
    engine.defaults = {"temperature": 0.2, "top_k": 7}
    await client_of(url).chat.completions.create(model="fake-model", messages=USER, temperature=0.9)
    assert (engine.submitted[0].params.temperature, engine.submitted[0].params.top_k) == (0.9, 7)


async def test_stream_says_the_same_as_the_whole_answer(engine: Any, url: str) -> None:
    client = client_of(url)
    options: dict[str, Any] = {"model": "fake-model", "messages": USER, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = await client.chat.completions.create(**options)
    texts, roles, reasons, logprobs, last = ["", ""], {}, {}, [[], []], None
    async for chunk in await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles.setdefault(choice.index, choice.delta.role)
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == [choice.message.content for choice in whole.choices] == ["Paris", "Paris!"]
    assert roles == {0: "assistant", 1: "assistant"}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert logprobs == [choice.logprobs.content for choice in whole.choices]
    assert last.usage == whole.usage and last.choices == []


async def test_logprobs_hold_tokens_bytes_and_the_likeliest(engine: Any, url: str) -> None:
    engine.reply = lambda prompt, index: "é"
    made = await client_of(url).chat.completions.create(model="fake-model", messages=USER, logprobs=True, top_logprobs=2)
    (entry,) = made.choices[0].logprobs.content
    assert (entry.token, entry.logprob, entry.bytes) == ("é", -0.25, list("é".encode()))
    assert [top.token for top in entry.top_logprobs] == ["é", "ê"]


async def test_continuous_usage_is_in_every_chunk(engine: Any, url: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client_of(url).chat.completions.create(model="fake-model", messages=USER, stream=True, stream_options=options)
    counts = [chunk.usage.completion_tokens async for chunk in stream]
    assert counts == sorted(counts) and counts[-1] == 5


async def test_token_ids_and_prompt_logprobs_are_returned_where_asked_for(engine: Any, url: str) -> None:
    extra = {"return_token_ids": True, "prompt_logprobs": 1}
    made = await client_of(url).chat.completions.create(model="fake-model", messages=USER, extra_body=extra)
    assert made.prompt_token_ids == [ord(character) for character in "<user>hi<assistant>"]
    assert made.choices[0].token_ids == [ord(character) for character in "Paris"]
    assert made.prompt_logprobs[0] is None
    assert made.prompt_logprobs[1] == {str(ord("u")): {"logprob": -0.25, "rank": 1, "decoded_token": "u"}}
    stream = await client_of(url).chat.completions.create(model="fake-model", messages=USER, extra_body=extra, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].prompt_token_ids == made.prompt_token_ids
    assert [token for chunk in chunks for choice in chunk.choices for token in getattr(choice, "token_ids", None) or []] == made.choices[
        0
    ].token_ids
    assert [chunk.prompt_logprobs for chunk in chunks if hasattr(chunk, "prompt_logprobs")] == [made.prompt_logprobs]


async def test_sync_client_and_labels_are_accepted(engine: Any, url: str) -> None:
    def ask() -> str | None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options: dict[str, Any] = {
            "user": "me",
            "metadata": {"a": "b"},
            "store": False,
            "tool_choice": "none",
            "response_format": {"type": "text"},
        }
        return client.chat.completions.create(model="fake-model", messages=USER, **options).choices[0].message.content

    assert await asyncio.to_thread(ask) == "Paris"


async def test_an_answer_can_be_sent_back_as_history(engine: Any, url: str) -> None:
    client = client_of(url)
    first = await client.chat.completions.create(model="fake-model", messages=USER)
    history: list[Any] = [*USER, first.choices[0].message.model_dump(), {"role": "user", "content": "and?"}]
    again = await client.chat.completions.create(model="fake-model", messages=history)
    assert again.choices[0].message.content == "Paris"
    assert engine.submitted[1].prompt == "<user>hi<assistant>Paris<user>and?<assistant>"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
    ],
)
async def test_wrong_input_is_refused_naming_the_field(engine: Any, url: str, fields: dict[str, Any], param: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json={"messages": USER, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text


async def test_model_without_a_template_says_what_to_do(engine: Any, url: str) -> None:
    engine.template = None
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        await client_of(url).chat.completions.create(model="fake-model", messages=USER)


async def test_tokens_of_logprobs_are_named_by_their_ids_where_asked_for(engine: Any, url: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "logprobs": True, "top_logprobs": 2}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=body | {"return_tokens_as_token_ids": True})
    (entry,) = answer.json()["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["bytes"]) == ("token_id:80", [80])
    assert [top["token"] for top in entry["top_logprobs"]] == ["token_id:80", "token_id:81"]


async def test_a_beam_search_over_the_fake_engine_answers_with_its_beams(engine: Any, url: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "use_beam_search": True, "n": 2, "max_tokens": 3}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=body)
        refused = await http.post(f"{url}/v1/chat/completions", json=body | {"tools": [TOOL], "tool_choice": "required"})
    assert [choice["message"]["content"] for choice in answer.json()["choices"]] == ["PPP", "PPQ"]
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "use_beam_search"
