"""Every family computes what transformers computes from the same checkpoint, however the tokens are cut into steps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from family_checkpoints import CONFIGS, LENGTH, oracle_logits, save_checkpoint
from paged_steps import PagedModel, load
from transformers import PreTrainedModel

from octavo.models.config import ModelConfig
from octavo.models.decoder import Model
from octavo.ops.base import Ops
from octavo.ops.cpu.backend import CpuOps
from octavo.ops.reference import ReferenceOps

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit."""


@dataclass
class Case:
    model: Model
    config: ModelConfig
    sequences: list[list[int]]
    expected: list[torch.Tensor]
    oracle: PreTrainedModel
    directory: Path

    def paged(self) -> PagedModel:
        return PagedModel(self.model, self.config, torch.float32)

    def check(self, sequence: int, begin: int, logits: torch.Tensor) -> None:
        expected = self.expected[sequence]
        difference = (logits - expected[begin : begin + len(logits)]).abs().max().item()
        assert difference < TOLERANCE * expected.abs().max().item()


@pytest.fixture(scope="module", params=[f"{name} {backend}" for name in CONFIGS for backend in ("reference", "cpu")])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, backend = request.param.split()
    directory: Path = tmp_path_factory.mktemp(name)
    oracle = save_checkpoint(name, directory)
    ops = ops_named(backend, torch.float32)
    model, config = load(directory, torch.float32, LENGTH, ops)
    draw = random.Random(3)
    sequences = [[draw.randrange(3, config.vocab_size) for _ in range(LENGTH)] for _ in range(3)]
    return Case(model, config, sequences, [oracle_logits(oracle, tokens) for tokens in sequences], oracle, directory)


def ops_named(backend: str, dtype: torch.dtype) -> Ops:
    return ReferenceOps(torch.device("cpu"), dtype) if backend == "reference" else CpuOps(dtype, 1)


def test_logits_are_not_degenerate(case: Case) -> None:
    """The checkpoint tells tokens and positions apart, or else the other tests would hold nothing."""
    expected = case.expected[0]
    assert expected.std().item() > 0.3
    assert len(set(expected.argmax(-1).tolist())) > 20


def test_one_step_for_the_whole_prompt(case: Case) -> None:
    case.check(0, 0, case.paged().step({0: case.sequences[0]})[0])


def test_uneven_chunks(case: Case) -> None:
    paged, begin = case.paged(), 0
    for size in (5, 1, 17, 2, 40, 31, 1):
        case.check(0, begin, paged.step({0: case.sequences[0][begin : begin + size]})[0])
        begin += size
    assert begin == LENGTH


def test_token_by_token(case: Case) -> None:
    paged = case.paged()
    for position, token in enumerate(case.sequences[0]):
        case.check(0, position, paged.step({0: [token]})[0])


def test_mixed_steps_with_other_sequences(case: Case) -> None:
    """Prompts, chunks and single tokens of three sequences of different lengths, in changing order."""
    paged = case.paged()
    done = {0: 0, 1: 0, 2: 0}
    steps = [
        {0: 30},
        {0: 1, 1: 50},
        {2: 9, 0: 1, 1: 1},
        {1: 1, 2: 1, 0: 1},
        {0: 1, 1: 20, 2: 30},
        {2: 1, 1: 1},
        {0: 40, 2: 1},
        {0: 1, 1: 1, 2: 1},
    ]
    for step in steps:
        tokens = {sequence: case.sequences[sequence][done[sequence] : done[sequence] + count] for sequence, count in step.items()}
        for sequence, logits in paged.step(tokens).items():
            case.check(sequence, done[sequence], logits)
            done[sequence] += step[sequence]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_steps(case: Case, dtype: torch.dtype) -> None:
    """The same bits for a sequence in one step, in chunks, token by token, and beside others."""
    backend = case.model.ops.name
    if backend == "reference" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("torch's CPU kernels are known to be independent of the batch only in their AVX-512 build")
    model = case.model if dtype == torch.float32 else load(case.directory, dtype, LENGTH, ops_named(backend, dtype))[0]
    tokens, other = case.sequences[0], case.sequences[1]
    whole = PagedModel(model, case.config, dtype).step({0: tokens})[0]
    for cuts in ([5, 1, 17, 2, 40, 31, 1], [50, 47], [90, *[1] * 7]):
        alone, beside, begin = PagedModel(model, case.config, dtype), PagedModel(model, case.config, dtype), 0
        for size in cuts:
            new = tokens[begin : begin + size]
            expected = whole[begin : begin + size]
            assert torch.equal(alone.step({0: new})[0], expected)
            assert torch.equal(beside.step({1: other[begin : begin + size], 0: new, 2: other[begin : begin + 1]})[0], expected)
            begin += size


def test_sixty_four_greedy_tokens(case: Case) -> None:
    """Each token chosen greedily is transformers' choice too, unless its two best are closer than the tolerance."""
    paged, tokens = case.paged(), case.sequences[1][: LENGTH - 64]
    logits = paged.step({0: tokens})[0]
    for _ in range(64):
        chosen = int(logits[-1].argmax())
        tokens = [*tokens, chosen]
        if len(tokens) < LENGTH:
            logits = paged.step({0: [chosen]})[0]
    expected = oracle_logits(case.oracle, tokens)
    best, ids = expected[LENGTH - 65 : -1].topk(2, dim=-1)
    close = (best[:, 0] - best[:, 1]) < TOLERANCE * expected.abs().max()
    chosen_ids = torch.tensor(tokens[-64:])
    assert close.sum() < 8
    assert torch.equal(chosen_ids[~close], ids[~close, 0])
