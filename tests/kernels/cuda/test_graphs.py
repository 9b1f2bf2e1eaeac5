"""Whole models on the GPU's kernels: every family's logits against transformers, and decoding steps replayed as graphs.

Without a GPU a graph is a function that is called again: what is tested is what it reads, and when.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from family_checkpoints import CONFIGS, LENGTH, oracle_logits, save_checkpoint
from paged_steps import PagedModel, load

from octavo.ops.cuda import attention_triton
from octavo.ops.cuda.backend import CudaOps
from octavo.ops.cuda.graphs import DecodeSteps, batch_size

TOLERANCE = 1e-4
FAMILIES = sorted(CONFIGS)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16] if torch.cuda.is_available() else [torch.float32], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Slow in the interpreter, and what a replay reads does not depend on it."""
    chosen: torch.dtype = request.param
    return chosen


def tokens_of(seed: int, count: int, vocab_size: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, vocab_size) for _ in range(count)]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family(name: str, device: torch.device, tmp_path: Path) -> None:
    """Two sequences in chunks, single tokens and mixed steps, over pages full of NaN, in float32."""
    oracle = save_checkpoint(name, tmp_path)
    model, config = load(tmp_path, torch.float32, LENGTH, CudaOps(device, torch.float32))
    sequences = [tokens_of(seed, LENGTH, config.vocab_size) for seed in (1, 2)]
    expected = [oracle_logits(oracle, tokens) for tokens in sequences]
    paged, done = PagedModel(model, config, torch.float32), [0, 0]
    for counts in ({0: 33}, {0: 1, 1: 30}, {0: 1, 1: 1}, {1: 1, 0: 1}, {0: 30, 1: 1}, {1: 1, 0: 1}, {0: 1}):
        new = {which: sequences[which][done[which] : done[which] + count] for which, count in counts.items()}
        for which, logits in paged.step(new).items():
            wanted = expected[which][done[which] : done[which] + counts[which]]
            assert (logits.cpu() - wanted).abs().max().item() < TOLERANCE * expected[which].abs().max().item()
            done[which] += counts[which]
    assert isinstance(paged.forward, DecodeSteps)
    assert paged.forward.graphs


def test_graphs_and_eager_steps_agree_bit_for_bit(device: torch.device, dtype: torch.dtype, tmp_path: Path) -> None:
    """Two kinds of layers; batches that grow, shrink and change their order, so that sizes and buffers are used again."""
    save_checkpoint("gemma3", tmp_path)
    runs = []
    for use_graphs in (True, False):
        model, config = load(tmp_path, dtype, LENGTH, CudaOps(device, dtype, graphs=use_graphs))
        paged, seen = PagedModel(model, config, dtype), []
        for which in range(5):
            paged.step({which: tokens_of(which, 5 + 7 * which, config.vocab_size)})
        orders = ([0], [0, 1, 2], [3, 1], [4, 3, 2, 1, 0], [2], [1, 0, 2])
        for turn, order in enumerate(orders):
            logits = paged.step({which: [3 + (turn + which) % 90] for which in order})
            seen.append(torch.cat([logits[which] for which in order]).clone())
        runs.append(seen)
        assert isinstance(paged.forward, DecodeSteps)
        assert {key[0] for key in paged.forward.graphs} == ({1, 2, 4, 8} if use_graphs else set())
    for graph, eager in zip(*runs, strict=True):
        assert torch.equal(graph, eager)


def test_steps_with_more_work_than_there_is_room_for_run_as_they_are(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint("llama", tmp_path)
    monkeypatch.setattr(attention_triton, "most_items", lambda spec: 8)
    model, config = load(tmp_path, torch.float32, LENGTH, CudaOps(device, torch.float32))
    paged = PagedModel(model, config, torch.float32)
    paged.step({which: tokens_of(which, 5, config.vocab_size) for which in range(9)})
    for _ in range(3):
        paged.step({which: [7] for which in range(9)})
    assert isinstance(paged.forward, DecodeSteps)
    assert not paged.forward.graphs
    paged.step({which: [7] for which in range(8)})
    assert list(paged.forward.graphs) == [(8, 8)]


def test_sizes_of_graphs() -> None:
    assert [batch_size(count) for count in (1, 2, 3, 5, 8, 9, 33, 48, 65, 129, 256)] == [1, 2, 4, 8, 8, 16, 48, 48, 96, 160, 256]
