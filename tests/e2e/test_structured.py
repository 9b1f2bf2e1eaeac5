"""Structured output with the embedded default: outputs have their form, under load as alone, and are the same tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from random_schemas import random_schema
from serving import Server

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.errors import InvalidRequestError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GBNF = 'root ::= pair ("," pair)*\npair ::= [a-c]{2} "=" [0-9]\n'
FORMS: dict[str, dict[str, Any]] = {
    "schema": {"json": PERSON},
    "object": {"json_object": True},
    "regex": {"regex": r"\d{3}-\d{4}( [a-z]+)?"},
    "choice": {"choice": ["Paris", "London", "Londonderry", "Åbo 😀"]},
    "grammar": {"grammar": 'start: "It is " %json {"type": "integer", "minimum": 0, "maximum": 99} " years."'},
    "gbnf": {"grammar": GBNF},
}
PROMPT = "Tell me about a person, in whatever form you like:"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_model_len=1024, kv_cache_memory_bytes=256 * 2**20) as model:
        yield model


def held(kind: str, **params: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 60, "temperature": 0.0, **params, "structured_outputs": StructuredOutputs(**FORMS[kind])})


def run(llm: LLM, params: list[SamplingParams], prompts: list[str] | None = None) -> list[list[int]]:
    outputs = llm.generate(prompts or [PROMPT] * len(params), params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def test_same_tokens_alone_and_among_others_greedy_and_seeded(llm: LLM) -> None:
    params = [
        held(kind, **sampling)
        for kind in FORMS
        for sampling in ({}, {"temperature": 1.0, "seed": 11}, {"top_p": 0.9, "temperature": 2.0, "seed": 5})
    ]
    alone = []
    for one in params:
        llm.reset_prefix_cache()
        alone += run(llm, [one])
    free = [SamplingParams(max_tokens=40, temperature=0.7, seed=number, ignore_eos=True) for number in range(10)]
    assert run(llm, [*free[:5], *params, *free[5:]])[5:-5] == alone


def test_same_tokens_after_preemption_and_with_the_prompt_in_chunks() -> None:
    prompts = [f"{number} stories about a person who {'walks ' * (20 + number)}:" for number in range(8)]
    form = StructuredOutputs(regex="([a-z]{2,9} ){60}")
    params = [SamplingParams(temperature=1.0, seed=number, max_tokens=100, structured_outputs=form) for number in range(8)]
    page = 16 * 30 * 2 * 3 * 64 * 4
    tight = {"max_model_len": 256, "kv_cache_memory_bytes": 18 * page, "max_num_batched_tokens": 32, "dtype": "float32"}
    with LLM(**tight, enable_prefix_caching=False) as small, LLM(**tight | {"kv_cache_memory_bytes": 256 * 2**20}) as large:
        expected = run(large, params, prompts)
        assert run(small, params, prompts) == expected
        assert sum(small.get_metrics()["preemptions"].values()) > 0


def test_thirty_random_schemas(llm: LLM) -> None:
    schemas = [random_schema(seed) for seed in range(30)]
    params = [
        SamplingParams(max_tokens=300, temperature=float(seed % 2), seed=seed, structured_outputs=StructuredOutputs(json=schema))
        for seed, schema in enumerate(schemas)
    ]
    outputs = [output.outputs[0] for output in llm.generate([PROMPT] * 30, params, use_tqdm=False)]
    whole = [(output.text, schema) for output, schema in zip(outputs, schemas, strict=True) if output.finish_reason == "stop"]
    assert {output.finish_reason for output in outputs} <= {"stop", "length"} and len(whole) >= 20
    for text, schema in whole:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_n_choices_each_have_the_form_and_log_probabilities(llm: LLM) -> None:
    output = llm.generate([PROMPT], held("schema", n=3, temperature=1.0, seed=3, logprobs=2, max_tokens=120), use_tqdm=False)[0]
    texts = [choice.text for choice in output.outputs]
    assert len(set(texts)) > 1
    for choice in output.outputs:
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.text), PERSON)
        assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids)
        assert all(next(iter(position)) == token for position, token in zip(choice.logprobs, choice.token_ids, strict=True))


def test_the_form_ends_the_answer_whatever_min_tokens_and_ignore_eos_say(llm: LLM) -> None:
    for params in (held("choice"), held("choice", min_tokens=30), held("choice", ignore_eos=True)):
        choice = llm.generate([PROMPT], params, use_tqdm=False)[0].outputs[0]
        assert choice.text in FORMS["choice"]["choice"] and choice.finish_reason == "stop" and choice.stop_reason is None


def test_stop_strings_and_max_tokens_cut(llm: LLM) -> None:
    cut = llm.generate([PROMPT], held("schema", stop=['"age'], include_stop_str_in_output=True), use_tqdm=False)[0].outputs[0]
    assert cut.text.endswith('"age') and (cut.finish_reason, cut.stop_reason) == ("stop", '"age')
    short = llm.generate([PROMPT], held("schema", max_tokens=3), use_tqdm=False)[0].outputs[0]
    assert short.finish_reason == "length" and PERSON and short.text.startswith("{")


def test_a_form_that_starts_after_a_marker(llm: LLM) -> None:
    form = StructuredOutputs(json=PERSON, starts_after=".")
    params = SamplingParams(max_tokens=200, temperature=0.0, structured_outputs=form)
    output = llm.generate(["Say what comes next. Name: Bob. City:"], params, use_tqdm=False)[0].outputs[0]
    free, dot, rest = output.text.partition(".")
    assert free and dot and output.finish_reason == "stop"
    jsonschema.validate(json.loads(rest), PERSON)


def test_a_bad_form_is_an_error_and_the_model_goes_on(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="unclosed group"):
        llm.generate([PROMPT], SamplingParams(structured_outputs=StructuredOutputs(regex="(")), use_tqdm=False)
    assert run(llm, [held("choice")])[0]


async def test_forms_under_load_over_http(server: Server) -> None:
    """Streams and whole answers of every form, beside free ones and ones that are given up."""

    async def one(client: openai.AsyncOpenAI, number: int, kind: str) -> None:
        form = {**FORMS[kind], **({"json": PERSON} if kind == "schema" else {})}
        answer = await client.completions.create(
            model="smollm2", prompt=PROMPT, max_tokens=80, n=2, seed=number, temperature=1.0, extra_body={"structured_outputs": form}
        )
        for choice in answer.choices:
            if choice.finish_reason == "stop":
                check(kind, choice.text)

    async def given_up(client: openai.AsyncOpenAI) -> None:
        stream = await client.completions.create(
            model="smollm2", prompt=PROMPT, max_tokens=400, stream=True, extra_body={"guided_regex": "[a-z ]+"}
        )
        async for _ in stream:
            break
        await stream.close()

    async def free(client: openai.AsyncOpenAI) -> None:
        await client.completions.create(model="smollm2", prompt=PROMPT, max_tokens=40)

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        jobs = [one(client, number, kind) for number in range(4) for kind in FORMS]
        await asyncio.gather(*jobs, *(given_up(client) for _ in range(6)), *(free(client) for _ in range(6)))
        with pytest.raises(openai.BadRequestError, match="unclosed group"):
            await client.completions.create(model="smollm2", prompt=PROMPT, extra_body={"guided_regex": "("})
        parsed = await client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Invent a person."}],
            temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}},
        )
        jsonschema.validate(json.loads(parsed.choices[0].message.content or ""), PERSON)
    server.wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 20, "the end of requests that were given up")


def check(kind: str, text: str) -> None:
    """The text has the form of this name."""
    import re

    if kind == "schema":
        jsonschema.validate(json.loads(text), PERSON)
    elif kind == "object":
        assert isinstance(json.loads(text), dict)
    elif kind == "choice":
        assert text in FORMS["choice"]["choice"]
    else:
        patterns = {"regex": FORMS["regex"]["regex"], "grammar": r"It is \d{1,2} years\.", "gbnf": r"[a-c]{2}=\d(,[a-c]{2}=\d)*"}
        assert re.fullmatch(patterns[kind], text), text
