"""Steps in flight on a real model and a device that is late: the tokens are those of steps that are planned and run in turn."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from late_device import LateRunner, SamplingOps
from tiny_checkpoint import VOCAB, write_tiny_llama

from octavo.config import engine_options
from octavo.engine.core import EngineCore
from octavo.engine.messages import AbortSequences, AddRequest, Call
from octavo.models.hub import ModelFiles
from octavo.runner.runner import Runner
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

EOS = 2
LETTERS = [bytes([ord("0") + token]) for token in range(VOCAB)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return ModelFiles("tiny", "hf", write_tiny_llama(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def late_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners are late ones whose kernels sample."""
    monkeypatch.setenv("OCTAVO_CPU_KERNELS", "reference")
    monkeypatch.setattr("octavo.runner.runner.select_ops", lambda device, dtype, *_, **__: SamplingOps(device, dtype))
    monkeypatch.setattr("octavo.executor.local.Runner", LateRunner)


def engine(files: ModelFiles, **options: Any) -> EngineCore:
    given = {"max_model_len": 64, "kv_cache_memory_bytes": 2**21, "max_num_seqs": 8, "max_num_batched_tokens": 24, "threads": 1, **options}
    core = EngineCore(engine_options(dtype="float32", device="cpu", block_size=8, **given), files)
    core.handle(Vocabulary(LETTERS, [], [EOS]))
    return core


def depth(core: EngineCore) -> int:
    return core._executor.depth


@dataclass
class Answer:
    """What came of one sequence."""

    tokens: list[int] = field(default_factory=list)
    finish: tuple[str | None, int | str | None] = (None, None)
    logprobs: list[Any] = field(default_factory=list)
    prompt: Any = None


class Client:
    """Sends requests to an engine and gathers the answers."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.answers: dict[tuple[str, int], Answer] = {}
        self.aborted: set[tuple[str, int]] = set()
        self.in_flight = 0  # steps that were so when a call of ``step`` returned

    def add(self, request: AddRequest) -> None:
        self.answers.update(((request.request_id, index), Answer()) for index in range(request.params.num_sequences))
        self.core.handle(request)

    def abort(self, request_id: str, indices: list[int]) -> None:
        ends = [key for key, answer in self.answers.items() if key[0] == request_id and (not indices or key[1] in indices)]
        self.aborted.update(key for key in ends if self.answers[key].finish[0] is None)
        self.core.handle(AbortSequences(request_id, indices))

    def step(self) -> None:
        output = self.core.step()
        self.in_flight += len(self.core._in_flight)
        for update in output.updates if output is not None else ():
            key = update.request_id, update.index
            answer = self.answers[key]
            assert key not in self.aborted and answer.finish[0] is None, "an update after the end"
            answer.tokens += update.token_ids
            answer.finish = update.finish_reason, update.stop_reason
            answer.logprobs += update.logprobs or []
            answer.prompt = update.prompt_logprobs or answer.prompt

    def run(self) -> dict[tuple[str, int], Answer]:
        """Work all off; returns the answers."""
        while self.core.has_work():
            self.step()
        audit = self.core.handle(Call(1, "audit"))
        assert audit is not None and audit.value == {"free_blocks": self.core.plan.num_blocks, "num_blocks": self.core.plan.num_blocks}
        return self.answers


def make_requests(seed: int, count: int, *, simple: bool) -> list[AddRequest]:
    draw = random.Random(seed)
    stems = [[draw.randrange(3, VOCAB) for _ in range(30)] for _ in range(3)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 7},
        {"temperature": 2.0, "top_p": 0.8, "min_p": 0.1},
        {"temperature": 1.0, "n": 3},
        {"temperature": 1.0, "best_of": 2},
    ]
    if not simple:
        kinds = 3 * kinds + [
            {"temperature": 1.0, "logprobs": 2},
            {"temperature": 0.0, "prompt_logprobs": 1, "logprobs": 0},
            {"temperature": 1.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
            {"temperature": 1.0, "min_tokens": 3},
            {"temperature": 1.0, "structured_outputs": StructuredOutputs(regex="[3-9]{2,5}")},
        ]
    requests = []
    for number in range(count):
        prompt = draw.choice(stems)[: draw.randint(0, 30)] + [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 3))]
        kind = draw.choice(kinds)
        params = SamplingParams(
            max_tokens=(draw.choice((1, 2, 8, 20)) if number % 7 else 64) + kind.get("min_tokens", 0),
            ignore_eos=draw.random() < 0.2,
            stop_token_ids=draw.choice(([], [5, 9, 17, 33])),
            **kind,
        )
        requests.append(AddRequest(f"r{number}", prompt, params, seed=draw.randrange(2**63), eos_token_ids=[EOS]))
    return requests


def same(answer: Answer, expected: Answer) -> None:
    """Logprobs up to rounding: plain torch's products of other batches round in another way."""
    assert (answer.tokens, answer.finish) == (expected.tokens, expected.finish)
    for found, wanted in ((answer.logprobs, expected.logprobs), (answer.prompt or [], expected.prompt or [])):
        assert [(entry and entry.token_ids, entry and entry.rank) for entry in found] == [
            (entry and entry.token_ids, entry and entry.rank) for entry in wanted
        ]
        for entry, other in zip(found, wanted, strict=True):
            assert (entry and entry.logprobs) == (other and pytest.approx(other.logprobs, abs=1e-4))


@pytest.mark.parametrize(("simple", "seed"), [(True, 1), (True, 2), (False, 3), (False, 4)])
def test_tokens_are_the_same_with_steps_in_flight_and_without(files: ModelFiles, simple: bool, seed: int) -> None:
    requests = make_requests(seed, 40, simple=simple)
    one_by_one = Client(engine(files, async_scheduling=False))
    assert depth(one_by_one.core) == 0
    for request in requests:
        one_by_one.add(request)
    expected = one_by_one.run()
    ends = {answer.finish[0] for answer in expected.values()}
    assert ends == {"stop", "length"} and not one_by_one.core.stats.preemptions

    draw = random.Random(seed)
    # Pages for two of the longest sequences: there will be preemptions.
    overlapped = Client(engine(files, kv_cache_memory_bytes=17 * one_by_one.core.plan.block_bytes))
    assert depth(overlapped.core) == 1
    for number, request in enumerate(requests):
        overlapped.add(request)
        for _ in range(draw.choice((0, 0, 1, 3))):
            overlapped.step()
        if draw.random() < 0.2:
            overlapped.abort(draw.choice(requests[max(0, number - 5) : number + 1]).request_id, draw.choice(([], [0], [1])))
    found = overlapped.run()
    assert overlapped.in_flight > 20 and overlapped.core.stats.preemptions["out_of_blocks"] > 0 and overlapped.core.stats.prefix_hits > 0
    assert overlapped.aborted and found.keys() == expected.keys()
    for key, answer in found.items():
        if key in overlapped.aborted:
            assert answer.tokens == expected[key].tokens[: len(answer.tokens)]
        else:
            same(answer, expected[key])


def test_the_device_samples_what_the_host_would(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedily, where both must agree."""
    requests = [AddRequest(f"r{i}", [i + 3] * (i + 1), SamplingParams(temperature=0.0, max_tokens=12), seed=0) for i in range(8)]
    on_device = Client(engine(files))
    monkeypatch.setattr(SamplingOps, "samples", False)
    monkeypatch.setattr("octavo.executor.local.Runner", Runner)
    by_host = Client(engine(files))
    assert (depth(on_device.core), depth(by_host.core)) == (1, 0)
    for client in (on_device, by_host):
        for request in requests:
            client.add(request)
    assert on_device.run() == by_host.run()


def test_a_row_that_cannot_be_sampled_ends_its_sequence_alone(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step after it is in flight by then, and reads some token for it."""
    steps = 0

    def spoil(logits: torch.Tensor) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            logits[0, 7] = torch.nan

    client = Client(engine(files))
    monkeypatch.setattr(SamplingOps, "spoil", staticmethod(spoil))
    for name in "ab":
        client.add(AddRequest(name, [5, 6, 7], SamplingParams(temperature=0.0, max_tokens=9), seed=0))
    answers = client.run()
    assert (answers["a", 0].finish, len(answers["a", 0].tokens)) == (("error", None), 2)
    assert (answers["b", 0].finish, len(answers["b", 0].tokens)) == (("length", None), 9)
    assert answers["a", 0].tokens == answers["b", 0].tokens[:2]


def test_many_rows_are_sampled_some_at_a_time(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    monkeypatch.setattr("octavo.runner.device.CpuDevice.logits_rows", 3)
    client = Client(engine(files))
    monkeypatch.setattr(SamplingOps, "spoil", staticmethod(lambda logits: widths.append(len(logits))))
    for index in range(8):
        client.add(AddRequest(f"r{index}", [index + 3], SamplingParams(temperature=1.0, max_tokens=3), seed=index))
    few = client.run()
    assert widths == [3, 3, 2] * 3
    monkeypatch.setattr("octavo.runner.device.CpuDevice.logits_rows", 64)
    client = Client(engine(files))
    widths.clear()
    for index in range(8):
        client.add(AddRequest(f"r{index}", [index + 3], SamplingParams(temperature=1.0, max_tokens=3), seed=index))
    assert client.run() == few and widths == [8] * 3
