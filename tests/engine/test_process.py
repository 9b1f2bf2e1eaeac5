"""The engine in a process of its own: readiness, requests, death, orphans."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tiny_checkpoint import write_tiny_llama

from octavo.config import engine_options
from octavo.engine import process
from octavo.engine.messages import AddRequest, EngineOutput, Failed, Loading, Ready, StepOutput
from octavo.engine.process import EngineProcess
from octavo.errors import EngineDeadError
from octavo.models.hub import ModelFiles
from octavo.sampling_params import SamplingParams

OPTIONS = engine_options(max_model_len=128, kv_cache_memory_bytes=2**20, dtype="float32", threads=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return ModelFiles("tiny", "hf", write_tiny_llama(tmp_path_factory.mktemp("tiny")))


@pytest_asyncio.fixture
async def engine(files: ModelFiles) -> AsyncIterator[EngineProcess]:
    spawned = await EngineProcess.spawn(OPTIONS, files)
    yield spawned
    await spawned.stop()


async def until(engine: EngineProcess, kind: type) -> EngineOutput:
    while True:
        message = await engine.receive()
        if isinstance(message, kind):
            return message
        assert isinstance(message, Loading | Ready | StepOutput), message


async def test_it_says_ready_and_serves(engine: EngineProcess) -> None:
    ready = await until(engine, Ready)
    assert isinstance(ready, Ready) and ready.max_model_len == 128
    engine.send(AddRequest("a", [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=5), seed=0))
    tokens: list[int] = []
    while len(tokens) < 5:
        step = await until(engine, StepOutput)
        assert isinstance(step, StepOutput)
        tokens += [token for update in step.updates for token in update.token_ids]
    assert len(tokens) == 5


@pytest.mark.parametrize("moment", ["start-up", "idle", "prefill", "decode"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
async def test_its_death_and_its_silence_are_told_by_name(
    engine: EngineProcess, how: signal.Signals, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SILENCE_SECONDS", 3.0)
    await until(engine, Loading if moment == "start-up" else Ready)
    if moment in ("prefill", "decode"):
        engine.send(AddRequest("a", [1, 2, 3] * 30, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True), seed=0))
    if moment == "decode":
        await until(engine, StepOutput)
    os.kill(engine.pid, how)
    with pytest.raises(EngineDeadError, match=rf"process {engine.pid} (ended with signal SIGKILL|has shown no sign of life)"):
        await until(engine, Failed)
    await engine.stop(timeout=0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)


async def test_a_checkpoint_it_cannot_load_is_its_last_word(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    engine = await EngineProcess.spawn(OPTIONS, ModelFiles("broken", "hf", folder))
    failed = await until(engine, Failed)
    assert isinstance(failed, Failed) and "model.safetensors" in failed.message
    with pytest.raises(EngineDeadError, match="exit code 1"):
        await engine.receive()
    await engine.stop()


async def test_stop_ends_it_and_can_be_said_twice(files: ModelFiles) -> None:
    engine = await EngineProcess.spawn(OPTIONS, files)
    await until(engine, Ready)
    await engine.stop()
    await engine.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)


async def test_it_leaves_when_its_parents_end_of_the_pipe_closes(engine: EngineProcess) -> None:
    await until(engine, Ready)
    assert engine._process.stdin is not None
    engine._process.stdin.close()
    with pytest.raises(EngineDeadError, match="exit code 0"):
        await until(engine, Failed)
