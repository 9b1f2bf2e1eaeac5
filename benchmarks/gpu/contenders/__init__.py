"""Who is compared: each a module with ``load(settings)``, which returns what generates.

All get the same shape with random weights in bfloat16, the same prompts, and generate greedily for a given number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CONTENDERS: dict[str, str] = {
    "octavo": "Octavo, its engine in this process",
    "transformers_static": "transformers: a static cache, the decoding step as a CUDA graph; one sequence",
    "transformers_compiled": "transformers: generate with a static cache, compiled by torch; one sequence",
    "transformers_batching": "transformers: its own continuous batching",
    "vllm": "vLLM's offline engine",
    "sglang": "SGLang's offline engine",
}
"""By module, what runs."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all are told.

    Attributes:
        model: a directory with config.json and no weights.
        longest: most tokens of a sequence. sequences: most side by side.
        dry: a rehearsal on the CPU, in float32.
    """

    model: Path
    longest: int
    sequences: int
    dry: bool

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"


class Unsuited(Exception):
    """The contender cannot run here, or not this workload; the message says why."""


class Generator(Protocol):
    """A loaded model."""

    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Generate exactly ``new_tokens`` for each prompt.

        Raises:
            Unsuited: not this number of sequences.
        """
