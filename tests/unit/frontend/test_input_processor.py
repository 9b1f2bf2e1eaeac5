"""Checks of requests against the model, and what the engine is told of them."""

from __future__ import annotations

from typing import Any

import pytest
from byte_model import EOS, VOCAB_SIZE, byte_model

from octavo.config import engine_options
from octavo.errors import InvalidRequestError
from octavo.frontend.input_processor import Ask, InputProcessor, PreparedRequest, unwrap_prompt
from octavo.sampling_params import SamplingParams


def processor(**options: Any) -> InputProcessor:
    return InputProcessor(byte_model(max_model_len=64), engine_options(**options))


def prepare(prompt: Any, inputs: InputProcessor | None = None, priority: int = 0, salt: str = "", **params: Any) -> PreparedRequest:
    (request,) = (inputs or processor()).process([Ask("r", prompt, SamplingParams(**params), priority, salt)])
    return request


def refusal(prompt: Any = "hi", **params: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        prepare(prompt, **params)
    return caught.value


def test_text_becomes_its_tokens() -> None:
    request = prepare("hé")
    assert request.prompt == "hé"
    assert request.message.prompt_token_ids == list("hé".encode())
    assert request.message.eos_token_ids == [EOS]


def test_token_ids_have_no_text() -> None:
    request = prepare([1, 2, VOCAB_SIZE - 1])
    assert request.prompt is None
    assert request.prompt_token_ids == [1, 2, VOCAB_SIZE - 1]


def test_requests_of_both_kinds_keep_their_order_in_one_call() -> None:
    asks = [Ask("0", "ab", SamplingParams()), Ask("1", [7], SamplingParams()), Ask("2", "c", SamplingParams())]
    assert [request.prompt_token_ids for request in processor().process(asks)] == [[97, 98], [7], [99]]


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(prompt: Any) -> None:
    assert refusal(prompt).param == "prompt"


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 2**70, True, 1.5, "a", None])
def test_a_prompt_token_out_of_the_vocabulary_is_refused(token: Any) -> None:
    error = refusal([1, token, 2])
    assert error.param == "prompt"
    assert str(token) in error.message or repr(token) in error.message


@pytest.mark.parametrize("where", ["prompt", "stop", "bad_words", "cache_salt"])
def test_lone_surrogates_are_refused(where: str) -> None:
    bad = "a\ud800"
    with pytest.raises(InvalidRequestError, match="surrogate") as caught:
        if where == "prompt":
            prepare(bad)
        elif where == "cache_salt":
            prepare("hi", salt=bad)
        else:
            prepare("hi", **{where: [bad]})
    assert caught.value.param == where


# ---- lengths ---------------------------------------------------------------------------------------------------------


def test_a_prompt_that_leaves_no_room_for_a_token_is_refused_in_the_contracts_words() -> None:
    error = refusal([1] * 64, max_tokens=1)
    assert error.message.startswith("This model's maximum context length is 64 tokens. However, your prompt contains 64 input tokens.")
    assert error.code == "context_length_exceeded"


def test_a_prompt_that_leaves_room_for_one_token_is_taken() -> None:
    assert prepare([1] * 63, max_tokens=1).message.params.max_tokens == 1


def test_max_tokens_past_the_context_is_refused_not_clipped() -> None:
    error = refusal([1] * 50, max_tokens=15)
    assert (error.param, error.code) == ("max_tokens", "context_length_exceeded")
    assert "15 output tokens" in error.message
    assert "50 input tokens" in error.message
    assert "65 tokens" in error.message


def test_max_tokens_none_is_what_the_context_leaves() -> None:
    assert prepare([1] * 50, max_tokens=None).message.params.max_tokens == 14


def test_min_tokens_past_what_the_context_leaves_is_refused() -> None:
    assert refusal([1] * 50, max_tokens=None, min_tokens=15).param == "min_tokens"


def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = byte_model(max_model_len=64)
    monkeypatch.setattr(model.tokenizer, "encode_batch", None)
    inputs = InputProcessor(model, engine_options())
    with pytest.raises(InvalidRequestError, match="contains at least 1000000 input tokens"):
        inputs.process([Ask("r", "x" * 1_000_000, SamplingParams())])


@pytest.mark.parametrize(("keep", "kept"), [(3, "nop"), (100, "abcdefghijklmnop"), (-1, "abcdefghijklmnop")])
def test_truncation_keeps_the_last_tokens_when_asked_for(keep: int, kept: str) -> None:
    request = prepare("abcdefghijklmnop", truncate_prompt_tokens=keep, max_tokens=4)
    assert request.prompt == kept
    assert request.prompt_token_ids == list(kept.encode())


def test_truncation_to_the_context_makes_room_for_the_output_and_shows_what_the_model_sees() -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(200))
    request = prepare(text, truncate_prompt_tokens=-1, max_tokens=4)
    assert request.prompt == text[-60:]
    assert request.prompt_token_ids == list(text[-60:].encode())


def test_truncation_to_more_than_the_context_is_refused() -> None:
    assert refusal("x" * 200, truncate_prompt_tokens=100, max_tokens=4).code == "context_length_exceeded"


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_token_ids", [VOCAB_SIZE]),
        ("stop_token_ids", [-1]),
        ("logit_bias", {VOCAB_SIZE: 1.0}),
        ("allowed_token_ids", [3, VOCAB_SIZE]),
        ("logprobs", VOCAB_SIZE + 1),
        ("prompt_logprobs", VOCAB_SIZE + 1),
    ],
)
def test_a_parameter_out_of_the_vocabulary_is_refused_by_name(name: str, value: Any) -> None:
    assert refusal(**{name: value}).param == name


def test_logprobs_of_minus_one_are_the_whole_vocabularys() -> None:
    params = prepare("hi", logprobs=-1, prompt_logprobs=-1).message.params
    assert (params.logprobs, params.prompt_logprobs) == (VOCAB_SIZE, VOCAB_SIZE)


def test_best_of_makes_the_engine_report_logprobs_that_the_client_did_not_ask_for() -> None:
    request = prepare("hi", n=1, best_of=3)
    assert request.message.params.logprobs == 0
    assert request.message.params.num_sequences == 3
    assert request.params.logprobs is None


def test_strings_stay_in_the_frontend() -> None:
    request = prepare("hi", stop=["x"], bad_words=["no"])
    assert request.message.params.stop == []
    assert request.message.params.bad_words == []
    assert request.params.stop == ["x"]


def test_bad_words_are_forbidden_at_the_start_and_after_a_space() -> None:
    # In this tokenizer a space is a token of its own, so the word after a space ends with the word itself.
    assert prepare("hi", bad_words=["no", "a"]).message.bad_word_ids == [[110, 111], [97]]


def test_a_bad_word_that_is_a_space_is_forbidden_too() -> None:
    assert prepare("hi", bad_words=["\n"]).message.bad_word_ids == [[10]]


def test_the_seed_is_the_requests_then_the_options_then_drawn() -> None:
    assert prepare("hi", seed=-5).message.seed == -5
    assert prepare("hi", processor(seed=9)).message.seed == 9
    assert prepare("hi", processor(seed=9), seed=0).message.seed == 0
    drawn = {prepare("hi").message.seed for _ in range(8)}
    assert len(drawn) == 8
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_a_priority_needs_the_priority_policy() -> None:
    with pytest.raises(InvalidRequestError, match="scheduling-policy priority"):
        prepare("hi", priority=1)
    assert prepare("hi", processor(scheduling_policy="priority"), priority=-3).message.priority == -3


@pytest.mark.parametrize("priority", [2**40, True, 1.0, "1"])
def test_a_priority_that_is_no_small_integer_is_refused(priority: Any) -> None:
    with pytest.raises(InvalidRequestError, match="priority"):
        prepare("hi", processor(scheduling_policy="priority"), priority=priority)


def test_an_overlong_cache_salt_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        prepare("hi", salt="x" * 10_000)


# ---- prompts of the Python API ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a", "a"), ([1, 2], [1, 2]), ((1, 2), [1, 2]), ({"prompt": "a"}, "a"), ({"prompt_token_ids": [1]}, [1])],
)
def test_every_kind_of_prompt_is_unwrapped(given: Any, expected: Any) -> None:
    assert unwrap_prompt(given) == expected


@pytest.mark.parametrize("given", [None, 7, {}, {"text": "x"}, {"prompt": [1]}, {"prompt": "a", "prompt_token_ids": [1]}, b"a"])
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequestError):
        unwrap_prompt(given)
