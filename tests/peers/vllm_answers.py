"""The same requests to Octavo and to vLLM: which statuses, errors, fields, finish reasons and texts differ.

Not collected by pytest: it needs two running servers with the same checkpoint in the same dtype and the same served name.

    python tests/peers/vllm_answers.py http://127.0.0.1:8000 http://127.0.0.1:8301 --model smollm2

Prints one line a case, then the differences, grouped. A field is a path in the answer (``choices[].message.content``); list entries
are one path. Texts are compared where the request is greedy; near ties may part ways, so the length of the common beginning is shown.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
SENTENCE = [{"role": "user", "content": "Repeat: the cat sat on the mat"}]
"""What SmolLM2-135M answers with a margin of more than one between the two likeliest tokens, all along."""
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TOWN = {
    "type": "object",
    "properties": {"name": {"enum": ["Paris", "Rome"]}, "capital": {"type": "boolean"}},
    "required": ["name", "capital"],
    "additionalProperties": False,
}
STOPS = {"response_format": {"type": "json_schema", "json_schema": {"name": "town", "schema": TOWN}}}


def chat(**changes: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": SENTENCE, "temperature": 0, "max_tokens": 24} | changes


def completion(**changes: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 12} | changes


def good_cases() -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Requests that both servers should answer."""
    yield "chat", chat()
    yield "chat stream", chat(stream=True)
    yield "chat stream with usage", chat(stream=True, stream_options={"include_usage": True})
    yield "chat continuous usage", chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    yield "chat logprobs", chat(logprobs=True, top_logprobs=2)
    yield "chat n", chat(n=2, temperature=0.8, seed=3)
    yield "chat stop", chat(stop=[" mat"])
    yield "chat stop kept", chat(stop=" mat", include_stop_str_in_output=True)
    yield "chat stop token", chat(stop_token_ids=[1171])
    yield "chat max_completion_tokens", chat(max_tokens=None, max_completion_tokens=5)
    yield "chat length", chat(max_tokens=3)
    yield "chat ignore_eos", chat(ignore_eos=True)
    yield "chat min_tokens", chat(min_tokens=12)
    yield "chat logit_bias", chat(logit_bias={"28": -100})
    yield "chat bad_words", chat(bad_words=["dog"])
    yield "chat allowed ids", chat(allowed_token_ids=[504, 2644, 2643, 335, 260, 1171, 30, 2])
    yield "chat repetition penalty", chat(repetition_penalty=1.3)
    yield "chat presence and frequency", chat(presence_penalty=1.0, frequency_penalty=0.5)
    yield "chat prompt_logprobs", chat(prompt_logprobs=1)
    yield "chat return_token_ids", chat(return_token_ids=True)
    yield "chat truncation", chat(truncate_prompt_tokens=20)
    yield (
        "chat continued",
        chat(messages=[*SENTENCE, {"role": "assistant", "content": "The cat"}], continue_final_message=True, add_generation_prompt=False),
    )
    yield "chat labels", chat(user="me", metadata={"a": "b"}, store=False, request_id="abc", priority=0, cache_salt="x")
    yield "chat schema", chat(**STOPS)
    yield "chat json_object", chat(response_format={"type": "json_object"}, max_tokens=8)
    yield "chat text format", chat(response_format={"type": "text"})
    yield "chat regex", chat(structured_outputs={"regex": "(yes|no)!"})
    yield "chat choice", chat(structured_outputs={"choice": ["Paris", "Rome"]})
    yield "chat grammar", chat(structured_outputs={"grammar": 'root ::= "Paris" | "Rome"'})
    yield "chat tools required", chat(tools=[TOOL], tool_choice="required", max_tokens=80)
    yield "chat tools named", chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}, max_tokens=80)
    yield "chat tools none", chat(tools=[TOOL], tool_choice="none")
    yield "chat tools auto", chat(tools=[TOOL])
    yield "chat tools required stream", chat(tools=[TOOL], tool_choice="required", max_tokens=80, stream=True)
    yield "completion", completion()
    yield "completion stream", completion(stream=True)
    yield "completion list", completion(prompt=["The capital of France is", "One, two,"])
    yield "completion ids", completion(prompt=[504, 3575, 282, 4649, 314])
    yield "completion echo", completion(echo=True)
    yield "completion echo logprobs", completion(echo=True, logprobs=1)
    yield "completion logprobs", completion(logprobs=2)
    yield "completion n", completion(n=2, temperature=0.9, seed=1)
    yield "completion schema", completion(**STOPS)
    yield "completion default length", completion(max_tokens=None)
    yield "completion beam", completion(use_beam_search=True, n=2)
    yield "completion prompt_logprobs", completion(prompt_logprobs=0)
    yield "completion suffix empty", completion(suffix="")
    yield "messages", (MESSAGES, {"messages": SENTENCE, "max_tokens": 24, "temperature": 0})
    yield "messages stream", (MESSAGES, {"messages": SENTENCE, "max_tokens": 24, "temperature": 0, "stream": True})
    yield "messages count", (MESSAGES + "/count_tokens", {"messages": SENTENCE})
    yield "responses", (RESPONSES, {"input": "What is the capital of France?", "max_output_tokens": 24, "temperature": 0})
    yield "tokenize", ("/tokenize", {"prompt": "Hello there"})
    yield "tokenize chat", ("/tokenize", {"messages": SENTENCE})
    yield "detokenize", ("/detokenize", {"tokens": [504, 3575]})


def bad_cases() -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Requests that should be refused."""
    wrong: dict[str, Any] = {
        "temperature": -1, "top_p": 0, "top_k": -5, "min_p": 2, "n": 0, "max_tokens": 0, "presence_penalty": 9, "frequency_penalty": -9,
        "repetition_penalty": 0, "seed": "x", "stop": 5, "logit_bias": {"x": 1}, "top_logprobs": 99,
        "stream_options": {"include_usage": True}, "allowed_token_ids": [], "min_tokens": 99, "truncate_prompt_tokens": -9,
        "response_format": {"type": "xml"}, "messages": [], "prompt_logprobs": -5, "bad_words": [""], "tool_choice": "required",
        "reasoning_effort": 5, "no_such_field": 1, "best_of": 2,
    }  # fmt: skip
    for name, value in wrong.items():
        yield f"bad chat {name}", chat(**{name: value})
    yield "bad chat role", chat(messages=[{"role": "king", "content": "x"}])
    yield "bad chat content", chat(messages=[{"role": "user", "content": 5}])
    yield "bad chat long", chat(messages=[{"role": "user", "content": "word " * 5000}])
    yield "bad chat room", chat(max_tokens=100_000)
    yield "bad chat schema", chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}})
    yield "bad chat regex", chat(structured_outputs={"regex": "(("})
    yield "bad chat two formats", chat(structured_outputs={"regex": "a", "choice": ["b"]})
    yield "bad chat model", chat(model="gpt-9")
    yield "bad completion prompt", completion(prompt=[])
    yield "bad completion ids", completion(prompt=[99_999_999])
    yield "bad completion logprobs", completion(logprobs=99)
    yield "bad completion suffix", completion(suffix="x")
    yield "bad messages", (MESSAGES, {"messages": SENTENCE})
    yield "bad route", ("/v1/nothing", {})
    yield "bad embeddings", ("/v1/embeddings", {"input": "x"})


TOP_LOGPROB = ("token", "bytes", "logprob")


@dataclass
class Answer:
    """What of an answer is compared."""

    status: int
    fields: set[str] = field(default_factory=set)
    nulls: set[str] = field(default_factory=set)
    finish: list[Any] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None


def paths(value: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """(path, whether it is null) of every field of a JSON value; entries of a list, and keys that are data, share one path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = "<id>" if key.lstrip("-").isdigit() or (prefix.endswith("top_logprobs[]") and key not in TOP_LOGPROB) else key
            path = f"{prefix}.{name}" if prefix else name
            yield path, inner is None
            yield from paths(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, prefix + "[]")


def texts_of(body: dict[str, Any], texts: dict[int, str], finish: dict[int, Any]) -> None:
    """Add a whole answer's or a chunk's texts and finish reasons by choice."""
    for choice in body.get("choices") or []:
        index = choice.get("index", 0)
        part = choice.get("message") or choice.get("delta") or {}
        calls = "".join((call.get("function") or {}).get("arguments") or "" for call in part.get("tool_calls") or [])
        texts[index] = texts.get(index, "") + (choice.get("text") or part.get("content") or "") + calls
        if choice.get("finish_reason") is not None:
            finish[index] = (choice["finish_reason"], choice.get("stop_reason"))
    if isinstance(body.get("content"), list):
        texts[0] = "".join(block.get("text", "") for block in body["content"])
        finish[0] = body.get("stop_reason")
    if isinstance(body.get("delta"), dict):
        texts[0] = texts.get(0, "") + (body["delta"].get("text") or "")
        finish[0] = body["delta"].get("stop_reason", finish.get(0))
    for item in body.get("output") or []:
        texts[0] = texts.get(0, "") + "".join(part.get("text", "") for part in item.get("content") or [])
        finish[0] = body.get("status")


def ask(client: httpx.Client, url: str, path: str, body: dict[str, Any]) -> Answer:
    answer = client.post(url + path, json=body)
    read = Answer(answer.status_code)
    streamed = answer.headers.get("content-type", "").startswith("text/event-stream")
    if streamed:
        events = [line[5:].strip() for line in answer.text.splitlines() if line.startswith("data:")]
        bodies = [json.loads(event) for event in events if event != "[DONE]"]
    else:
        bodies = [answer.json()]
    texts: dict[int, str] = {}
    finish: dict[int, Any] = {}
    for part in bodies:
        for path, null in paths(part):
            (read.nulls if null else read.fields).add(path)
        texts_of(part, texts, finish)
        if part.get("error"):
            read.error = part["error"] if isinstance(part["error"], dict) else {"message": part["error"]}
    read.texts = [texts[index] for index in sorted(texts)]
    read.finish = [finish[index] for index in sorted(finish)]
    return read


def compare(name: str, ours: Answer, theirs: Answer, greedy: bool) -> Iterator[tuple[str, str]]:
    """(kind, what) of each difference of one case."""
    if ours.status != theirs.status:
        told = (theirs.error or ours.error or {}).get("message", "")
        yield "status", f"{ours.status}, vLLM {theirs.status}: {told[:160]}"
        return
    if ours.error is not None and theirs.error is not None:
        for key in ("type", "param", "code"):
            if ours.error.get(key) != theirs.error.get(key):
                yield f"error {key}", f"{ours.error.get(key)!r}, vLLM {theirs.error.get(key)!r}"
        return
    for who, mine, other in (("vLLM", theirs, ours), ("Octavo", ours, theirs)):
        for path in sorted(mine.fields - other.fields):
            yield f"field only in {who}", path + (", null in the other" if path in other.nulls else "")
        for path in sorted(mine.nulls - mine.fields - other.fields - other.nulls):
            yield f"null field only in {who}", path
    if ours.finish != theirs.finish:
        yield "finish", f"{ours.finish}, vLLM {theirs.finish}"
    if greedy and ours.texts != theirs.texts:
        yield "text", f"{ours.texts!r}, vLLM {theirs.texts!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("octavo")
    parser.add_argument("vllm")
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    grouped: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    same = total = 0
    with httpx.Client(timeout=120) as client:
        for name, (path, body) in [*good_cases(), *bad_cases()]:
            body = {"model": options.model} | body if path.startswith("/v1") or path == "/tokenize" else body
            greedy = not body.get("temperature")
            found = list(compare(name, ask(client, options.octavo, path, body), ask(client, options.vllm, path, body), greedy))
            total, same = total + 1, same + (not found)
            print(f"{'same' if not found else 'differs':8} {name}", flush=True)
            for difference in found:
                grouped[difference].append(name)
    print(f"\n{same} of {total} cases are the same in every respect. The differences:")
    for (kind, what), names in sorted(grouped.items()):
        print(f"- {kind}: {what}  [{len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}]")


if __name__ == "__main__":
    main()
