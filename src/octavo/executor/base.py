"""Who executes a batch: the engine hands it a plan and gets the result, whether one worker or many did it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Any

from octavo.batch import Batch, PendingStep, StepResult
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary


class Executor(ABC):
    """One or more workers that hold the model and the pages.

    Attributes:
        depth: how many steps may be in flight while the next one is planned; 0 where a step is done when ``launch`` returns.
        stages: of the pipeline that a step runs through; with more than one, a sequence's token is known when its step's result is in.
        watched: whether there are workers that may die while no step runs: ``check`` is to be called now and then.
    """

    depth = 0
    stages = 1
    watched = False

    @abstractmethod
    def launch(self, batch: Batch) -> PendingStep:
        """Start one step on all workers. Steps run in the order in which they are launched, one after the other."""

    def execute(self, batch: Batch) -> StepResult:
        """Run one step on all workers and return what was sampled. No step is in flight."""
        return self.launch(batch).result()

    @abstractmethod
    def learn(self, vocabulary: Vocabulary) -> None:
        """Tell the workers the model's vocabulary; comes before the first ``compile``."""

    @abstractmethod
    def compile(self, form: StructuredOutputs) -> Future[Any]:
        """Start to compile a form; sequences that ask for it run once this is done.

        Returns:
            done when the workers are ready for it; ``InvalidRequestError`` where it does not compile.
        """

    def check(self) -> None:  # noqa: B027 (a worker in the engine's own process lives while it does)
        """See whether all workers live.

        Raises:
            OctavoError: one does not, naming it.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Free the workers. Idempotent."""
