"""Several workers, a process each, that share each layer (tensor parallel), the layers (pipeline parallel), or both.

They are on this host, or on several: the others' are started by an agent there (``hosts.py``), and all speak with this one alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
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
from octavo.executor.child_process import SILENCE_SECONDS, Watch, describe_end
from octavo.executor.hosts import Hosts
from octavo.executor.local_ranks import LocalRanks
from octavo.executor.messages import Compile, Compiled, Done, Job, Launch, Progress, Stop, WorkerFailed, WorkerInput, WorkerOutput
from octavo.executor.worker import READY
from octavo.log import get_logger
from octavo.models.config import ModelConfig
from octavo.models.hub import ModelFiles
from octavo.runner.device import Device, usable_cores
from octavo.runner.memory_plan import MemoryPlan
from octavo.runner.runner import Progress as TellProgress
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

logger = get_logger(__name__)

_NOWHERE = -1
_POLL_MS = 200
_STOP_LINGER_MS = 200
_LAST_BREATH_SECONDS = 0.1
_FAR_BREATH_SECONDS = 1.0
"""From the end of a process's connections to the news of its own end, on this host and from another."""


class MultiprocExecutor(Executor):
    """Runs batches on worker processes.

    Args:
        files, config, options, device, progress: as the local executor's.
        plan: each rank's memory.
        hosts: the hosts with agents that have some of the ranks, or all, gathered; None where all are here.
        engine: which of how many engines in the server this is.

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
        hosts: Hosts | None = None,
        engine: tuple[int, int] = (0, 1),
    ) -> None:
        size = len(plan)
        self.stages = options.device.pipeline_parallel_size
        ahead = int(self.stages == 1 and device.kind == "cuda" and options.scheduler.async_scheduling)
        self.depth = self.stages - 1 or ahead
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[WorkerOutput] = msgspec.msgpack.Decoder(WorkerOutput)
        self._context = zmq.Context()
        self._hosts = hosts
        name = uuid.uuid4().hex
        # Abstract where all are here: no file is left, whoever dies how.
        address = f"ipc://@octavo-{name}" if hosts is None else hosts.address.rpartition(":")[0]
        places = [f"{address}-{what}" for what in ("out", *range(size))] if hosts is None else [f"{address}:*"] * (size + 1)
        self._outbox, outbox = self._socket(zmq.PULL, places[0])
        self._inboxes, inboxes = zip(*(self._socket(zmq.PUSH, place) for place in places[1:]), strict=True)
        self._heard: list[tuple[int, int]] = []
        self._results: deque[StepResult] = deque()
        self._forms: dict[int, Future[Any]] = {}
        self._form_ids = itertools.count()
        self._loaded = [0.0] * size
        self._watch = Watch(range(size))
        self._meeting, meeting = None, ""
        if options.hosts.nnodes > 1:
            from octavo.distributed.process_group import open_meeting

            self._meeting, meeting = open_meeting(address.removeprefix("tcp://"))
        a_host = size // options.hosts.nnodes
        homes = [rank // a_host for rank in range(size)]
        chosen = dataclasses.replace(options, device=dataclasses.replace(options.device, device=device.kind))
        self._job = Job(name, chosen, engine, ahead, plan, homes, list(inboxes), outbox, meeting, config.hidden_size, config.vocab_size)
        self._ranks = LocalRanks(
            self._job, _NOWHERE if hosts is not None and 0 in hosts.wanted else 0, files, options.device.threads or usable_cores()
        )
        self._ended: dict[int, tuple[int, int]] = {}  # of the other hosts: process and code
        try:
            if hosts is not None:
                hosts.begin(self._job)
            while min(self._loaded) < READY:
                self._receive()
                progress("loading", min(1.0, sum(min(part, 1.0) for part in self._loaded) / size))
        except BaseException:
            self.shutdown()
            raise

    @property
    def pids(self) -> list[int]:
        """The worker processes on this host, by rank."""
        return list(self._ranks.pids.values())

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
        for inbox in self._inboxes:
            with contextlib.suppress(zmq.Again):  # that one is not connected
                inbox.send(self._encoder.encode(Stop()), zmq.NOBLOCK)
        if self._hosts is not None:
            self._hosts.close()
        self._context.destroy(_STOP_LINGER_MS)
        self._ranks.stop()

    def _socket(self, kind: int, address: str) -> tuple[zmq.Socket[bytes], str]:
        """A bound socket and its address."""
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(address)
        return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT) if address.endswith("*") else address

    def _tell_all(self, message: WorkerInput) -> None:
        said = self._encoder.encode(message)
        for inbox in self._inboxes:
            while True:
                try:
                    inbox.send(said, zmq.NOBLOCK)
                    break
                except zmq.Again:  # never full: its worker is not connected, so it has ended or is cut off, which is noticed here
                    self._receive()

    def _receive(self, timeout: int = _POLL_MS) -> bool:
        """Take in one message, if one comes in time.

        Raises:
            OctavoError: a worker failed, is dead or hangs.
        """
        if self._hosts is not None:
            self._listen_to_hosts(self._hosts, timeout)
        if not self._outbox.poll(timeout):
            self._look_after()
            return False
        message = self._decoder.decode(self._outbox.recv())
        if isinstance(message, WorkerFailed):
            self._find_the_killed()  # who loses a neighbour says so: the neighbour is what is to be named
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
            self._watch.saw(message.rank)
            if isinstance(message, Progress):
                self._loaded[message.rank] = message.fraction
        return True

    def _listen_to_hosts(self, hosts: Hosts, timeout: int) -> None:
        """Take in what the hosts say until a worker says something, and show them that this one lives."""
        poller = zmq.Poller()
        poller.register(self._outbox, zmq.POLLIN)
        poller.register(hosts.door, zmq.POLLIN)
        while (ready := dict(poller.poll(timeout))) and self._outbox not in ready:
            self._hear_host(hosts)
            timeout = 0
        hosts.look_after()

    def _hear_host(self, hosts: Hosts) -> None:
        ended = hosts.take()
        if ended is not None:
            self._ended[ended.rank] = ended.pid, ended.code

    def _find_the_killed(self) -> None:
        """Wait a little for the news that a worker was killed, which others may have noticed first.

        Raises:
            EngineDeadError: one was.
        """
        until = time.monotonic() + (_LAST_BREATH_SECONDS if self._hosts is None else _FAR_BREATH_SECONDS)
        while time.monotonic() < until:
            if self._hosts is not None and self._hosts.door.poll(20):
                self._hear_host(self._hosts)
            for rank, code in self._codes().items():
                if code < 0:
                    raise EngineDeadError(f"{self._who(rank)} ended with {describe_end(code)}.")
            time.sleep(0.02)

    def _codes(self) -> dict[int, int]:
        """Of the workers that have ended."""
        return self._ranks.ended() | {rank: code for rank, (_, code) in self._ended.items()}

    def _look_after(self) -> None:
        """Raises ``EngineDeadError`` where a worker is dead or hangs."""
        if codes := self._codes():
            self._find_the_killed()
            rank, code = next(iter(codes.items()))
            raise EngineDeadError(f"{self._who(rank)} ended with {describe_end(code)}.")
        if (silent := self._watch.silent()) is not None:
            raise EngineDeadError(f"{self._who(silent)} has shown no sign of life for {SILENCE_SECONDS:.0f} s.")

    def _who(self, rank: int) -> str:
        """A worker, for people."""
        pid = self._ranks.pids.get(rank, self._ended.get(rank, (0, 0))[0])
        where = f"process {pid}" if pid else ""
        if self._hosts is not None:
            where = f"host {self._job.homes[rank]}" + (f", {where}" if where else "")
        return f"rank {rank} of {len(self._loaded)} ({where})"
