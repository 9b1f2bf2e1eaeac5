"""The step loop around a fake worker: messages in, outputs out."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from tiny_checkpoint import write_tiny_llama

from octavo.batch import Batch, PendingStep, SampledToken, StepResult
from octavo.config import engine_options
from octavo.engine.core import EngineCore
from octavo.engine.messages import AbortSequences, AddRequest, Call, SequenceUpdate
from octavo.errors import InvalidRequestError
from octavo.executor.base import Executor
from octavo.models.hub import ModelFiles
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

EOS = 2


class CountingExecutor(Executor):
    """Samples 10, 11, 12, ... by position, so that every token is known beforehand."""

    def __init__(self, *_: Any) -> None:
        self.open = True
        self.known: set[int] = set()
        self.compiled: dict[bytes, Future[Any]] = {}

    def launch(self, batch: Batch) -> PendingStep:
        result = self.sample(batch)
        return PendingStep(lambda: result)

    def sample(self, batch: Batch) -> StepResult:
        self.known -= set(batch.dropped)
        self.known |= {new.seq_id for new in batch.new}
        assert {entry.seq_id for entry in batch.scheduled} <= self.known
        return StepResult([SampledToken(e.seq_id, 10 + e.num_computed + e.num_tokens) for e in batch.scheduled if e.samples])

    def learn(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def compile(self, form: StructuredOutputs) -> Future[Any]:
        return self.compiled.setdefault(form.key, Future())

    def shutdown(self) -> None:
        self.open = False


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return ModelFiles("tiny", "hf", write_tiny_llama(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def core(files: ModelFiles) -> EngineCore:
    options = engine_options(max_model_len=64, kv_cache_memory_bytes=2**20, max_num_seqs=4, max_num_batched_tokens=16)
    return EngineCore(options, files, make_executor=CountingExecutor)


def add(core: EngineCore, request_id: str, prompt: list[int], **params: Any) -> None:
    core.handle(AddRequest(request_id, prompt, SamplingParams(temperature=0.0, **params), seed=1, eos_token_ids=[EOS], arrival_time=5.0))


def run(core: EngineCore) -> list[SequenceUpdate]:
    updates = []
    while core.has_work():
        output = core.step()
        assert output is not None
        updates += output.updates
    return updates


def test_requests_run_to_their_length_with_times_at_first_and_last(core: EngineCore) -> None:
    add(core, "a", [1] * 20, max_tokens=3)
    add(core, "b", [1] * 2, max_tokens=1)
    updates = run(core)
    tokens = {name: [t for u in updates if u.request_id == name for t in u.token_ids] for name in ("a", "b")}
    assert tokens == {"a": [30, 31, 32], "b": [12]}
    ends = {u.request_id: u for u in updates if u.finish_reason}
    assert {name: end.finish_reason for name, end in ends.items()} == {"a": "length", "b": "length"}
    times = ends["a"].times
    assert times is not None and times.arrival == 5.0
    assert 0 < times.first_scheduled <= times.first_token <= times.finished
    first = next(u for u in updates if u.request_id == "a")
    assert first.times is not None and first.times.finished == 0.0


def test_a_request_is_started_once(core: EngineCore) -> None:
    add(core, "a", [1] * 40, max_tokens=2)  # three chunks
    started = []
    while core.has_work():
        output = core.step()
        assert output is not None
        started += output.started
    assert started == ["a"]


def test_an_abort_frees_the_pages_before_the_next_step(core: EngineCore) -> None:
    add(core, "a", [1] * 8, max_tokens=50)
    core.step()
    assert core.handle(Call(1, "audit")).value["free_blocks"] < core.plan.num_blocks  # type: ignore[union-attr]
    core.handle(AbortSequences("a"))
    answer = core.handle(Call(2, "audit"))
    assert answer is not None and answer.value["free_blocks"] == core.plan.num_blocks
    report = core.step()
    assert report is not None and (report.updates, report.stats.num_running, report.stats.kv_usage) == ([], 0, 0.0)
    assert not core.has_work()


def test_one_sequence_of_several_can_be_ended(core: EngineCore) -> None:
    add(core, "a", [1] * 4, max_tokens=6, n=2)
    while not any(u.index == 1 for u in (core.step() or pytest.fail("nothing to do")).updates):
        pass
    core.handle(AbortSequences("a", [0]))
    rest = run(core)
    assert {u.index for u in rest} == {1}
    assert rest[-1].finish_reason == "length" and rest[-1].times is not None


def test_a_request_that_cannot_run_is_answered_with_its_reason(core: EngineCore) -> None:
    add(core, "long", [1] * 64, max_tokens=1)
    (update,) = run(core)
    assert update.finish_reason == "error"
    assert "64" in str(update.stop_reason)


def test_an_unknown_call_is_refused(core: EngineCore) -> None:
    answer = core.handle(Call(9, "dance"))
    assert answer is not None and answer.call_id == 9 and "dance" in answer.error
    assert core.handle(Call(10, "reset_prefix_cache")).value is True  # type: ignore[union-attr]


def test_statistics_follow_the_steps(core: EngineCore) -> None:
    add(core, "a", [1] * 20, max_tokens=2)
    first = core.step()
    assert first is not None
    assert (first.stats.num_running, first.stats.step_tokens) == (1, 16)
    assert first.stats.kv_usage > 0
    run(core)
    assert core.stats.num_running == 0 and core.stats.kv_usage == 0


# ---- forms -----------------------------------------------------------------------------------------------------------


def executor_of(core: EngineCore) -> CountingExecutor:
    executor = core._executor
    assert isinstance(executor, CountingExecutor)
    return executor


def form(core: EngineCore, request_id: str, regex: str, **params: Any) -> Future[Any]:
    """Add a request with this form; returns what the worker compiles it to."""
    made = StructuredOutputs(regex=regex)
    add(core, request_id, [1] * 4, structured_outputs=made, **params)
    return executor_of(core).compiled[made.key]


def test_the_vocabulary_goes_to_the_workers(core: EngineCore) -> None:
    vocabulary = Vocabulary([b"a"], [], [EOS])
    core.handle(vocabulary)
    assert executor_of(core).vocabulary is vocabulary


def test_requests_run_while_a_form_is_compiled_and_its_own_after(core: EngineCore) -> None:
    compiled = form(core, "held", "a", max_tokens=2)
    add(core, "free", [1] * 4, max_tokens=2)
    updates = [update for _ in range(2) for update in (core.step() or pytest.fail("nothing to do")).updates]
    assert {update.request_id for update in updates} == {"free"}
    assert core.has_work()
    waiting = core.step()
    assert waiting is not None and not waiting.updates and waiting.stats.num_waiting == 1
    compiled.set_result(None)
    assert [update.request_id for update in run(core)] == ["held", "held"]


def test_a_form_that_does_not_compile_ends_its_request(core: EngineCore) -> None:
    form(core, "a", "a").set_exception(InvalidRequestError("The regular expression cannot be used."))
    (update,) = run(core)
    assert (update.finish_reason, update.stop_reason) == ("error", "The regular expression cannot be used.")


def test_a_request_can_be_given_up_while_its_form_is_compiled(core: EngineCore) -> None:
    compiled = form(core, "a", "a")
    core.handle(AbortSequences("a"))
    compiled.set_result(None)
    assert run(core) == [] and not core.has_work()


def test_a_complete_form_ends_its_sequence_and_a_failed_one_says_why(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CountingExecutor.sample

    def sample(self: CountingExecutor, batch: Batch) -> StepResult:  # sequence 1 is complete, 2 has failed
        sampled = [entry for entry in plain(self, batch).sampled if entry.seq_id != 2]
        return StepResult(sampled, failed=[2], reasons={2: "it is too complex"}, complete=[1])

    monkeypatch.setattr(CountingExecutor, "sample", sample)
    add(core, "run", [1] * 4, max_tokens=1)
    form(core, "end", "a", max_tokens=9, min_tokens=5).set_result(None)
    form(core, "fail", "b", max_tokens=9).set_result(None)
    ends = {update.request_id: (update.finish_reason, update.stop_reason, len(update.token_ids)) for update in run(core)}
    assert ends == {"end": ("stop", None, 1), "fail": ("error", "it is too complex", 0), "run": ("length", None, 1)}
