"""``/v1/completions`` through the real openai client."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def test_prompt_is_taken_verbatim_and_the_default_is_16_tokens(engine: Any, url: str) -> None:
    made = await client_of(url).completions.create(model="fake-model", prompt="hello")
    assert made.object == "text_completion" and made.choices[0].text == "Paris" and made.choices[0].finish_reason == "stop"
    assert (engine.submitted[0].prompt, engine.submitted[0].special, engine.submitted[0].params.max_tokens) == ("hello", True, 16)


async def test_every_sampling_field_reaches_the_engine(engine: Any, url: str) -> None:
    fields: dict[str, Any] = {
        "n": 2, "best_of": 2, "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1, "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 5, "min_p": 0.1, "seed": 7, "stop": ["x"], "stop_token_ids": [9], "bad_words": ["bad"], "ignore_eos": True,
        "max_tokens": 9,
        "min_tokens": 2, "logprobs": 1, "prompt_logprobs": 2, "skip_special_tokens": False, "spaces_between_special_tokens": False,
        "include_stop_str_in_output": True, "logit_bias": {"5": 2.0}, "allowed_token_ids": [1, 2], "truncate_prompt_tokens": 4,
    }  # fmt: skip
    placing = {"priority": 3, "cache_salt": "s", "request_id": "mine", "add_special_tokens": False}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/completions", json={"prompt": "hello", **fields, **placing})
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == "cmpl-mine"
    (request,) = engine.submitted
    assert {name: getattr(request.params, name) for name in fields} == fields | {"logit_bias": {5: 2.0}}
    assert (request.priority, request.salt, request.special) == (3, "s", False) and request.id.startswith("cmpl-mine-")


async def test_null_is_the_same_as_absent(engine: Any, url: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{url}/v1/completions", json={"prompt": "a", "temperature": None, "stop": None, "suffix": None, "stream": None}
        )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("prompt", [["a", "b"], [[97], [98]]])
async def test_prompt_lists_make_choices_prompt_by_prompt(engine: Any, url: str, prompt: Any) -> None:
    engine.reply = lambda text, index: text.strip("\x01") + str(index)
    client = client_of(url)
    made = await client.completions.create(model="fake-model", prompt=prompt, n=2)
    assert [(choice.index, choice.text) for choice in made.choices] == [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
    texts: dict[int, str] = {}
    async for chunk in await client.completions.create(model="fake-model", prompt=prompt, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {0: "a0", 1: "a1", 2: "b0", 3: "b1"}


async def test_token_ids_are_one_prompt(engine: Any, url: str) -> None:
    made = await client_of(url).completions.create(model="fake-model", prompt=[97, 98], echo=True)
    assert made.choices[0].text == "abParis" and engine.submitted[0].prompt == [97, 98]


async def test_echo_with_logprobs_covers_prompt_and_answer(engine: Any, url: str) -> None:
    client = client_of(url)
    options: dict[str, Any] = {"model": "fake-model", "prompt": "ab", "echo": True, "logprobs": 2, "n": 2}
    whole = await client.completions.create(**options)
    logprobs = whole.choices[0].logprobs
    assert whole.choices[0].text == "abParis"
    assert logprobs.tokens == ["\x01", "a", "b", *"Paris"] and logprobs.text_offset == list(range(8))
    assert logprobs.token_logprobs == [None] + [-0.25] * 7
    assert logprobs.top_logprobs[0] is None and logprobs.top_logprobs[1] == {"a": -0.25, "b": -2.0}
    merged: list[dict[str, list[Any]]] = [{}, {}]
    texts = ["", ""]
    async for chunk in await client.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            for name, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
                merged[choice.index].setdefault(name, []).extend(values)
    assert texts == [choice.text for choice in whole.choices]
    assert merged == [choice.logprobs.model_dump() for choice in whole.choices]


async def test_echo_with_no_tokens_scores_the_prompt_only(engine: Any, url: str) -> None:
    made = await client_of(url).completions.create(model="fake-model", prompt="ab", echo=True, logprobs=0, max_tokens=0)
    assert made.choices[0].text == "ab" and made.choices[0].logprobs.tokens == ["\x01", "a", "b"]
    assert made.usage.completion_tokens == 0 and made.choices[0].finish_reason == "length"
    chunks = await client_of(url).completions.create(model="fake-model", prompt="ab", echo=True, max_tokens=0, stream=True)
    assert "".join([choice.text async for chunk in chunks for choice in chunk.choices]) == "ab"


async def test_prompt_logprobs_and_token_ids(engine: Any, url: str) -> None:
    extra = {"prompt_logprobs": 0, "return_token_ids": True}
    made = await client_of(url).completions.create(model="fake-model", prompt="ab", extra_body=extra)
    choice: Any = made.choices[0]
    assert choice.prompt_token_ids == [1, 97, 98] and choice.token_ids == [ord(character) for character in "Paris"]
    assert choice.prompt_logprobs == [None, {"97": {"logprob": -0.25, "rank": 1, "decoded_token": "a"}},
                                      {"98": {"logprob": -0.25, "rank": 1, "decoded_token": "b"}}]  # fmt: skip
    stream = await client_of(url).completions.create(model="fake-model", prompt="ab", extra_body=extra, stream=True)
    streamed: list[Any] = [choice async for chunk in stream for choice in chunk.choices]
    assert streamed[0].prompt_logprobs == choice.prompt_logprobs and streamed[0].prompt_token_ids == choice.prompt_token_ids
    assert [token for part in streamed for token in part.token_ids] == choice.token_ids


async def test_usage_of_a_stream_sums_over_prompts(engine: Any, url: str) -> None:
    stream = await client_of(url).completions.create(
        model="fake-model", prompt=["a", "bc"], max_tokens=2, stream=True, stream_options={"include_usage": True}
    )
    usages = [chunk.usage for chunk in [chunk async for chunk in stream] if chunk.usage]
    assert [(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) for usage in usages] == [(5, 4, 9)]


async def test_refusal_of_one_prompt_aborts_the_others(engine: Any, url: str) -> None:
    engine.hold.clear()
    with pytest.raises(openai.BadRequestError):
        await client_of(url).completions.create(model="fake-model", prompt=["a", "b" * 2000])
    assert len(engine.submitted) == 1 and engine.aborted == [engine.submitted[0].id]


async def test_default_of_max_tokens_yields_to_the_context_and_a_number_asked_for_does_not(engine: Any, url: str) -> None:
    client = client_of(url)
    made = await client.completions.create(model="fake-model", prompt="a" * 990)
    assert made.choices[0].text == "Paris" and engine.submitted[0].params.max_tokens is None
    with pytest.raises(openai.BadRequestError, match="cannot hold"):
        await client.completions.create(model="fake-model", prompt="a" * 990, max_tokens=16)


@pytest.mark.parametrize("prompt", [[], [[]], "", ["a", 1], {"a": 1}, 3, ["a"] * 1025])
async def test_prompts_that_are_none_are_refused(engine: Any, url: str, prompt: Any) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/completions", json={"prompt": prompt, "add_special_tokens": False})
    if prompt in ("", [[]]):  # what is empty only once it is tokenised is for the engine client to refuse
        assert engine.submitted[0].prompt in ("", [])
    else:
        assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("prompt"), answer.text


async def test_tokens_are_named_by_their_ids_where_asked_for(engine: Any, url: str) -> None:
    extra = {"return_tokens_as_token_ids": True}
    options: dict[str, Any] = {"model": "fake-model", "prompt": "ab", "echo": True, "logprobs": 2, "max_tokens": 1, "extra_body": extra}
    logprobs: Any = (await client_of(url).completions.create(**options)).choices[0].logprobs
    assert logprobs.tokens == ["token_id:1", "token_id:97", "token_id:98", "token_id:80"] and logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.top_logprobs[1:] == [{f"token_id:{token}": -0.25, f"token_id:{token + 1}": -2.0} for token in (97, 98, 80)]
