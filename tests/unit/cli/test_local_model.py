"""The blocking face of the engine that terminal commands use, over a client that needs no engine."""

import asyncio
import signal
from types import SimpleNamespace

import pytest

from octavo.cli import local_model
from octavo.cli.local_model import LocalModel
from octavo.config import EngineOptions
from octavo.errors import EngineDeadError, InvalidRequestError, ModelLoadError
from octavo.frontend.outputs import CompletionOutput, RequestDelta, RequestOutput, SequenceDelta


class FakeStream:
    """Sends the prompt's words one by one; ``end`` is the finish reason."""

    def __init__(self, prompt, end):
        self.words = prompt.split()
        self.end = end
        self.closed = False

    def collector(self):
        deltas = []
        text = lambda: "".join(delta.sequences[0].text for delta in deltas)  # noqa: E731
        output = lambda: RequestOutput("id", None, [1], [CompletionOutput(0, text(), [1], finish_reason=self.end)])  # noqa: E731
        return SimpleNamespace(add=deltas.append, output=output)

    async def __aiter__(self):
        for index, word in enumerate(self.words):
            await asyncio.sleep(0)
            if word == "interrupt":
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(60)
            last = index == len(self.words) - 1
            yield RequestDelta("id", [SequenceDelta(0, word, [1], finish_reason=self.end if last else None)])

    async def aclose(self):
        self.closed = True


class FakeClient:
    """An ``EngineClient`` whose engine is always ready."""

    last = None
    failure = None
    end = "stop"
    template = True

    def __init__(self, options):
        FakeClient.last = self
        self.phase, self.progress = "ready", -1.0
        self.asked, self.streams, self.stopped = [], [], False
        template = SimpleNamespace(render=lambda messages, add_generation_prompt: " ".join(m["content"] for m in messages) + " go")
        self.model = SimpleNamespace(
            chat_template=template if self.template else None, sampling_defaults={"temperature": 0.6, "top_p": 0.9}
        )

    async def start(self):
        pass

    async def wait_ready(self):
        if self.failure == "interrupt":
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)
        if self.failure is not None:
            raise self.failure

    async def submit(self, prompt, params, *, add_special_tokens):
        if prompt == "refused":
            raise InvalidRequestError("no")
        self.asked.append((prompt, params, add_special_tokens))
        self.streams.append(FakeStream(prompt, self.end))
        return self.streams[-1]

    async def shutdown(self):
        self.stopped = True


@pytest.fixture(autouse=True)
def client(monkeypatch):
    monkeypatch.setattr(local_model, "EngineClient", FakeClient)
    monkeypatch.setenv("OCTAVO_LOG_LEVEL", "WARNING")
    for name, value in (("failure", None), ("end", "stop"), ("template", True)):
        monkeypatch.setattr(FakeClient, name, value)


def test_an_answer_streams_and_says_why_it_ended():
    parts = []
    with LocalModel(EngineOptions()) as model:
        assert model.answer([{"role": "user", "content": "a b"}], {"temperature": 0.0}, parts.append) == "stop"
    assert parts == ["a", "b", "go"]
    prompt, params, special = FakeClient.last.asked[0]
    assert (prompt, special) == ("a b go", False)
    assert (params.temperature, params.top_p) == (0.0, 0.9)  # the given one, and the model's default
    assert params.max_tokens is None
    assert FakeClient.last.streams[0].closed and FakeClient.last.stopped


def test_a_model_without_a_template_gets_the_contents_alone(monkeypatch):
    monkeypatch.setattr(FakeClient, "template", False)
    with LocalModel(EngineOptions()) as model:
        model.answer([{"role": "user", "content": "a"}], {}, lambda text: None)
    assert FakeClient.last.asked[0][0::2] == ("a", True)


def test_ctrl_c_ends_the_answer_and_the_model_stays_usable():
    parts = []
    with LocalModel(EngineOptions()) as model:
        with pytest.raises(KeyboardInterrupt):
            model.complete("one interrupt two", {}, parts.append, raw=True)
        assert parts == ["one"] and FakeClient.last.streams[0].closed
        assert model.complete("three", {}, parts.append, raw=True) == "stop"
    assert parts == ["one", "three"]


@pytest.mark.parametrize("end", ["abort", "error"])
def test_an_answer_that_is_not_whole_is_an_error(monkeypatch, end):
    monkeypatch.setattr(FakeClient, "end", end)
    with LocalModel(EngineOptions()) as model, pytest.raises(EngineDeadError):
        model.complete("one", {}, lambda text: None, raw=True)


def test_many_prompts_run_together_and_each_is_reported_once():
    done = {}
    with LocalModel(EngineOptions()) as model:
        model.complete_all([f"p{i}" for i in range(5)], {}, lambda index, output: done.setdefault(index, output), raw=True, at_once=2)
    assert {index: output.outputs[0].text for index, output in done.items()} == {i: f"p{i}" for i in range(5)}


def test_one_prompt_that_is_refused_ends_them_all_with_its_reason():
    with LocalModel(EngineOptions()) as model, pytest.raises(InvalidRequestError, match="no"):
        model.complete_all(["a", "refused"], {}, lambda index, output: None, raw=True)


def test_a_model_that_does_not_load_is_told_and_cleaned_up(monkeypatch):
    monkeypatch.setattr(FakeClient, "failure", ModelLoadError("broken"))
    with pytest.raises(ModelLoadError, match="broken"):
        LocalModel(EngineOptions())
    assert FakeClient.last.stopped


def test_ctrl_c_while_the_model_loads_is_clean(monkeypatch, caplog):
    monkeypatch.setattr(FakeClient, "failure", "interrupt")
    with pytest.raises(KeyboardInterrupt):
        LocalModel(EngineOptions())
    assert FakeClient.last.stopped and caplog.records == []
