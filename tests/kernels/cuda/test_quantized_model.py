"""Whole models with quantised weights on the GPU's kernels: their logits against those of the weights spelled out on the reference."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from drawn_blocks import drawn_blocks, stands_for
from paged_steps import PagedModel
from small_shape import SMALL_SHAPE

from octavo.models.config import ModelConfig, RotaryConfig
from octavo.models.dummy_source import DummySource
from octavo.models.registry import build_model
from octavo.ops.base import BlockWeight, Ops
from octavo.ops.cuda import float8_linear
from octavo.ops.cuda.backend import CudaOps
from octavo.ops.cuda.graphs import DecodeSteps
from octavo.ops.reference import ReferenceOps
from octavo.quantization.base import StoredTensor, WeightSource
from octavo.quantization.formats import DENSE, load_packed, resolve

LENGTH = 48
CONFIG = replace(
    SMALL_SHAPE,
    hidden_size=64,
    intermediate_size=160,
    head_dim=16,
    max_position_embeddings=LENGTH,
    rotary=RotaryConfig(16),
    attention_scale=0.25,
)
FILE = (("Q4_1", "4_minima"), ("Q4_0", "4_zero8"), ("Q8_0", "8_signed"), ("Q5_0", "8_zero16"), ("Q5_1", "8_minima"))
"""A file's storage types, in turn, and what they are as blocks: the parts of a stacked weight differ."""


class Drawn(StoredTensor):
    """Blocks that a file might hold."""

    def __init__(self, name: str, shape: tuple[int, ...], storage: str, blocks: BlockWeight) -> None:
        self.name, self.shape, self.format, self._blocks = name, shape, storage, blocks

    def dense(self, dtype: torch.dtype, rows: slice | None = None) -> torch.Tensor:
        return stands_for(self._blocks)[rows or slice(None), : self.shape[1]].to(dtype)

    def blocks(self, rows: slice | None = None) -> BlockWeight | None:
        assert rows is None
        return self._blocks


class Changed(WeightSource):
    """Dummy weights, of which some are others.

    Args:
        change: a tensor to one instead of it.
    """

    def __init__(self, change: Callable[[StoredTensor], StoredTensor], quantization: str = "auto", config: ModelConfig = CONFIG) -> None:
        self.config = config
        self._dummy = DummySource(config)
        self._change = change
        self.quantization = quantization

    def __contains__(self, name: str) -> bool:
        return name in self._dummy

    def __getitem__(self, name: str) -> StoredTensor:
        return self._change(self._dummy[name])

    def names(self) -> list[str]:
        return self._dummy.names()


def loud(stored: StoredTensor) -> StoredTensor:
    """Matrices whose products keep the scale of their input."""
    if len(stored.shape) < 2:
        return stored
    dense = stored.dense
    stored.dense = lambda dtype, rows=None: dense(dtype, rows) * 8.0  # type: ignore[method-assign]
    return stored


def as_in_a_file(stored: StoredTensor) -> StoredTensor:
    if len(stored.shape) < 2:
        return stored
    number = sum(map(ord, stored.name))
    storage, name = FILE[number % len(FILE)]
    return Drawn(stored.name, stored.shape, storage, drawn_blocks(name, *stored.shape, seed=number))


def spelled_out(quantization: str) -> Callable[[StoredTensor], StoredTensor]:
    """Matrices as they are once they have been quantised at load."""

    def change(stored: StoredTensor) -> StoredTensor:
        loud(stored)
        packed = DENSE if len(stored.shape) < 2 else resolve(stored.format, quantization, not stored.name.startswith("model.layers."))
        if packed == DENSE:
            return stored
        made = load_packed(stored, packed)
        assert isinstance(made, BlockWeight)
        return Drawn(stored.name, stored.shape, "F32", made)

    return change


def run(ops: Ops, source: Changed) -> torch.Tensor:
    """Logits of two sequences, in chunks, single tokens and mixed steps."""
    paged, parts = PagedModel(build_model(source.config, source, ops, LENGTH), source.config, ops.dtype, num_blocks=8), []
    draw = random.Random(3)
    for counts in ({0: 19}, {0: 1, 1: 6}, {0: 1, 1: 1}, {1: 1, 0: 1}, {0: 1}):
        new = {which: [draw.randrange(CONFIG.vocab_size) for _ in range(count)] for which, count in counts.items()}
        parts += [part.clone() for part in paged.step(new).values()]
    if isinstance(ops, CudaOps):
        assert isinstance(paged.forward, DecodeSteps) and paged.forward.graphs
    return torch.cat(parts).cpu()


def apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the difference, as a share."""
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_of_several_formats(tied: bool, device: torch.device, dtype: torch.dtype) -> None:
    config = replace(CONFIG, tie_word_embeddings=tied)
    expected = run(ReferenceOps(torch.device("cpu"), torch.float32), Changed(as_in_a_file, config=config))
    found = run(CudaOps(device, dtype), Changed(as_in_a_file, config=config))
    assert apart(found, expected) < (1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_at_load(quantization: str, device: torch.device) -> None:
    expected = run(ReferenceOps(torch.device("cpu"), torch.float32), Changed(spelled_out(quantization), "none"))
    found = run(CudaOps(device, torch.float32), Changed(loud, quantization))
    assert apart(found, expected) < 1e-5
    assert apart(found, run(ReferenceOps(torch.device("cpu"), torch.float32), Changed(loud))) > 1e-3


def test_widths_that_are_no_whole_blocks(device: torch.device) -> None:
    """Weights are filled up; rows of the token table are not."""
    config = replace(CONFIG, hidden_size=48, intermediate_size=72)
    layers = spelled_out("int8")

    def change(stored: StoredTensor) -> StoredTensor:
        return loud(stored) if stored.name == "model.embed_tokens.weight" else layers(stored)

    expected = run(ReferenceOps(torch.device("cpu"), torch.float32), Changed(change, "none", config))
    assert apart(run(CudaOps(device, torch.float32), Changed(loud, "int8", config)), expected) < 1e-5


def test_float8(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are float8 numbers too, so that sums in another order may round to others: only near to each other."""
    dense = run(ReferenceOps(torch.device("cpu"), torch.float32), Changed(loud))
    found = run(CudaOps(device, torch.float32), Changed(loud, "fp8"))
    monkeypatch.setattr(float8_linear, "FUSED_ROWS", 0)
    spelled = run(CudaOps(device, torch.float32), Changed(loud, "fp8"))
    assert apart(found, spelled) < 0.02
    assert 0.005 < apart(found, dense) < 0.15
