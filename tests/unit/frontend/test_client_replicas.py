"""Several engines behind one client: who gets what, and what is left when one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from byte_model import byte_model
from client_steps import PARAMS, read_all, token, until
from fake_engine import FakeProcess, FakeSpawner, ready

from octavo.config import engine_options
from octavo.engine.messages import Call, CallResult, EngineStats, Failed, Loading
from octavo.errors import EngineDeadError, ModelLoadError, NotReadyError, QueueFullError
from octavo.frontend import client as module
from octavo.frontend import replica
from octavo.frontend.client import EngineClient
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

LONG = "x" * 120


@pytest.fixture
def spawner(monkeypatch: pytest.MonkeyPatch) -> FakeSpawner:
    fake = FakeSpawner()
    fake.greet = lambda process: process.say(ready(max_model_len=512))
    monkeypatch.setattr(replica, "EngineProcess", fake)
    monkeypatch.setattr(module, "resolve", lambda model, revision, progress: "files")
    monkeypatch.setattr(module, "load_served_model", lambda options, files: byte_model(max_model_len=512))
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    monkeypatch.setattr(module, "available_ram", lambda: 1000)
    monkeypatch.setattr(replica, "FIRST_BACKOFF_SECONDS", 0.0)
    return fake


@pytest.fixture
async def client(spawner: FakeSpawner) -> AsyncIterator[EngineClient]:
    """Two engines, ready; in each four sequences may run; two requests wait."""
    one = EngineClient(engine_options(data_parallel_size=2, max_num_queued_reqs=2))
    await one.start()
    await one.wait_ready()
    yield one
    await one.shutdown()


def of(spawner: FakeSpawner, number: int) -> FakeProcess:
    """The latest process of an engine."""
    return [process for process in spawner.processes if process.seat.number == number][-1]


async def test_cores_and_memory_are_shared_out(client: EngineClient, spawner: FakeSpawner) -> None:
    assert sorted(process.seat.number for process in spawner.processes) == [0, 1]
    for process in spawner.processes:
        assert (process.seat.count, process.seat.memory_bytes, process.options.device.threads) == (2, 500, 4)


async def test_it_is_ready_when_all_are_and_the_shortest_context_counts(spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: process.say(Loading("weights", 0.25 if process.seat.number else 0.75))
    client = EngineClient(engine_options(data_parallel_size=2))
    await client.start()
    await until(lambda: len(spawner.processes) == 2 and client.progress == 0.25)
    of(spawner, 0).say(ready(max_model_len=99))
    await until(lambda: client.replicas[0].ready is not None)
    assert client.phase == "loading"
    of(spawner, 1).say(ready(max_model_len=77))
    await client.wait_ready()
    assert client.model is not None and client.model.max_model_len == 77
    await client.shutdown()
    assert all(process.stopped for process in spawner.processes)


async def test_an_engine_that_cannot_load_ends_the_start_of_all(spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: process.say(Failed("no memory") if process.seat.number else Loading("weights"))
    client = EngineClient(engine_options(data_parallel_size=2))
    await client.start()
    with pytest.raises(ModelLoadError, match="no memory"):
        await client.wait_ready()
    await until(lambda: all(process.stopped for process in spawner.processes))
    await client.shutdown()


async def test_requests_are_spread_by_load_and_answered_by_their_own_engine(client: EngineClient, spawner: FakeSpawner) -> None:
    streams = [await client.submit("hi", PARAMS) for _ in range(4)]
    assert [stream.engine for stream in streams] == [0, 1, 0, 1]
    streams += [await client.submit("hi", params) for params in (SamplingParams(max_tokens=8, n=3), PARAMS)]
    assert [stream.engine for stream in streams[4:]] == [0, 1], "a request counts as many as it has sequences"
    for number in (1, 0):
        process = of(spawner, number)
        process.step(token(process.adds[0].request_id, "ab"[number], finish_reason="length"))
    assert [(await read_all(stream))[-1].sequences[0].text for stream in streams[:2]] == ["a", "b"]


async def test_a_prompt_goes_where_its_beginning_is_known(client: EngineClient, spawner: FakeSpawner) -> None:
    streams = [await client.submit(prompt, PARAMS) for prompt in ("hi", 3 * LONG, 3 * LONG + "a", 3 * LONG + "b", 3 * LONG + "c")]
    assert [stream.engine for stream in streams] == [0, 1, 1, 1, 0], "until it is too much for that one"


async def test_a_full_queue_counts_the_seats_of_all(client: EngineClient, spawner: FakeSpawner) -> None:
    streams = [await client.submit("hi", PARAMS) for _ in range(8 + 2)]
    with pytest.raises(QueueFullError):
        await client.submit("hi", PARAMS)
    assert [stream.engine for stream in streams] == 5 * [0, 1]


async def test_each_engine_learns_the_vocabulary_once(client: EngineClient, spawner: FakeSpawner) -> None:
    held = SamplingParams(max_tokens=8, structured_outputs=StructuredOutputs(regex="a"))
    streams = [await client.submit("hi", held) for _ in range(4)]
    assert len(streams) == 4
    for number in (0, 1):
        assert [isinstance(message, Vocabulary) for message in of(spawner, number).sent] == [True, False, False]


async def test_one_death_fails_its_own_requests_and_the_other_goes_on(client: EngineClient, spawner: FakeSpawner) -> None:
    lost, kept = [await client.submit(3 * LONG, PARAMS) for _ in range(2)]
    assert (lost.engine, kept.engine) == (0, 0), "the second goes where the first one's prompt is"
    kept = await client.submit("hi", PARAMS)
    spawner.greet = lambda process: None
    of(spawner, 0).die("signal SIGKILL")
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        await anext(lost)
    assert client.phase == "ready"
    await until(lambda: len(spawner.processes) == 3)
    assert (await client.submit(3 * LONG, PARAMS)).engine == 1, "nobody is sent to the dead one"
    of(spawner, 1).step(token(of(spawner, 1).adds[0].request_id, "b", finish_reason="length"))
    assert (await read_all(kept))[-1].finished
    of(spawner, 0).say(ready())
    await until(lambda: client.replicas[0].phase == "ready")
    assert (await client.submit("hello", PARAMS)).engine == 0, "it is back, and has nothing to do"
    assert of(spawner, 0).seat.memory_bytes == 500, "its share is what it was at first, whatever the other one has taken"


async def test_it_restarts_only_when_all_are_down_and_gives_up_only_when_all_are(client: EngineClient, spawner: FakeSpawner) -> None:
    spawner.greet = lambda process: process.die("signal SIGSEGV") if process.seat.number == 0 else None
    of(spawner, 0).die()
    await until(lambda: client.replicas[0].phase == "failed")
    assert client.phase == "ready" and (await client.submit("hi", PARAMS)).engine == 1
    of(spawner, 1).die()
    await until(lambda: client.phase == "restarting")
    with pytest.raises(NotReadyError):
        await client.submit("hi", PARAMS)
    of(spawner, 1).say(ready())
    await client.wait_ready()
    spawner.greet = lambda process: process.die("signal SIGABRT")
    of(spawner, 1).die()
    await until(lambda: client.phase == "failed")
    assert client.failure is not None and "SIGABRT" in client.failure


async def test_a_drain_waits_for_the_requests_of_all(client: EngineClient, spawner: FakeSpawner) -> None:
    streams = [await client.submit("hi", PARAMS) for _ in range(2)]
    draining = asyncio.create_task(client.drain(60))
    for number in (0, 1):
        await asyncio.sleep(0.01)
        assert not draining.done()
        process = of(spawner, number)
        process.step(token(process.adds[0].request_id, "a", finish_reason="length"))
        await read_all(streams[number])
    await draining


@pytest.mark.parametrize("answers", [(True, True), (True, False)])
async def test_the_prefix_caches_of_all_are_reset(client: EngineClient, spawner: FakeSpawner, answers: tuple[bool, bool]) -> None:
    asked = asyncio.create_task(client.reset_prefix_cache())
    for number, answer in enumerate(answers):
        process = of(spawner, number)
        await until(lambda process=process: bool(process.sent))
        call = process.sent[-1]
        assert isinstance(call, Call)
        process.say(CallResult(call.call_id, answer))
    assert await asked == all(answers)


async def test_steps_are_told_by_engine(client: EngineClient, spawner: FakeSpawner) -> None:
    told: list[tuple[int, EngineStats]] = []
    client.on_step = lambda number, stats: told.append((number, stats))
    for number in (1, 0):
        of(spawner, number).step(num_running=number + 1)
        await until(lambda: bool(told))
        assert [(number, stats.num_running) for number, stats in told] == [(number, number + 1)]
        told.clear()
