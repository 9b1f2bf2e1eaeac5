"""The asynchronous face: cumulative outputs, aborts, health, over an engine without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from byte_model import byte_model
from fake_engine import FakeCore, FakeProcess, FakeSpawner

from octavo.async_llm import AsyncLLM
from octavo.engine.messages import Failed
from octavo.errors import EngineDeadError, InvalidRequestError, ModelLoadError
from octavo.frontend import client as module
from octavo.frontend import replica
from octavo.frontend.outputs import RequestOutput
from octavo.sampling_params import SamplingParams


@pytest.fixture
def spawner(monkeypatch: pytest.MonkeyPatch) -> FakeSpawner:
    fake = FakeSpawner(FakeCore)
    monkeypatch.setattr(replica, "EngineProcess", fake)
    monkeypatch.setattr(module, "resolve", lambda model, revision, progress: "files")
    monkeypatch.setattr(module, "load_served_model", lambda options, files: byte_model(sampling_defaults={"max_tokens": 4}))
    return fake


@pytest.fixture
async def llm(spawner: FakeSpawner) -> AsyncIterator[AsyncLLM]:
    async with AsyncLLM() as one:
        yield one


async def read_all(outputs: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [output async for output in outputs]


async def test_outputs_grow_until_the_last_which_is_finished(llm: AsyncLLM) -> None:
    outputs = await read_all(llm.generate("hi", SamplingParams(max_tokens=5), "mine"))
    texts = [output.outputs[0].text for output in outputs]
    assert texts[-1] == "abcde"
    assert all("abcde".startswith(text) for text in texts)
    assert texts == sorted(texts, key=len)
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert {output.request_id for output in outputs} == {"mine"}
    assert outputs[-1].prompt == "hi"


async def test_it_starts_at_the_first_use_with_the_models_own_defaults(spawner: FakeSpawner) -> None:
    llm = AsyncLLM()
    assert spawner.processes == []
    outputs = await read_all(llm.generate({"prompt_token_ids": [1]}))
    assert outputs[-1].outputs[0].text == "abcd"
    await llm.shutdown()


async def test_requests_run_side_by_side(llm: AsyncLLM) -> None:
    answers = await asyncio.gather(*(read_all(llm.generate("hi", SamplingParams(max_tokens=n))) for n in (2, 4, 6)))
    assert [outputs[-1].outputs[0].text for outputs in answers] == ["ab", "abcd", "abcdef"]


async def test_a_bad_prompt_is_refused(llm: AsyncLLM) -> None:
    with pytest.raises(InvalidRequestError):
        await read_all(llm.generate({"text": "hi"}))


async def test_abort_ends_the_iteration_with_what_there_is(llm: AsyncLLM) -> None:
    outputs = []
    async for output in llm.generate("hi", SamplingParams(max_tokens=100), "mine"):
        outputs.append(output)
        if len(outputs) == 2:
            await llm.abort("mine")
    assert outputs[-1].finished
    assert outputs[-1].outputs[0].finish_reason == "abort"
    assert outputs[-1].outputs[0].text.startswith(outputs[1].outputs[0].text)
    await llm.abort("mine")
    await llm.abort("unknown")


async def test_leaving_the_iteration_early_aborts_the_request(llm: AsyncLLM, spawner: FakeSpawner) -> None:
    outputs = llm.generate("hi", SamplingParams(max_tokens=100))
    await anext(outputs)
    await outputs.aclose()  # type: ignore[attr-defined]
    assert len(spawner.processes[0].aborts) == 1


async def test_health_is_good_before_the_start_and_bad_after_a_failure(spawner: FakeSpawner) -> None:
    llm = AsyncLLM()
    await llm.check_health()

    def fail(process: FakeProcess) -> None:
        process.core = None
        process.say(Failed("no memory"))

    spawner.greet = fail
    with pytest.raises(ModelLoadError, match="no memory"):
        await read_all(llm.generate("hi"))
    with pytest.raises(EngineDeadError, match="no memory"):
        await llm.check_health()
    await llm.shutdown()


async def test_reset_prefix_cache_asks_the_engine(llm: AsyncLLM) -> None:
    assert await llm.reset_prefix_cache() is True


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_num_seqs"):
        AsyncLLM(max_num_seq=3)
