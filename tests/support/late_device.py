"""A device that samples and is late: on the CPU, with plain torch, for tests of steps in flight.

``LateRunner`` queues the device's part of every step, and works the queue off, in order, when it has to: when a result is asked
for, or when the host samples. Whatever the host does in between, as on a GPU, happens before the device's part. So a token that the
host used before it can know it, pages or rows that are reused too early, and arrays that change under a step in flight show as wrong
tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from octavo.batch import Batch, PendingStep, StepResult
from octavo.ops.base import SampleRows
from octavo.ops.reference import ReferenceOps
from octavo.runner.input_batch import StepInputs
from octavo.runner.runner import Runner
from octavo.sampling.random import uniform

LOOKS = 3
"""How often a step is said not to be done."""


class SamplingOps(ReferenceOps):
    """The reference, with sampling on the device.

    Attributes:
        spoil: changes logits before they are sampled; a test may put damage there.
    """

    samples = True
    spoil: Callable[[torch.Tensor], None] = staticmethod(lambda logits: None)

    def sample(self, logits: torch.Tensor, rows: SampleRows) -> torch.Tensor:
        self.spoil(logits)
        return torch.tensor([_sample_row(values, rows, row) for row, values in enumerate(logits.double().numpy())])


def _sample_row(logits: np.ndarray, rows: SampleRows, row: int) -> int:
    """One row's token, by the rules of ``octavo.sampling.filters`` in float64; -1 where there is none."""
    best = logits.max()
    if not np.isfinite(best):
        return -1
    if rows.temperatures[row] == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order] - best) / rows.temperatures[row])
    if rows.min_ps[row] > 0:
        weights[weights < rows.min_ps[row]] = 0
    if rows.top_ks[row] > 0:
        weights[rows.top_ks[row] :] = 0
    ends = weights.cumsum()
    if rows.top_ps[row] < 1:
        weights[int(ends.searchsorted(rows.top_ps[row] * ends[-1])) + 1 :] = 0
        ends = weights.cumsum()
    draw = uniform(int(rows.seeds[row]), int(rows.positions[row]))
    return int(order[ends.searchsorted(draw * ends[-1], "right")])


class LateRunner(Runner):
    """Does a step's work late."""

    def launch(self, batch: Batch) -> PendingStep:
        if any(new.params.prompt_logprobs is not None for new in batch.new):
            self._catch_up()  # steps in flight would look for prompts to score among the sequences of this plan
        return super().launch(batch)

    def _start(self, batch: Batch, step: StepInputs | None) -> PendingStep:
        start = super()._start
        late = _Late(lambda: start(batch, step))
        self._queue.append(late)
        if step is not None and (step.states or self.inputs.scored):
            self._catch_up()
        looks = iter([False] * LOOKS)
        return PendingStep(lambda: self._result(late), lambda: next(looks, True))

    def _result(self, late: _Late) -> StepResult:
        while late.step is None:
            self._do_next()
        return late.step.result()

    def _catch_up(self) -> None:
        while self._queue:
            self._do_next()

    @torch.inference_mode()
    def _do_next(self) -> None:
        self._queue.popleft().do()

    @property
    def _queue(self) -> deque[_Late]:
        queue: deque[_Late] = self.__dict__.setdefault("_late", deque())
        return queue


class _Late:
    """The device's part of a step, done or not."""

    def __init__(self, start: Callable[[], PendingStep]) -> None:
        self._start = start
        self.step: PendingStep | None = None

    def do(self) -> None:
        self.step = self._start()
