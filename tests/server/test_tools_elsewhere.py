"""Tools and thoughts in Anthropic's, OpenAI's responses and Ollama's words: asked, answered whole and streamed, and sent back."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import openai
import pytest

from octavo.frontend.chat_template import ChatTemplate

TEMPLATE = (
    "{# <think></think> <tool_call> #}{% if tools %}TOOLS{{ tools | tojson }}{% endif %}{% for message in messages %}<{{ message.role }}>"
    "{{ message.reasoning_content or '' }}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}CALL{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
PARIS = {"city": "Paris"}
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {json.dumps(PARIS)}}}\n</tool_call>'
REPLY = f"<think>\nHm.\n</think>\n\nI look.\n{CALL}\n{CALL}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
QUESTION: Any = [{"role": "user", "content": "warm?"}]


@pytest.fixture(autouse=True)
def replies(engine: Any) -> None:
    engine.template = ChatTemplate(TEMPLATE, {})
    engine.reply = lambda prompt, index: REPLY


async def test_anthropic_s_blocks(engine: Any, url: str) -> None:
    tools: Any = [{"name": "get_weather", "description": "d", "input_schema": SCHEMA}]
    body: Any = {"model": "fake-model", "max_tokens": 500, "messages": QUESTION, "tools": tools}
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        whole = await client.messages.create(**body, thinking={"type": "adaptive"})
        async with client.messages.stream(**body, thinking={"type": "adaptive"}) as stream:
            kinds = [event.type async for event in stream]
            streamed = await stream.get_final_message()
        quiet = await client.messages.create(**body)
        for message in (whole, streamed):
            blocks: Any = message.content
            assert [block.type for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
            assert (blocks[0].thinking, blocks[1].text, message.stop_reason) == ("Hm.", "I look.", "tool_use")
            assert [(block.name, block.input) for block in blocks[2:]] == [("get_weather", PARIS)] * 2
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
        assert [block.type for block in quiet.content] == ["text", "tool_use", "tool_use"]
        used: Any = whole.content[2]
        results: Any = [
            {"type": "tool_result", "tool_use_id": used.id, "content": "21"},
            {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "no"}], "is_error": True},
            {"type": "text", "text": "and?"},
        ]
        history: Any = [
            *QUESTION,
            {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
            {"role": "user", "content": results},
        ]
        choice: Any = {"type": "any", "disable_parallel_tool_use": True}
        await client.messages.create(**(body | {"messages": history}), tool_choice=choice)
    last = engine.submitted[-1]
    calls = f"CALLget_weather{json.dumps(PARIS)}" * 2
    assert last.prompt.endswith(f"<user>warm?<assistant>Hm.I look.{calls}<tool>21<tool>Error: no<user>and?")
    assert ")*" not in last.params.structured_outputs.grammar  # one call only


async def test_items_of_responses(engine: Any, url: str) -> None:
    tools: Any = [{"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.responses.create(model="fake-model", input=QUESTION, tools=tools)
        async with client.responses.stream(model="fake-model", input=QUESTION, tools=tools) as stream:
            events: list[Any] = [event async for event in stream]
            streamed = await stream.get_final_response()
        for response in (whole, streamed):
            items: Any = response.output
            assert [item.type for item in items] == ["reasoning", "message", "function_call", "function_call"]
            assert items[0].content[0].text == "Hm." and response.output_text == "I look."
            assert [(item.name, json.loads(item.arguments)) for item in items[2:]] == [("get_weather", PARIS)] * 2
            assert len({item.id for item in items}) == 4 and {item.status for item in items} == {"completed"}
        assert [event.sequence_number for event in events] == list(range(len(events)))
        arguments = [event for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(event.delta for event in arguments if event.output_index == 3) == json.dumps(PARIS)
        added = [event.item for event in events if event.type == "response.output_item.added"]
        assert [getattr(item, "arguments", "") for item in added] == ["", "", "", ""]
        history: Any = [*QUESTION, *(item.model_dump(exclude_none=True) for item in whole.output)]
        history += [{"type": "function_call_output", "call_id": whole.output[2].call_id, "output": "21"}]  # type: ignore[union-attr]
        choice: Any = {"type": "function", "name": "get_weather"}
        await client.responses.create(model="fake-model", input=history, tools=tools, tool_choice=choice)
    last = engine.submitted[-1]
    assert last.prompt.endswith(f"<user>warm?<assistant>Hm.I look.{f'CALLget_weather{json.dumps(PARIS)}' * 2}<tool>21")
    assert "get_weather" in last.params.structured_outputs.grammar


async def test_ollama_s_messages(engine: Any, url: str) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
    body: Any = {"messages": QUESTION, "tools": [tool]}
    async with httpx.AsyncClient() as http:
        whole = (await http.post(f"{url}/api/chat", json=body | {"stream": False})).json()
        lines = [json.loads(line) for line in (await http.post(f"{url}/api/chat", json=body)).text.splitlines()]
        quiet = (await http.post(f"{url}/api/chat", json=body | {"stream": False, "think": False})).json()
        parts = [line["message"] for line in lines]
        streamed = {
            "content": "".join(part["content"] for part in parts),
            "thinking": "".join(part.get("thinking", "") for part in parts),
            "tool_calls": [call for part in parts for call in part.get("tool_calls", [])],
        }
        for message in (whole["message"], streamed):
            assert (message["content"], message["thinking"]) == ("I look.", "Hm.")
            assert [call["function"] for call in message["tool_calls"]] == [
                {"index": index, "name": "get_weather", "arguments": PARIS} for index in range(2)
            ]
        assert whole["done_reason"] == lines[-1]["done_reason"] == "stop" and "thinking" not in quiet["message"]
        history = [*QUESTION, whole["message"], {"role": "tool", "tool_name": "get_weather", "content": "21"}]
        assert (await http.post(f"{url}/api/chat", json=body | {"messages": history})).status_code == 200
        made = (await http.post(f"{url}/api/generate", json={"prompt": "warm?", "stream": False, "think": True})).json()
    assert engine.submitted[3].prompt.endswith(f"<user>warm?<assistant>Hm.I look.{f'CALLget_weather{json.dumps(PARIS)}' * 2}<tool>21")
    assert made["thinking"] == "Hm." and made["response"].startswith("I look.")


@pytest.mark.parametrize(
    ("path", "change", "field"),
    [
        ("/v1/messages", {"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ("/v1/messages", {"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ("/v1/responses", {"tools": [{"type": "function", "name": ""}]}, "tools[0].name"),
        ("/v1/messages", {"tool_choice": {"type": "tool", "name": "steal"}}, "tool_choice"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
            "content[0].type",
        ),
        ("/v1/messages", {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}]}, "content[0].name"),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, "tool_use_id"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "thinking": "y"}]}]},
            "content[0].thinking",
        ),
        ("/v1/responses", {"input": [{"type": "function_call", "call_id": "1", "name": "f"}]}, "input[0].arguments"),
        ("/v1/responses", {"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ("/v1/responses", {"input": [{"type": "message", "role": "user", "content": "x", "output": "y"}]}, "input[0].output"),
        ("/v1/responses", {"tool_choice": "required"}, "tool_choice"),
        ("/api/chat", {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}, "arguments"),
    ],
)
async def test_wrong_calls_and_results_are_refused_by_name(engine: Any, url: str, path: str, change: Any, field: str) -> None:
    bodies: Any = {
        "/v1/messages": {"max_tokens": 5, "messages": QUESTION},
        "/v1/responses": {"input": "x"},
        "/api/chat": {"messages": QUESTION},
    }
    async with httpx.AsyncClient() as http:
        answer = await http.post(url + path, json=bodies[path] | change)
    assert answer.status_code == 400 and field in answer.text, answer.text
    assert not engine.submitted
