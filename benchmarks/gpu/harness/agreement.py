"""Do two runs of the same thing give the same bits, and if not, how far apart are they."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.engine import Engine
from harness.job import Job
from harness.models import TINY, write_shape


@dataclass(frozen=True, slots=True)
class Shape:
    """A model that runs are compared on: cut down to two layers, with dummy weights."""

    name: str
    changes: dict[str, Any]


SMALL = Shape(
    "small",
    {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
WIDE = Shape("8B's width", {"num_hidden_layers": 2})
REHEARSAL = Shape("tiny", TINY)


@contextmanager
def checkpoint(shape: Shape) -> Iterator[Path]:
    """A directory with the shape's config.json."""
    folder = Path(tempfile.mkdtemp(prefix="octavo-shape-"))
    try:
        yield write_shape(folder, **shape.changes)
    finally:
        shutil.rmtree(folder)


def start(job: Job, folder: Path, dtype: str, **options: Any) -> Engine:
    """An engine on a cut-down model."""
    plain: dict[str, Any] = {"load_format": "dummy", "dtype": dtype, "max_num_seqs": 64, "max_model_len": 512 if job.dry else 1024}
    plain |= {"device": "cpu", "kv_cache_memory_bytes": 2**23} if job.dry else {"device": "cuda", "kv_cache_memory_bytes": 2**30}
    return Engine(folder, **(plain | options))


@dataclass(slots=True)
class Difference:
    """What sets two runs apart.

    Attributes:
        equal: whether nothing does.
        largest: the largest difference of two numbers, over the largest number; 0 where the numbers are the same.
        tokens: how many sequences have other tokens.
        sequences: how many there are.
    """

    equal: bool
    largest: float = 0.0
    tokens: int = 0
    sequences: int = 0

    def __str__(self) -> str:
        if self.equal:
            return "same bits"
        apart = f"differ by {self.largest:.1e}"
        return apart if not self.sequences else f"{apart}; other tokens in {self.tokens} of {self.sequences}"


def compare_tensors(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Difference:
    """Compare tensors, pair by pair."""
    if all(torch.equal(one, other) for one, other in pairs):
        return Difference(True)
    largest = max((one.double() - other.double()).abs().max().item() for one, other in pairs)
    scale = max(one.double().abs().max().item() for one, _ in pairs)
    return Difference(False, largest / scale)


Answers = list[tuple[list[int], list[list[float]]]]
"""Of each sequence its tokens and, where asked for, each token's log probabilities."""


def answers(engine: Engine, numbers: list[int]) -> Answers:
    """What requests came to."""
    return [(engine.tokens[number], [entry.logprobs for entry in engine.logprobs[number]]) for number in numbers]


def compare_answers(ones: Answers, others: Answers) -> Difference:
    """Compare sequences; numbers only as far as the tokens are the same, since from there on the text is another."""
    largest, scale, apart = 0.0, 1e-30, 0
    for (one, one_logprobs), (other, other_logprobs) in zip(ones, others, strict=True):
        same = next((place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
        apart += one != other
        for a, b in list(zip(one_logprobs, other_logprobs, strict=True))[: same + 1]:
            largest = max(largest, *(abs(x - y) for x, y in zip(a, b, strict=False)))
            scale = max(scale, *(abs(x) for x in a))
    return Difference(apart == 0 and largest == 0.0, largest / scale, apart, len(ones))
