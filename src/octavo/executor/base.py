"""Who executes a batch: the engine hands it a plan and gets the result, whether one worker or many did it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from octavo.batch import Batch, StepResult


class Executor(ABC):
    """One or more workers that hold the model and the pages."""

    @abstractmethod
    def execute(self, batch: Batch) -> StepResult:
        """Run one step on all workers and return what was sampled."""

    @abstractmethod
    def shutdown(self) -> None:
        """Free the workers. Idempotent."""
