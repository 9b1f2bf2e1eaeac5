"""Reasoning over ``/v1/chat/completions``: apart from the content, whole and streamed, before calls and forms."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from octavo.frontend.chat_template import ChatTemplate

BASE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
THINKS = BASE + "{# <think></think> #}"
OPENS = THINKS + "<think>\n"
BODY: Any = {"messages": [{"role": "user", "content": "1+1?"}]}


async def ask(url: str, **changes: Any) -> Any:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=BODY | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


async def stream(url: str, **changes: Any) -> tuple[str, str]:
    """The reasoning and the content that the deltas make."""
    import json

    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=BODY | {"stream": True} | changes)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return "".join(delta.get("reasoning_content", "") for delta in deltas), "".join(delta.get("content", "") for delta in deltas)


CASES = [
    (THINKS, "<think>\nOne and one.\n</think>\n\nTwo.", "One and one.", "Two."),
    (OPENS, "One and one.\n</think>\n\nTwo.", "One and one.", "Two."),
    (THINKS, "Two.", "", "Two."),
    (THINKS, "<think>\n\n</think>\n\nTwo.", "", "Two."),
    (THINKS, "<think>never ends </thi", "never ends </thi", ""),
    (OPENS, "a < b </think> c </think>", "a < b", "c </think>"),
    (THINKS, "<thin", "", "<thin"),
    (BASE, "<think>x</think>y", "", "<think>x</think>y"),
]


@pytest.mark.parametrize(("template", "reply", "reasoning", "content"), CASES)
async def test_reasoning_is_apart_from_content(engine: Any, url: str, template: str, reply: str, reasoning: str, content: str) -> None:
    engine.template = ChatTemplate(template, {})
    engine.reply = lambda prompt, index: reply
    message = (await ask(url))["message"]
    assert (message.get("reasoning_content", ""), message["content"] or "") == (reasoning, content)
    assert await stream(url) == (reasoning, content)
    hidden = (await ask(url, include_reasoning=False))["message"]
    assert "reasoning_content" not in hidden and (hidden["content"] or "") == content
    assert await stream(url, include_reasoning=False) == ("", content)


async def test_calls_are_looked_for_after_the_reasoning(engine: Any, url: str) -> None:
    engine.template = ChatTemplate(THINKS + "{# tools <tool_call> #}", {})
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    engine.reply = lambda prompt, index: f"<think>Perhaps {call}</think>{call}"
    choice = await ask(url, tools=[{"type": "function", "function": {"name": "f"}}])
    assert choice["message"]["reasoning_content"] == f"Perhaps {call}"
    assert [made["function"] for made in choice["message"]["tool_calls"]] == [{"name": "f", "arguments": "{}"}]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"


async def test_a_required_call_starts_after_the_reasoning(engine: Any, url: str) -> None:
    for template, starts in ((THINKS, "</think>"), (OPENS, "</think>"), (THINKS + "<think>\n\n</think>\n\n", None), (BASE, None)):
        engine.template = ChatTemplate(template, {})
        await ask(url, tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required")
        assert engine.submitted[-1].params.structured_outputs.starts_after == starts


async def test_effort_and_documents_go_to_templates_that_take_them(engine: Any, url: str) -> None:
    engine.template = ChatTemplate(BASE + "E{{ reasoning_effort }}D{{ documents | length }}", {})
    await ask(url, reasoning_effort="high", documents=[{"text": "a"}, {"text": "b"}])
    assert engine.submitted[-1].prompt.endswith("EhighD2")
    engine.template = ChatTemplate(BASE + "{{ enable_thinking }}", {})
    await ask(url, reasoning_effort="none")
    assert engine.submitted[-1].prompt.endswith("False")
    async with httpx.AsyncClient() as http:
        for change in ({"reasoning_effort": "high"}, {"documents": [{"text": "a"}]}):
            answer = await http.post(f"{url}/v1/chat/completions", json=BODY | change)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == next(iter(change))
