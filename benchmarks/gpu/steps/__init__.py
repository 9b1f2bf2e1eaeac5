"""The steps of the first run, in order of value: what is wrong counts before what is slow.

Each is a module with ``run(job)``. Those that measure run alone; the others run beside each other first, since they leave most of the
GPU idle.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        name: of it and of its module.
        seconds: most it may take.
        alone: whether nothing else may run beside it.
        about: what it finds out.
    """

    name: str
    seconds: float
    alone: bool
    about: str


STEPS: tuple[Step, ...] = (
    Step("parity", 150, False, "the kernels' tests on the GPU"),
    Step("agreement", 120, False, "logits against transformers, and which runs agree bit for bit"),
    Step("same_tokens", 120, False, "graphs and eager, overlapped and synchronous: the same tokens"),
    Step("memcheck", 120, False, "compute-sanitizer over a tiny decode and prefill"),
    Step("limits", 40, True, "versions, bandwidth, matrix products"),
    Step("quantized", 60, True, "products with quantised weights"),
    Step("engine", 120, True, "Llama-3-8B shape: decode and prefill through the engine, kernels of a step"),
    Step("throughput", 150, True, "Llama-3-8B shape: offline throughput"),
    Step("attention", 60, True, "attention kernels alone"),
    Step("peers", 150, True, "transformers in the same run"),
    Step("startup", 60, True, "start-up to the first token"),
)
