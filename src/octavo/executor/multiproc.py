"""Several workers on this host, a process each, that share each layer (tensor parallel), the layers (pipeline parallel), or both."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys
import time
import uuid
from collections import deque
from concurrent.futures import Future
from typing import Any

import msgspec
import zmq

from octavo.batch import Batch, PendingStep, StepResult
from octavo.config import EngineOptions
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError
from octavo.executor.base import Executor
from octavo.executor.child_process import describe_end
from octavo.executor.messages import (
    Compile,
    Compiled,
    Done,
    Launch,
    Progress,
    Stop,
    WorkerFailed,
    WorkerInput,
    WorkerOutput,
    WorkerStart,
)
from octavo.executor.worker import READY
from octavo.log import get_logger
from octavo.models.config import ModelConfig
from octavo.models.hub import ModelFiles
from octavo.ops.cpu.shared_group import SharedGroup
from octavo.ops.workspace import shared_slot_floats
from octavo.runner.device import Device, usable_cores
from octavo.runner.memory_plan import MemoryPlan
from octavo.runner.runner import Progress as TellProgress
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

logger = get_logger(__name__)

SILENCE_SECONDS = 15.0
"""A worker that has shown no sign of life for so long hangs: stopped, or swapped out beyond use."""

_POLL_MS = 200
_LAST_BREATH_SECONDS = 0.1
"""From the end of a process's connections to its own."""

_STOP_SECONDS = 2.0


class MultiprocExecutor(Executor):
    """Runs batches on worker processes of its own.

    Args:
        files, config, options, device, progress: as the local executor's.
        plan: each rank's memory.

    Raises:
        OctavoError: a worker cannot start; the message names its rank and the cause.
    """

    watched = True

    def __init__(
        self,
        files: ModelFiles,
        config: ModelConfig,
        options: EngineOptions,
        plan: list[MemoryPlan],
        device: Device,
        progress: TellProgress,
    ) -> None:
        size, tensor = len(plan), options.device.tensor_parallel_size
        self.stages = options.device.pipeline_parallel_size
        self.depth = self.stages - 1
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[WorkerOutput] = msgspec.msgpack.Decoder(WorkerOutput)
        self._context = zmq.Context()
        name = f"ipc://@octavo-{uuid.uuid4().hex}"  # abstract: no file is left, whoever dies how
        self._outbox = self._socket(zmq.PULL, f"{name}-out")
        self._inboxes = [self._socket(zmq.PUSH, f"{name}-{rank}") for rank in range(size)]
        self._heard: list[tuple[int, int]] = []
        self._results: deque[StepResult] = deque()
        self._forms: dict[int, Future[Any]] = {}
        self._form_ids = itertools.count()
        self._loaded = [0.0] * size
        self._seen = [time.monotonic()] * size
        self._workers: list[subprocess.Popen[bytes]] = []
        threads = max(1, (options.device.threads or usable_cores()) // size)
        options = dataclasses.replace(options, device=dataclasses.replace(options.device, threads=threads))
        slot_floats = shared_slot_floats(config.hidden_size, config.vocab_size)
        meeting = os.memfd_create("octavo", os.MFD_CLOEXEC)
        memories = [os.memfd_create("octavo", os.MFD_CLOEXEC) for _ in range(self.stages)]
        model = files.name, files.kind, str(files.path)
        try:
            for memory in memories:
                os.ftruncate(memory, SharedGroup.bytes(tensor, slot_floats))
            for rank in range(size):
                files_in_memory = memories[rank // tensor], slot_floats, meeting
                start = WorkerStart(rank, f"{name}-{rank}", f"{name}-out", *files_in_memory, options, *model, plan[rank])
                self._workers.append(self._spawn(start))
            while min(self._loaded) < READY:
                self._receive()
                progress("loading", min(1.0, sum(min(part, 1.0) for part in self._loaded) / size))
        except BaseException:
            self.shutdown()
            raise
        finally:
            for descriptor in (meeting, *memories):
                os.close(descriptor)

    # ---- steps -------------------------------------------------------------------------------------------------------

    def launch(self, batch: Batch) -> PendingStep:
        heard, self._heard = self._heard, []
        self._tell_all(Launch(batch, heard))
        return PendingStep(self._result)

    def _result(self) -> StepResult:
        while not self._results:
            self._receive()
        result = self._results.popleft()
        self._heard += [(entry.seq_id, entry.token_id) for entry in result.sampled]
        return result

    def learn(self, vocabulary: Vocabulary) -> None:
        self._tell_all(vocabulary)

    def compile(self, form: StructuredOutputs) -> Future[Any]:
        future: Future[Any] = Future()
        form_id = next(self._form_ids)
        self._forms[form_id] = future
        self._tell_all(Compile(form_id, form))
        return future

    # ---- the workers' life -------------------------------------------------------------------------------------------

    def check(self) -> None:
        while self._receive(0):
            pass

    def shutdown(self) -> None:
        if self._context.closed:
            return
        with contextlib.suppress(zmq.ZMQError):
            self._tell_all(Stop(), zmq.NOBLOCK)
        until = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            try:
                worker.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            if worker.stdin is not None:
                with contextlib.suppress(OSError):
                    worker.stdin.close()
        self._context.destroy(0)

    def _spawn(self, start: WorkerStart) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "octavo.executor.worker"]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(start.memory, start.meeting), start_new_session=True)
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead already; who waits for it will notice
            worker.stdin.write(msgspec.json.encode(start) + b"\n")
            worker.stdin.flush()
        return worker

    def _socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDTIMEO, int(SILENCE_SECONDS * 1000))
        socket.bind(address)
        return socket

    def _tell_all(self, message: WorkerInput, flags: int = 0) -> None:
        said = self._encoder.encode(message)
        for inbox in self._inboxes:
            inbox.send(said, flags)  # never full: this waits for a worker that is not connected

    def _receive(self, timeout: int = _POLL_MS) -> bool:
        """Take in one message, if one comes in time.

        Raises:
            OctavoError: a worker failed, is dead or hangs.
        """
        if not self._outbox.poll(timeout):
            self._look_after()
            return False
        message = self._decoder.decode(self._outbox.recv())
        if isinstance(message, WorkerFailed):
            time.sleep(_LAST_BREATH_SECONDS)
            self._look_after(killed=True)  # who loses a neighbour says so: the neighbour is what is to be named
            raise OctavoError(f"{self._who(message.rank)}: {message.message}")
        if isinstance(message, Done):
            self._results.append(message.result)
        elif isinstance(message, Compiled):
            future = self._forms.pop(message.form_id)
            if not message.error:
                future.set_result(None)
            else:
                kind = InvalidRequestError if message.invalid else OctavoError
                future.set_exception(kind(message.error))
        else:
            self._seen[message.rank] = time.monotonic()
            if isinstance(message, Progress):
                self._loaded[message.rank] = message.fraction
        return True

    def _look_after(self, killed: bool = False) -> None:
        """Raises ``EngineDeadError`` where a worker is dead or hangs; of those that are dead, only those that were ``killed``, if so."""
        for rank, worker in enumerate(self._workers):
            code = worker.poll()
            if code is not None and (code < 0 or not killed):
                raise EngineDeadError(f"{self._who(rank)} ended with {describe_end(code)}.")
            if time.monotonic() - self._seen[rank] > SILENCE_SECONDS:
                raise EngineDeadError(f"{self._who(rank)} has shown no sign of life for {SILENCE_SECONDS:.0f} s.")

    def _who(self, rank: int) -> str:
        return f"rank {rank} of {len(self._workers)} (process {self._workers[rank].pid})"
