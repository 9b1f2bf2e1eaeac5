"""What an engine and its workers say to each other: msgpack over unix sockets, each plan encoded once for all workers."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.batch import Batch, StepResult
from octavo.config import EngineOptions
from octavo.runner.memory_plan import MemoryPlan
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary


class WorkerStart(msgspec.Struct):
    """The line on a worker's standard input.

    Attributes:
        rank: its place among the ranks: those that share the first stage's layers come first.
        inbox, outbox: where it listens and speaks.
        memory: the descriptor of the file that the ranks of its stage share, and slot_floats of it are each rank's
            (``ops.cpu.shared_group``).
        meeting: the descriptor of the file in which the ranks of all stages find each other.
        plan: the rank's memory.
    """

    rank: int
    inbox: str
    outbox: str
    memory: int
    slot_floats: int
    meeting: int
    options: EngineOptions
    model_name: str
    model_kind: Literal["hf", "gguf"]
    model_path: str
    plan: MemoryPlan


# ---- engine -> workers -----------------------------------------------------------------------------------------------


class Launch(msgspec.Struct, tag="launch", array_like=True):
    """Run a step.

    Attributes:
        heard: (sequence, token) of the steps before, for the workers that did not sample them.
    """

    batch: Batch
    heard: list[tuple[int, int]]


class Compile(msgspec.Struct, tag="compile", array_like=True):
    """Compile a form, for the worker that samples."""

    form_id: int
    form: StructuredOutputs


class Stop(msgspec.Struct, tag="stop", array_like=True):
    """Leave."""


WorkerInput = Launch | Compile | Stop | Vocabulary

# ---- worker -> engine ------------------------------------------------------------------------------------------------


class Progress(msgspec.Struct, tag="progress", array_like=True):
    """How much of its part a rank has loaded, in [0, 1]; more than 1 when it takes steps."""

    rank: int
    fraction: float


class Alive(msgspec.Struct, tag="alive", array_like=True):
    """A rank's process runs, whatever it is at."""

    rank: int


class Done(msgspec.Struct, tag="done", array_like=True):
    """What came of a step, from the rank that samples."""

    result: StepResult


class Compiled(msgspec.Struct, tag="compiled", array_like=True):
    """A form is ready, or why it is not (``error``); ``invalid`` where that is the request's fault."""

    form_id: int
    error: str = ""
    invalid: bool = False


class WorkerFailed(msgspec.Struct, tag="failed", array_like=True):
    """A rank's last words."""

    rank: int
    message: str


WorkerOutput = Progress | Alive | Done | Compiled | WorkerFailed
