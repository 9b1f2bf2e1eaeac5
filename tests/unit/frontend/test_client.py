"""The engine's client: start-up, the way of a request, backpressure, aborts, the engine's death, the way out."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from byte_model import byte_model
from client_steps import PARAMS, read_all, settle, token, until
from fake_engine import FakeCore, FakeProcess, FakeSpawner, ready

from octavo.config import engine_options
from octavo.engine.messages import AbortSequences, AddRequest, Call, CallResult, Failed, Loading, SequenceUpdate, Shutdown
from octavo.errors import (
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    NotReadyError,
    OctavoError,
    QueueFullError,
)
from octavo.frontend import client as module
from octavo.frontend import replica
from octavo.frontend.client import EngineClient
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary


@pytest.fixture
def spawner(monkeypatch: pytest.MonkeyPatch) -> FakeSpawner:
    fake = FakeSpawner()
    monkeypatch.setattr(replica, "EngineProcess", fake)
    monkeypatch.setattr(module, "resolve", lambda model, revision, progress: "files")
    monkeypatch.setattr(module, "load_served_model", lambda options, files: byte_model(max_model_len=128))
    monkeypatch.setattr(replica, "FIRST_BACKOFF_SECONDS", 0.0)
    return fake


@pytest.fixture
async def client(spawner: FakeSpawner) -> AsyncIterator[EngineClient]:
    """Started and ready; four sequences may run and two requests wait."""
    one = EngineClient(engine_options(max_num_queued_reqs=2))
    await one.start()
    await one.wait_ready()
    yield one
    await one.shutdown()


async def until_phase(client: EngineClient, phase: str) -> None:
    await until(lambda: client.phase == phase)


# ---- start-up --------------------------------------------------------------------------------------------------------


async def test_start_returns_at_once_and_the_phases_follow(spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: process.say(Loading("weights", 0.25))
    client = EngineClient(engine_options())
    assert client.phase == "starting"
    await client.start()
    await until_phase(client, "loading")
    await until(lambda: client.progress >= 0)
    assert client.progress == 0.25
    assert client.ready is None
    spawner.processes[0].say(ready(max_model_len=99))
    await client.wait_ready()
    assert client.phase == "ready"
    assert client.model is not None
    assert client.model.max_model_len == 99, "the engine's limit counts, not the one guessed before it was up"
    await client.shutdown()
    assert spawner.processes[0].stopped


async def test_the_download_is_a_phase_with_progress(spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def resolve(model: Any, revision: Any, progress: Any) -> str:
        progress("a model", 30, 120)
        go.wait(5)
        return "files"

    monkeypatch.setattr(module, "resolve", resolve)
    client = EngineClient(engine_options())
    await client.start()
    await until_phase(client, "downloading")
    await until(lambda: client.progress == 0.25)
    go.set()
    await client.wait_ready()
    await client.shutdown()


async def test_the_model_is_known_before_the_engine_is_up(spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: None
    client = EngineClient(engine_options())
    await client.start()
    await until(lambda: client.model is not None)
    assert client.phase == "loading"
    await client.shutdown()


@pytest.mark.parametrize("error", [ModelLoadError("no such model"), ConfigError("bad flag")])
async def test_a_model_that_is_not_found_fails_the_start(spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch, error: OctavoError) -> None:
    def resolve(model: Any, revision: Any, progress: Any) -> str:
        raise error

    monkeypatch.setattr(module, "resolve", resolve)
    client = EngineClient(engine_options())
    await client.start()
    with pytest.raises(type(error), match=str(error)):
        await client.wait_ready()
    assert (client.phase, client.failure) == ("failed", str(error))
    with pytest.raises(NotReadyError, match=str(error)) as refused:
        await client.submit("hi", PARAMS)
    assert refused.value.phase == "failed"
    await client.shutdown()
    assert client.phase == "failed"


async def test_a_broken_tokenizer_fails_the_start_while_the_engine_still_loads(
    spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(options: Any, files: Any) -> Any:
        raise ModelLoadError("tokenizer.json is broken")

    monkeypatch.setattr(module, "load_served_model", load)
    spawner.greet = lambda process: None
    client = EngineClient(engine_options())
    await client.start()
    with pytest.raises(ModelLoadError, match="broken"):
        await client.wait_ready()
    assert spawner.processes[0].stopped
    await client.shutdown()


async def test_an_engine_that_cannot_load_fails_the_start_with_its_words(spawner: FakeSpawner) -> None:
    def greet(process: FakeProcess) -> None:
        process.say(Failed("the plan does not fit"))
        process.die()

    spawner.greet = greet
    client = EngineClient(engine_options())
    await client.start()
    with pytest.raises(ModelLoadError, match="the plan does not fit"):
        await client.wait_ready()
    assert len(spawner.processes) == 1, "what failed once to load is not tried again"
    await client.shutdown()


async def test_requests_wait_in_line_for_the_first_load_and_the_line_is_bounded(spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: None
    client = EngineClient(engine_options(max_num_queued_reqs=2, max_num_seqs=1))
    await client.start()
    waiting = [asyncio.create_task(client.submit("hi", PARAMS)) for _ in range(3)]
    await settle()
    with pytest.raises(QueueFullError):
        await client.submit("hi", PARAMS)
    await until_phase(client, "loading")
    spawner.processes[0].say(ready())
    streams = await asyncio.gather(*waiting)
    assert [message.request_id for message in spawner.processes[0].adds] == [
        f"{stream.request_id}#{i}" for i, stream in enumerate(streams, 1)
    ]
    await client.shutdown()


async def test_requests_in_line_are_refused_when_the_load_fails(spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: None
    client = EngineClient(engine_options())
    await client.start()
    waiting = asyncio.create_task(client.submit("hi", PARAMS))
    await until_phase(client, "loading")
    await settle()
    spawner.processes[0].say(Failed("out of memory"))
    with pytest.raises(NotReadyError, match="out of memory"):
        await waiting
    await client.shutdown()


def test_the_server_process_never_imports_torch() -> None:
    code = "import sys, octavo.frontend.client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- the way of a request --------------------------------------------------------------------------------------------


async def test_a_request_goes_out_checked_and_its_text_comes_back(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS, request_id="mine", cache_salt="s")
    assert (stream.request_id, stream.prompt, stream.prompt_token_ids) == ("mine", "hi", [104, 105])
    (process,) = spawner.processes
    (add,) = process.adds
    assert (add.prompt_token_ids, add.cache_salt) == ([104, 105], "s")
    process.step(token(add.request_id, "a"), started=[add.request_id], num_running=1)
    first = await anext(stream)
    assert (first.request_id, first.sequences[0].text, first.finished) == ("mine", "a", False)
    assert client.replicas[0].stats.num_running == 1
    process.step(token(add.request_id, "b", finish_reason="length"))
    (last,) = await read_all(stream)
    assert (last.sequences[0].text, last.sequences[0].finish_reason, last.finished) == ("b", "length", True)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_news_that_were_not_read_come_as_one_delta(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", SamplingParams(max_tokens=120))
    (process,) = spawner.processes
    (add,) = process.adds
    text = "".join(chr(ord("a") + i % 26) for i in range(100))
    for char in text:
        process.step(token(add.request_id, char))
    process.step(token(add.request_id, "!", finish_reason="length"))
    await settle(300)
    assert len(stream._channel._unread) <= 32, "a slow reader must not cost memory"
    (delta,) = await read_all(stream)
    assert delta.sequences[0].text == text + "!"
    assert delta.sequences[0].token_ids == [*text.encode(), ord("!")]
    assert delta.finished


async def test_a_stop_string_ends_the_sequence_and_the_engine_is_told(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", SamplingParams(max_tokens=8, n=2, stop=["END"]))
    (process,) = spawner.processes
    (add,) = process.adds
    process.step(token(add.request_id, "aEN"), token(add.request_id, "x", 1))
    process.step(token(add.request_id, "Dzz"), token(add.request_id, "y", 1))
    process.step(token(add.request_id, "late"), token(add.request_id, "z", 1, finish_reason="length"))
    deltas = await read_all(stream)
    output = stream.collector()
    for delta in deltas:
        output.add(delta)
    first, second = output.output().outputs
    assert (first.text, first.finish_reason, first.stop_reason, first.token_ids) == ("a", "stop", "END", list(b"aEND"))
    assert (second.text, second.finish_reason) == ("xyz", "length")
    assert process.aborts == [AbortSequences(add.request_id, [0])]


async def test_a_rejection_by_the_engine_comes_as_an_error_delta(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS)
    (process,) = spawner.processes
    process.step(token(process.adds[0].request_id, finish_reason="error", stop_reason="the pool is too small"))
    (delta,) = await read_all(stream)
    assert (delta.sequences[0].finish_reason, delta.sequences[0].stop_reason) == ("error", "the pool is too small")


async def test_an_invalid_request_is_refused_and_leaves_nothing_behind(client: EngineClient, spawner: FakeSpawner) -> None:
    for _ in range(20):  # more than fit in line
        with pytest.raises(InvalidRequestError):
            await client.submit("", PARAMS, request_id="again")
    assert spawner.processes[0].sent == []
    await client.submit("hi", PARAMS, request_id="again")


async def test_a_request_id_in_use_is_refused_until_its_request_ends(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS, request_id="same")
    with pytest.raises(InvalidRequestError, match="same"):
        await client.submit("hi", PARAMS, request_id="same")
    stream.abort()
    await client.submit("hi", PARAMS, request_id="same")


async def test_late_news_of_an_aborted_request_do_not_reach_its_successor(client: EngineClient, spawner: FakeSpawner) -> None:
    first = await client.submit("hi", PARAMS, request_id="same")
    first.abort()
    second = await client.submit("hi", PARAMS, request_id="same")
    (process,) = spawner.processes
    old, new = process.adds
    process.step(token(old.request_id, "old"))
    process.step(token(new.request_id, "new", finish_reason="length"))
    (delta,) = await read_all(second)
    assert delta.sequences[0].text == "new"


async def test_a_long_text_is_tokenised_in_a_thread(client: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.model is not None
    tokenizer = client.model.tokenizer
    threads = []
    encode = tokenizer.encode_batch

    def note(texts: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return encode(texts, **options)

    monkeypatch.setattr(tokenizer, "encode_batch", note)
    await client.submit("hi", PARAMS)
    await client.submit("x" * 20_000, SamplingParams(truncate_prompt_tokens=8, max_tokens=4))
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


async def test_a_fault_in_one_requests_text_spares_the_others(client: EngineClient, spawner: FakeSpawner) -> None:
    broken = await client.submit("hi", PARAMS)
    sound = await client.submit("hi", SamplingParams(max_tokens=8, logprobs=0))
    (process,) = spawner.processes
    one, other = (add.request_id for add in process.adds)
    process.step(SequenceUpdate(one, 0, ["no token"]), token(other, "ok", finish_reason="length"))  # type: ignore[list-item]
    with pytest.raises(OctavoError, match="internal error"):
        await read_all(broken)
    assert (await read_all(sound))[-1].finished
    assert process.aborts == [AbortSequences(one)]
    assert client.phase == "ready"


# ---- the bound of the queue ------------------------------------------------------------------------------------------


async def test_requests_are_refused_when_free_seats_and_queue_are_full(client: EngineClient, spawner: FakeSpawner) -> None:
    streams = [await client.submit("hi", PARAMS) for _ in range(6)]  # four seats and two in the queue
    with pytest.raises(QueueFullError) as refused:
        await client.submit("hi", PARAMS)
    assert refused.value.retry_after >= 1
    (process,) = spawner.processes
    ids = [add.request_id for add in process.adds]
    process.step(started=ids[:4], num_running=4)
    await settle()
    with pytest.raises(QueueFullError):  # no seat is free any more, and two wait
        await client.submit("hi", PARAMS)
    streams[5].abort()
    streams.append(await client.submit("hi", PARAMS))


async def test_places_are_free_again_after_all_were_aborted(client: EngineClient, spawner: FakeSpawner) -> None:
    streams = [await client.submit("hi", PARAMS) for _ in range(6)]
    (process,) = spawner.processes
    process.step(started=[add.request_id for add in process.adds[:4]], num_running=4)
    await settle()
    for stream in streams:
        stream.abort()
    # No step tells that nothing runs any more.
    again = [await client.submit("hi", PARAMS) for _ in range(2)]
    assert len(again) == 2


# ---- aborts ----------------------------------------------------------------------------------------------------------


async def test_an_abort_tells_the_engine_once_and_ends_the_stream(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", SamplingParams(n=2, max_tokens=8))
    (process,) = spawner.processes
    (add,) = process.adds
    process.step(token(add.request_id, "a"))
    await settle()
    stream.abort()
    stream.abort()
    await stream.aclose()
    assert process.aborts == [AbortSequences(add.request_id)]
    (delta,) = await read_all(stream)
    assert delta.finished
    assert [(one.index, one.text, one.finish_reason) for one in delta.sequences] == [(0, "a", "abort"), (1, "", "abort")]


async def test_a_finished_request_needs_no_abort(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS)
    (process,) = spawner.processes
    process.step(token(process.adds[0].request_id, "a", finish_reason="length"))
    await read_all(stream)
    stream.abort()
    assert process.aborts == []


async def test_an_abandoned_stream_aborts_its_request(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS)
    del stream
    gc.collect()
    await settle()
    assert len(spawner.processes[0].aborts) == 1


async def test_a_cancelled_reader_aborts_its_request(client: EngineClient, spawner: FakeSpawner) -> None:
    async def read() -> None:
        async for _ in await client.submit("hi", PARAMS):
            pass

    task = asyncio.create_task(read())
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    del task
    gc.collect()
    await settle()
    assert len(spawner.processes[0].aborts) == 1


async def test_a_submit_cancelled_in_line_leaves_the_line(spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: None
    client = EngineClient(engine_options(max_num_queued_reqs=1, max_num_seqs=1))
    await client.start()
    waiting = [asyncio.create_task(client.submit("hi", PARAMS, request_id=f"{i}")) for i in range(2)]
    await settle()
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    again = asyncio.create_task(client.submit("hi", PARAMS, request_id="0"))
    await until_phase(client, "loading")
    spawner.processes[0].say(ready())
    await asyncio.gather(waiting[1], again)
    assert len(spawner.processes[0].adds) == 2
    await client.shutdown()


# ---- the engine's death ----------------------------------------------------------------------------------------------


async def test_a_death_fails_what_runs_after_its_last_news_and_the_engine_comes_back(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS)
    spawner.greet = lambda process: None
    (process,) = spawner.processes
    process.step(token(process.adds[0].request_id, "a"), num_running=1)
    process.die("signal SIGKILL")
    assert (await anext(stream)).sequences[0].text == "a"
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        await anext(stream)
    await until_phase(client, "restarting")
    assert client.replicas[0].stats.num_running == 0
    with pytest.raises(NotReadyError) as refused:
        await client.submit("hi", PARAMS)
    assert refused.value.phase == "restarting"
    await until(lambda: len(spawner.processes) == 2)
    assert process.stopped
    spawner.processes[1].say(ready())
    await client.wait_ready()
    again = await client.submit("hi", PARAMS)
    new = spawner.processes[1]
    new.step(token(new.adds[0].request_id, "b", finish_reason="length"))
    assert (await read_all(again))[0].finished


async def test_a_new_engine_learns_the_vocabulary_again(client: EngineClient, spawner: FakeSpawner) -> None:
    held = SamplingParams(max_tokens=8, structured_outputs=StructuredOutputs(regex="a"))
    streams = [await client.submit("hi", held) for _ in range(2)]
    spawner.processes[0].die()
    await until(lambda: len(spawner.processes) == 2 and client.phase == "ready")
    streams += [await client.submit("hi", params) for params in (PARAMS, held)]
    kinds = [[type(message) for message in process.sent] for process in spawner.processes]
    assert kinds == [[Vocabulary, AddRequest, AddRequest], [AddRequest, Vocabulary, AddRequest]]


async def test_a_step_that_raised_is_told_in_its_own_words(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS)
    spawner.processes[0].say(Failed("a kernel failed"))
    spawner.processes[0].die("exit code 1")
    with pytest.raises(EngineDeadError, match="a kernel failed"):
        await anext(stream)


async def test_a_restart_that_fails_is_tried_again(client: EngineClient, spawner: FakeSpawner) -> None:
    def greet(process: FakeProcess) -> None:
        process.say(Failed("no memory yet") if len(spawner.processes) < 4 else ready())

    spawner.greet = greet
    spawner.processes[0].die()
    await until(lambda: len(spawner.processes) == 4 and client.phase == "ready")


async def test_several_deaths_in_a_row_are_given_up(client: EngineClient, spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: process.die("signal SIGSEGV")
    spawner.processes[0].die()
    await until_phase(client, "failed")
    assert len(spawner.processes) == replica.MAX_DEATHS_IN_A_ROW
    assert client.failure is not None
    assert "SIGSEGV" in client.failure
    with pytest.raises(NotReadyError):
        await client.submit("hi", PARAMS)
    with pytest.raises(EngineDeadError):
        await client.wait_ready()


async def test_deaths_far_apart_are_not_given_up(client: EngineClient, spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "STABLE_SECONDS", 0.0)
    for number in range(1, 2 * replica.MAX_DEATHS_IN_A_ROW):
        spawner.processes[-1].die()
        await until(lambda count=number + 1: len(spawner.processes) == count and client.phase == "ready")


# ---- calls -----------------------------------------------------------------------------------------------------------


async def test_reset_prefix_cache_asks_the_engine(client: EngineClient, spawner: FakeSpawner) -> None:
    (process,) = spawner.processes
    for value in (True, False):
        asked = asyncio.create_task(client.reset_prefix_cache())
        await settle()
        call = process.sent[-1]
        assert isinstance(call, Call)
        process.say(CallResult(call.call_id, value))
        assert await asked is value


async def test_a_call_that_the_engine_refuses_or_does_not_survive_raises(client: EngineClient, spawner: FakeSpawner) -> None:
    (process,) = spawner.processes
    asked = asyncio.create_task(client.reset_prefix_cache())
    await settle()
    call = process.sent[-1]
    assert isinstance(call, Call)
    process.say(CallResult(call.call_id, error="no such call"))
    with pytest.raises(OctavoError, match="no such call"):
        await asked
    asked = asyncio.create_task(client.reset_prefix_cache())
    await settle()
    process.die()
    with pytest.raises(EngineDeadError):
        await asked


# ---- the way out -----------------------------------------------------------------------------------------------------


async def test_draining_lets_running_requests_finish_and_takes_no_new_ones(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS)
    draining = asyncio.create_task(client.drain(5.0))
    await settle()
    assert client.phase == "draining"
    with pytest.raises(NotReadyError) as refused:
        await client.submit("hi", PARAMS)
    assert refused.value.phase == "draining"
    assert not draining.done()
    (process,) = spawner.processes
    process.step(token(process.adds[0].request_id, "a", finish_reason="length"))
    await draining
    assert (await read_all(stream))[0].finished


async def test_draining_ends_when_its_time_is_up_and_shutdown_aborts_the_rest(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS)
    await client.drain(0.01)
    await client.shutdown()
    (delta,) = await read_all(stream)
    assert delta.sequences[0].finish_reason == "abort"
    (process,) = spawner.processes
    assert process.stopped
    assert len(process.aborts) == 1
    await client.shutdown()


async def test_an_engine_that_dies_while_draining_is_not_started_again(client: EngineClient, spawner: FakeSpawner) -> None:
    stream = await client.submit("hi", PARAMS)
    draining = asyncio.create_task(client.drain(5.0))
    await settle()
    spawner.processes[0].die()
    with pytest.raises(EngineDeadError):
        await read_all(stream)
    await draining
    await client.shutdown()
    assert len(spawner.processes) == 1


async def test_shutdown_in_the_middle_of_the_load_stops_the_process(spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: None
    client = EngineClient(engine_options())
    await client.start()
    waiting = asyncio.create_task(client.submit("hi", PARAMS))
    await until_phase(client, "loading")
    await settle()
    await client.shutdown()
    assert spawner.processes[0].stopped
    assert not any(isinstance(message, Shutdown) for message in spawner.processes[0].sent)
    with pytest.raises(NotReadyError):
        await waiting
    with pytest.raises(NotReadyError):
        await client.wait_ready()


# ---- under load ------------------------------------------------------------------------------------------------------


async def test_many_requests_at_once_each_get_their_own_answer(spawner: FakeSpawner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "EngineProcess", FakeSpawner(FakeCore))
    client = EngineClient(engine_options())
    await client.start()

    async def ask(length: int) -> str:
        collector = None
        stream = await client.submit("hi", SamplingParams(max_tokens=length))
        collector = stream.collector()
        async for delta in stream:
            collector.add(delta)
        return collector.output().outputs[0].text

    texts = await asyncio.gather(*(ask(length) for length in range(1, 51)))
    alphabet = "abcdefghijklmnopqrstuvwxyz" * 2
    assert texts == [alphabet[:length] for length in range(1, 51)]
    await client.shutdown()
