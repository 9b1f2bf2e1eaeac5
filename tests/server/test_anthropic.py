"""``/v1/messages`` through the real anthropic client."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import httpx
import pytest

from octavo.errors import EngineDeadError

USER = [{"role": "user", "content": "hi"}]


def client_of(url: str, key: str = "none") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)


async def create(url: str, **fields: Any) -> Any:
    return await client_of(url).messages.create(**{"model": "fake-model", "max_tokens": 50, "messages": USER, **fields})


async def post(url: str, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(f"{url}/v1/messages", json={"max_tokens": 5, "messages": USER, **fields})


async def test_answer_has_anthropic_s_shape(engine: Any, url: str) -> None:
    made = await create(url)
    assert made.id.startswith("msg_") and (made.type, made.role, made.model) == ("message", "assistant", "fake-model")
    assert [(block.type, block.text) for block in made.content] == [("text", "Paris")]
    assert (made.stop_reason, made.stop_sequence) == ("end_turn", None)
    usage = made.usage
    assert (usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens) == (len("<user>hi<assistant>"), 5)
    assert usage.cache_read_input_tokens == 1


async def test_sync_client_works(engine: Any, url: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    made = await asyncio.to_thread(client.messages.create, model="fake-model", max_tokens=50, messages=USER)
    assert made.content[0].text == "Paris"


async def test_stream_says_the_same_as_the_whole_answer(engine: Any, url: str) -> None:
    whole = await create(url)
    async with client_of(url).messages.stream(model="fake-model", max_tokens=50, messages=USER) as stream:
        text = "".join([part async for part in stream.text_stream])
        final = await stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert (final.usage.input_tokens, final.usage.cache_read_input_tokens) == (18, 1)


async def test_events_come_in_anthropic_s_order(engine: Any, url: str) -> None:
    kinds = [event.type async for event in await create(url, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"} and kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    answer = await post(url, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream") and "[DONE]" not in answer.text
    assert answer.text.startswith('event: message_start\ndata: {"type":"message_start"')


async def test_system_blocks_and_turns_become_the_chat(engine: Any, url: str) -> None:
    text = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    messages = [*USER, {"role": "user", "content": [text]}, {"role": "assistant", "content": [text]}, *USER]
    await create(url, system=[{"type": "text", "text": "S"}], messages=messages, metadata={"user_id": "u"})
    await create(url, system="S", messages=USER)
    assert [request.prompt for request in engine.submitted] == [
        "<system>S<user>hi\nb<assistant>b<user>hi<assistant>",
        "<system>S<user>hi<assistant>",
    ]


async def test_assistant_s_turn_at_the_end_is_continued(engine: Any, url: str) -> None:
    await create(url, messages=[*USER, {"role": "assistant", "content": "Once"}])
    assert engine.submitted[0].prompt == "<user>hi<assistant>Once"


async def test_sampling_fields_reach_the_engine(engine: Any, url: str) -> None:
    await create(url, stop_sequences=["x", "y"], extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 7})
    params = engine.submitted[0].params
    assert (params.max_tokens, params.stop, params.temperature, params.top_p, params.top_k) == (50, ["x", "y"], 0.5, 0.9, 7)


async def test_max_tokens_is_a_stop_reason(engine: Any, url: str) -> None:
    made = await create(url, max_tokens=2)
    assert (made.stop_reason, made.content[0].text) == ("max_tokens", "Pa")


async def test_counting_counts_what_the_model_would_see(engine: Any, url: str) -> None:
    made = await client_of(url).messages.count_tokens(model="fake-model", messages=USER, system="S")
    assert made.input_tokens == len("<system>S<user>hi<assistant>") and not engine.submitted


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "`max_tokens` must be an integer"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "bold": 1}]}]}, "messages[0].content[0].bold"),
        ({"messages": [{"role": "user", "content": "a" * 1000}]}, "maximum context length"),
        ({"temperature": 1.5}, "[0, 1]"),
        ({"top_p": 0}, "(0, 1]"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"name": "f"}]}, "`tools[0].input_schema`"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "`thinking.type`"),
        ({"max_token": 1}, "Did you mean `max_tokens`?"),
        ({"n": 2}, "Unknown field `n`"),
    ],
)
async def test_wrong_fields_are_refused_by_name_in_anthropic_s_shape(engine: Any, url: str, fields: dict[str, Any], words: str) -> None:
    answer = await post(url, **fields)
    body = answer.json()
    assert answer.status_code == 400 and set(body) == {"type", "error"} and set(body["error"]) == {"type", "message"}
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error") and words in body["error"]["message"], body
    assert not engine.submitted


async def test_harmless_values_are_accepted(engine: Any, url: str) -> None:
    assert (await post(url, tools=[], thinking={"type": "disabled"}, service_tier="auto", stream=False, top_k=None)).status_code == 200


async def test_client_raises_its_own_errors(engine: Any, url: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await create(url, model="claude")
    assert missing.value.body["error"]["type"] == "not_found_error" and "fake-model" in str(missing.value)
    engine.room = 0
    with pytest.raises(anthropic.RateLimitError):
        await create(url)


async def test_failure_after_the_stream_began_is_an_error_event(engine: Any, url: str) -> None:
    engine.hold.clear()
    engine.hold_after, engine.error = 2, EngineDeadError("The engine died.")
    stream = await create(url, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="The engine died"):
        async for event in stream:
            if event.type == "content_block_start":
                engine.hold.set()


async def test_key_is_taken_from_x_api_key(engine: Any, serve: Any) -> None:
    async with serve(engine, api_key=["secret"]) as url:
        assert (await client_of(url, "secret").messages.create(model="fake-model", max_tokens=5, messages=USER)).content
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await create(url)
        assert refused.value.body["error"]["type"] == "authentication_error"
        async with httpx.AsyncClient() as http:
            both = {"x-api-key": "secret", "authorization": "Bearer wrong"}
            assert (await http.get(f"{url}/v1/models", headers=both)).status_code == 401
