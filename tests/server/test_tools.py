"""Tools over ``/v1/chat/completions`` through the real openai client: offered, called, streamed, answered and refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from octavo.frontend.chat_template import ChatTemplate

TEMPLATE = (
    "{% if tools %}TOOLS{{ tools | tojson }}{% endif %}{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}CALLS{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
HERMES, MISTRAL, LLAMA = TEMPLATE + "{# <tool_call> #}", TEMPLATE + "{# [TOOL_CALLS] #}", TEMPLATE + "{# <|python_tag|> #}"
PLAIN = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str = "get_weather") -> Any:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": CITY}}


BODY: Any = {"model": "fake-model", "messages": [{"role": "user", "content": "warm?"}], "tools": [tool(), tool("get_time")]}
PARIS = '{"city": "Paris"}'
CALL = f'{{"name": "get_weather", "arguments": {PARIS}}}'
REPLIES = {
    HERMES: f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
    MISTRAL: f"Let me see.[TOOL_CALLS][{CALL}, {CALL}]",
    LLAMA: f'{{"name": "get_weather", "parameters": {PARIS}}}; {CALL}',
    PLAIN: f"[{CALL}, {CALL}]",
}


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def use(engine: Any, template: str, reply: str) -> None:
    engine.template = ChatTemplate(template, {})
    engine.reply = lambda prompt, index: reply


async def collect(client: openai.AsyncOpenAI, **body: Any) -> Any:
    async with client.chat.completions.stream(**body) as stream:
        return (await stream.get_final_completion()).choices[0]


@pytest.mark.parametrize("template", REPLIES)
async def test_calls_in_every_format_whole_and_streamed(engine: Any, url: str, template: str) -> None:
    use(engine, template, REPLIES[template])
    client = client_of(url)
    whole = (await client.chat.completions.create(**BODY)).choices[0]
    streamed = await collect(client, **BODY)
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.content or None) == ("Let me see." if "Let" in REPLIES[template] else None)
        assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [("get_weather", PARIS)] * 2
        ids = [call.id for call in choice.message.tool_calls]
        assert len(set(ids)) == 2 and all(len(one) == 9 if template is MISTRAL else one.startswith("call_") for one in ids)


async def test_stream_s_first_delta_of_a_call_names_it_and_the_rest_are_pieces(engine: Any, url: str) -> None:
    use(engine, HERMES, REPLIES[HERMES])
    chunks = [chunk async for chunk in await client_of(url).chat.completions.create(**BODY, stream=True)]
    deltas = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    first = [call for call in deltas if call.id is not None]
    assert [(call.index, call.type, call.function.name) for call in first] == [
        (0, "function", "get_weather"),
        (1, "function", "get_weather"),
    ]
    assert all(call.function.name is None and call.type is None for call in deltas if call.id is None)
    assert "".join(call.function.arguments for call in deltas if call.index == 1) == PARIS
    assert len([call for call in deltas if call.index == 0]) > len(PARIS) / 2  # they come as they are made


@pytest.mark.parametrize("reply", ["Just text.", '<tool_call>{"name": "steal", "arguments": {}}</tool_call>', "<tool_call>{broken", " \n"])
async def test_what_is_no_call_is_content(engine: Any, url: str, reply: str) -> None:
    use(engine, HERMES, reply)
    client = client_of(url)
    whole = (await client.chat.completions.create(**BODY)).choices[0]
    streamed = await collect(client, **BODY)
    assert whole.message.content == streamed.message.content == reply
    assert not whole.message.tool_calls and whole.finish_reason == streamed.finish_reason == "stop"


async def test_one_call_where_parallel_calls_are_off(engine: Any, url: str) -> None:
    use(engine, HERMES, REPLIES[HERMES])
    client, body = client_of(url), BODY | {"parallel_tool_calls": False}
    for choice in ((await client.chat.completions.create(**body)).choices[0], await collect(client, **body)):
        assert len(choice.message.tool_calls) == 1


async def test_templates_are_given_tools_and_calls_and_results(engine: Any, url: str) -> None:
    engine.template = ChatTemplate(HERMES, {})
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}}
    messages = [
        *BODY["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
    ]
    await client_of(url).chat.completions.create(**(BODY | {"messages": messages}))
    prompt = engine.submitted[0].prompt
    assert json.loads(prompt.partition("TOOLS")[2].partition("<user>")[0]) == BODY["tools"]
    assert prompt.endswith(f"<user>warm?<assistant>CALLSget_weather{PARIS}<tool>21")
    await client_of(url).chat.completions.create(**BODY, tool_choice="none")
    assert "TOOLS" not in engine.submitted[1].prompt


async def test_a_template_without_tools_has_them_in_plain_words(engine: Any, url: str) -> None:
    engine.template = ChatTemplate(PLAIN, {})
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}}
    messages = [
        {"role": "system", "content": "Be kind."},
        *BODY["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
    ]
    await client_of(url).chat.completions.create(**(BODY | {"messages": messages}))
    prompt = engine.submitted[0].prompt
    assert prompt.startswith("<system>Be kind.\n\n") and '"get_weather"' in prompt and '"get_time"' in prompt
    assert prompt.endswith(f"<user>warm?<assistant>{CALL}<user>The function returned:\n21")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}])
async def test_a_required_call_is_held_to_by_a_grammar(engine: Any, url: str, choice: Any) -> None:
    use(engine, HERMES, f'<tool_call>\n{{"name": "get_time", "arguments": {PARIS}}}\n</tool_call>')
    made = await client_of(url).chat.completions.create(**BODY, tool_choice=choice)
    grammar = engine.submitted[0].params.structured_outputs.grammar
    assert "get_time" in grammar and ("get_weather" in grammar) == (choice == "required")
    assert made.choices[0].finish_reason == ("tool_calls" if choice == "required" else "stop")
    assert made.choices[0].message.tool_calls[0].function.name == "get_time"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [tool(), tool()]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a", "colour": 1}}]}, "tools[0].function.colour"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "steal"}}}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "1"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "a", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
async def test_wrong_tools_are_refused_by_name(engine: Any, url: str, change: Any, param: str) -> None:
    engine.template = ChatTemplate(HERMES, {})
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=BODY | change)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert not engine.submitted
