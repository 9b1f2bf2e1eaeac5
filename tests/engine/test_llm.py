"""The offline face: prompts in, outputs in their order, over an engine without a model."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from byte_model import byte_model, byte_tokenizer
from fake_engine import FakeCore

from octavo import llm as module
from octavo.engine.messages import AbortSequences, AddRequest
from octavo.errors import ConfigError, EngineDeadError, InvalidRequestError
from octavo.frontend.chat_template import ChatTemplate
from octavo.llm import LLM
from octavo.sampling_params import SamplingParams

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{{ mood }}"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LLM]:
    """Makes an ``LLM`` over ``FakeCore``; keyword arguments change what is served."""

    def make_one(options: dict[str, Any] | None = None, **changes: Any) -> LLM:
        monkeypatch.setattr(module, "resolve", lambda model, revision: "files")
        monkeypatch.setattr(module, "EngineCore", FakeCore)
        monkeypatch.setattr(module, "load_served_model", lambda options, files: byte_model(max_model_len=1, **changes))
        return LLM(**options or {})

    return make_one


@pytest.fixture
def llm(make: Callable[..., LLM]) -> LLM:
    return make()


def core(llm: LLM) -> FakeCore:
    assert isinstance(llm._engine, FakeCore)
    return llm._engine


def adds(llm: LLM) -> list[AddRequest]:
    return [message for message in core(llm).handled if isinstance(message, AddRequest)]


def tokens(count: int, **params: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, **params)


def test_outputs_come_in_the_order_of_the_prompts_whatever_ends_first(llm: LLM) -> None:
    results = llm.generate(
        ["one", [1, 2, 3], {"prompt": "three"}, {"prompt_token_ids": [4]}], [tokens(n) for n in (4, 1, 3, 2)], use_tqdm=False
    )
    assert [result.outputs[0].text for result in results] == ["abcd", "a", "abc", "ab"]
    assert [result.prompt for result in results] == ["one", None, "three", None]
    assert results[1].prompt_token_ids == [1, 2, 3]
    assert all(result.finished and result.outputs[0].finish_reason == "length" for result in results)
    assert len({result.request_id for result in results}) == 4


@pytest.mark.parametrize("prompt", ["one", [1, 2], {"prompt": "one"}, {"prompt_token_ids": [1, 2]}])
def test_one_prompt_is_a_list_of_one(llm: LLM, prompt: Any) -> None:
    (result,) = llm.generate(prompt, tokens(2), use_tqdm=False)
    assert result.outputs[0].text == "ab"


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], tokens(2), use_tqdm=False) == []


def test_the_models_own_limit_and_defaults_count(make: Callable[..., LLM]) -> None:
    llm = make({"max_model_len": 50}, sampling_defaults={"temperature": 0.25, "max_tokens": 3})
    (result,) = llm.generate("x", use_tqdm=False)
    assert result.outputs[0].text == "abc"
    assert adds(llm)[0].params.temperature == 0.25
    with pytest.raises(InvalidRequestError, match="50 tokens"):
        llm.generate([[1] * 50], tokens(1), use_tqdm=False)


def test_several_sequences_of_a_prompt(llm: LLM) -> None:
    (result,) = llm.generate("x", tokens(2, n=3, logprobs=0), use_tqdm=False)
    assert [one.text for one in result.outputs] == ["ab", "bc", "cd"]
    assert [one.cumulative_logprob for one in result.outputs] == [-2.0, -4.0, -6.0]


def test_best_of_returns_the_likeliest(llm: LLM) -> None:
    (result,) = llm.generate("x", tokens(2, n=1, best_of=3), use_tqdm=False)
    assert [one.text for one in result.outputs] == ["ab"]


def test_a_stop_string_ends_a_prompt_early_and_the_engine_drops_it(llm: LLM) -> None:
    results = llm.generate(["x", "y"], [tokens(20, stop=["cd"]), tokens(20)], use_tqdm=False)
    assert (results[0].outputs[0].text, results[0].outputs[0].stop_reason) == ("ab", "cd")
    assert len(results[1].outputs[0].token_ids) == 20
    assert [message for message in core(llm).handled if isinstance(message, AbortSequences)] == [AbortSequences(results[0].request_id, [0])]


def test_one_bad_prompt_stops_all_before_anything_is_started(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        llm.generate(["good", ""], tokens(2), use_tqdm=False)
    assert core(llm).handled == []


@pytest.mark.parametrize(
    ("more", "name"),
    [({"sampling_params": [tokens(1)]}, "sampling_params"), ({"sampling_params": tokens(1), "priority": [1, 2, 3]}, "priority")],
)
def test_lists_that_do_not_match_the_prompts_are_refused(llm: LLM, more: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        llm.generate(["a", "b"], use_tqdm=False, **more)


def test_priorities_reach_the_engine(make: Callable[..., LLM]) -> None:
    llm = make({"scheduling_policy": "priority"})
    llm.generate(["a", "b"], tokens(1), use_tqdm=False, priority=[5, -5])
    assert [add.priority for add in adds(llm)] == [5, -5]


def test_an_unknown_option_is_a_type_error_that_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="max_model_len"):
        LLM(max_model_length=5)


def test_the_progress_bar_shows_the_rate(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], tokens(2), use_tqdm=True)
    shown = capfd.readouterr().err
    assert "2/2" in shown
    assert "tokens/s" in shown
    llm.generate(["a"], tokens(2), use_tqdm=False)
    assert capfd.readouterr().err == ""


# ---- chat ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chatty(make: Callable[..., LLM]) -> LLM:
    return make(chat_template=ChatTemplate(TEMPLATE, byte_tokenizer().named_tokens))


def test_chat_goes_through_the_template(chatty: LLM) -> None:
    (result,) = chatty.chat([{"role": "user", "content": "hi"}], tokens(2), use_tqdm=False, chat_template_kwargs={"mood": "!"})
    assert result.prompt == "<user>hi<assistant>!"
    assert result.outputs[0].text == "ab"


def test_chat_takes_several_conversations(chatty: LLM) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("a", "b")]
    assert [result.prompt for result in chatty.chat(conversations, tokens(1), use_tqdm=False)] == [
        "<user>a<assistant>",
        "<user>b<assistant>",
    ]


def test_chat_goes_on_with_the_last_message_when_asked_to(chatty: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]
    (result,) = chatty.chat(messages, tokens(1), use_tqdm=False, add_generation_prompt=False, continue_final_message=True)
    assert result.prompt == "<user>hi<assistant>Well"


def test_chat_without_a_template_says_what_to_do(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="chat-template"):
        llm.chat([{"role": "user", "content": "hi"}], tokens(1), use_tqdm=False)


@pytest.mark.parametrize("messages", [[], ["hi"], [{"role": "user", "content": "a"}, [{"role": "user", "content": "b"}]]])
def test_chat_refuses_what_is_no_conversation(chatty: LLM, messages: Any) -> None:
    with pytest.raises(InvalidRequestError, match="messages"):
        chatty.chat(messages, tokens(1), use_tqdm=False)


# ---- interruptions ---------------------------------------------------------------------------------------------------


def test_ctrl_c_waits_for_the_step_aborts_and_leaves_the_object_usable(llm: LLM) -> None:
    # A shell starts its background jobs with the signal ignored; the test is about the usual handler.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.default_int_handler
    fake = core(llm)
    finished_steps = []

    def interrupt() -> None:
        if fake.stats.steps == 2:
            os.kill(os.getpid(), signal.SIGINT)
            finished_steps.append(True)  # the signal did not cut the step short

    fake.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], tokens(100), use_tqdm=False)
    assert finished_steps == [True]
    assert not fake.has_work()
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, outside)
    fake.before_step = lambda: None
    assert llm.generate("a", tokens(2), use_tqdm=False)[0].outputs[0].text == "ab"


def test_a_signal_handler_of_the_programs_own_is_left_alone(llm: LLM) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        core(llm).before_step = lambda: os.kill(os.getpid(), signal.SIGINT) if not caught else None
        assert len(llm.generate("a", tokens(3), use_tqdm=False)[0].outputs[0].token_ids) == 3
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught == [signal.SIGINT]


def test_it_works_outside_the_main_thread(llm: LLM) -> None:
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.append(llm.generate("a", tokens(2), use_tqdm=False)[0].outputs[0].text))
    thread.start()
    thread.join()
    assert texts == ["ab"]


def test_a_step_that_fails_makes_the_object_unusable_and_says_so(llm: LLM) -> None:
    def fail() -> None:
        raise RuntimeError("a kernel failed")

    core(llm).before_step = fail
    with pytest.raises(RuntimeError, match="a kernel failed"):
        llm.generate("a", tokens(2), use_tqdm=False)
    core(llm).before_step = lambda: None
    with pytest.raises(EngineDeadError, match="a kernel failed"):
        llm.generate("a", tokens(2), use_tqdm=False)


# ---- all else --------------------------------------------------------------------------------------------------------


def test_encode_tokenises(llm: LLM) -> None:
    assert llm.encode("hi") == [104, 105]
    assert llm.encode(["hi", "a"]) == [[104, 105], [97]]
    assert llm.get_tokenizer().decode(llm.encode("hi")) == "hi"


def test_metrics_are_the_engines_figures_by_name(llm: LLM) -> None:
    llm.generate("a", tokens(3), use_tqdm=False)
    assert llm.get_metrics()["steps"] == 3


def test_reset_prefix_cache_asks_the_engine(llm: LLM) -> None:
    assert llm.reset_prefix_cache() is True


def test_shutdown_ends_its_use_and_may_come_twice(llm: LLM) -> None:
    with llm:
        llm.generate("a", tokens(1), use_tqdm=False)
    assert core(llm).is_shut_down
    llm.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        llm.generate("a", tokens(1), use_tqdm=False)


def test_several_engines_are_not_for_it() -> None:
    with pytest.raises(ConfigError, match="an LLM runs one engine"):
        LLM(data_parallel_size=2)
