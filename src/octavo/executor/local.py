"""One worker, in the engine's own process."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from octavo.batch import Batch, PendingStep
from octavo.config import EngineOptions
from octavo.executor.base import Executor
from octavo.models.config import ModelConfig
from octavo.models.hub import ModelFiles
from octavo.runner.device import Device
from octavo.runner.memory_plan import MemoryPlan
from octavo.runner.runner import Progress, Runner
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary


class LocalExecutor(Executor):
    """Runs batches on a runner it holds itself; arguments are the runner's."""

    def __init__(
        self, files: ModelFiles, config: ModelConfig, options: EngineOptions, plan: MemoryPlan, device: Device, progress: Progress
    ) -> None:
        self._runner: Runner | None = Runner(files, config, options, plan, device, progress)
        self.depth = 1 if self._runner.ops.samples and options.scheduler.async_scheduling else 0

    def launch(self, batch: Batch) -> PendingStep:
        return self._running.launch(batch)

    def learn(self, vocabulary: Vocabulary) -> None:
        self._running.inputs.grammars.learn(vocabulary)

    def compile(self, form: StructuredOutputs) -> Future[Any]:
        return self._running.inputs.grammars.compile(form)

    def shutdown(self) -> None:
        self._runner = None

    @property
    def _running(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("the executor is shut down")
        return self._runner
