"""Who executes a batch: the engine hands it a plan and gets the result, whether one worker or many did it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Any

from octavo.batch import Batch, StepResult
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary


class Executor(ABC):
    """One or more workers that hold the model and the pages."""

    @abstractmethod
    def execute(self, batch: Batch) -> StepResult:
        """Run one step on all workers and return what was sampled."""

    @abstractmethod
    def learn(self, vocabulary: Vocabulary) -> None:
        """Tell the workers the model's vocabulary; comes before the first ``compile``."""

    @abstractmethod
    def compile(self, form: StructuredOutputs) -> Future[Any]:
        """Start to compile a form; sequences that ask for it run once this is done.

        Returns:
            done when the workers are ready for it; ``InvalidRequestError`` where it does not compile.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Free the workers. Idempotent."""
