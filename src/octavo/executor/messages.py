"""What an engine and its workers say to each other: msgpack over unix sockets, each plan encoded once for all workers."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.batch import Batch, StepResult
from octavo.config import EngineOptions
from octavo.runner.memory_plan import MemoryPlan
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary


class Job(msgspec.Struct):
    """What an engine has its ranks do, the same for all of them.

    Attributes:
        name: drawn anew for each start, so that late news of an old one are known as such.
        options: the engine's, with the device that it chose.
        engine: which of how many engines in the server has it.
        ahead: steps that a rank may have on its device when it takes up the next one: 1 where the device samples, of one stage, else 0.
        plans: each rank's memory.
        homes: each rank's host.
        inboxes, outbox: where each rank listens, and where all speak.
        meeting: HOST:PORT of the store in which ranks on several hosts find each other; empty where all are on one host.
        hidden_size, vocab_size: of the model.
    """

    name: str
    options: EngineOptions
    engine: tuple[int, int]
    ahead: int
    plans: list[MemoryPlan]
    homes: list[int]
    inboxes: list[str]
    outbox: str
    meeting: str
    hidden_size: int
    vocab_size: int

    @property
    def tensor(self) -> int:
        """Ranks that share a layer."""
        return self.options.device.tensor_parallel_size

    def group(self, stage: int) -> range:
        """The ranks that share a stage's layers: those of the first stage come first."""
        return range(stage * self.tensor, (stage + 1) * self.tensor)

    def shares_memory(self, stage: int) -> bool:
        """Whether a stage's ranks have memory that all of them reach: they run on a CPU, on one host."""
        return self.options.device.device == "cpu" and len({self.homes[rank] for rank in self.group(stage)}) == 1


class WorkerStart(msgspec.Struct):
    """The line on a worker's standard input.

    Attributes:
        memory: the descriptor of the file that the ranks of its stage share (``ops.cpu.shared_group``); -1 where they do not.
        meeting: the descriptor of the file in which ranks on one host find each other.
        threads: its own.
        number, count: which of how many ranks on this host it is, those of other engines included: it has the GPU of that number.
        from_main_thread: see ``child_process.leave_with_parent``.
        model_name, model_kind, model_path: where its host has the model.
    """

    rank: int
    job: Job
    memory: int
    meeting: int
    threads: int
    number: int
    count: int
    from_main_thread: bool
    model_name: str
    model_kind: Literal["hf", "gguf"]
    model_path: str


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

# ---- between an engine and its other hosts ---------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello", array_like=True):
    """A host is there and has nothing to do; said again and again.

    Attributes:
        host: which one, from 1.
        layout: hosts, tensor_parallel_size and pipeline_parallel_size that it was started with.
        device: cpu or cuda. version: its Octavo's. model: names its checkpoint's shape and types (``hosts.fingerprint``).
        free_bytes: memory that its ranks may take.
        last: the job that it had last, which has ended here.
    """

    host: int
    layout: tuple[int, int, int]
    device: str
    version: str
    model: str
    free_bytes: int
    last: str


class Busy(msgspec.Struct, tag="busy", array_like=True):
    """A host's ranks are at a job; said again and again."""

    host: int
    job: str


class RankEnded(msgspec.Struct, tag="ended", array_like=True):
    """A process of a job has ended without being told to, with a code as ``Popen.returncode`` has it."""

    rank: int
    job: str
    pid: int
    code: int


HostOutput = Hello | Busy | RankEnded


class Begin(msgspec.Struct, tag="begin", array_like=True):
    """Start the host's ranks."""

    job: Job


class Here(msgspec.Struct, tag="here", array_like=True):
    """The engine of that job lives; said again and again."""

    job: str


class End(msgspec.Struct, tag="end", array_like=True):
    """End the ranks of whatever job."""


class Refused(msgspec.Struct, tag="refused", array_like=True):
    """The host does not fit in: it is to leave."""

    message: str


HostInput = Begin | Here | End | Refused
