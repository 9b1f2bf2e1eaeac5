"""Engines without a model, that follow ``engine/messages.py``: one that a test speaks for, and one that runs by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from octavo.batch import TokenLogprobs
from octavo.config import EngineOptions
from octavo.engine.messages import (
    ALONE,
    AbortSequences,
    AddRequest,
    Call,
    CallResult,
    EngineInput,
    EngineOutput,
    EngineStats,
    Loading,
    Ready,
    RequestTimes,
    Seat,
    SequenceUpdate,
    StepOutput,
)
from octavo.errors import EngineDeadError


def ready(max_model_len: int = 128, max_num_seqs: int = 4) -> Ready:
    return Ready(max_model_len, max_num_seqs, num_blocks=64, block_size=16, plan={"total": 1})


class FakeCore:
    """An ``EngineCore`` whose every sequence continues with the alphabet: sequence ``i`` starts at the ``i``-th letter.

    Sequences end at ``max_tokens``. Logprobs are ``-1 - index`` for each token.

    Attributes:
        handled: all messages, in order.
        before_step: called at the start of each step; may raise.
    """

    def __init__(self, options: EngineOptions | None = None, files: object = None, progress: object = None) -> None:
        limit = (options.model.max_model_len if options is not None else None) or 128
        self.ready = ready(limit)
        self.stats = EngineStats()
        self.handled: list[EngineInput] = []
        self.before_step: Callable[[], None] = lambda: None
        self.is_shut_down = False
        self._live: dict[str, tuple[AddRequest, dict[int, int]]] = {}
        self._unstarted: list[str] = []

    def handle(self, message: EngineInput) -> CallResult | None:
        self.handled.append(message)
        if isinstance(message, AddRequest):
            self._live[message.request_id] = (message, dict.fromkeys(range(message.params.num_sequences), 0))
            self._unstarted.append(message.request_id)
        elif isinstance(message, AbortSequences):
            self._abort(message)
        elif isinstance(message, Call):
            return CallResult(message.call_id, not self._live)
        return None

    def _abort(self, message: AbortSequences) -> None:
        _, counts = self._live.get(message.request_id, (None, {}))
        for index in message.indices or list(counts):
            counts.pop(index, None)
        if not counts:
            self._live.pop(message.request_id, None)

    def has_work(self) -> bool:
        return bool(self._live)

    def step(self) -> StepOutput | None:
        self.before_step()
        if not self._live:
            return None
        updates = [self._advance(add, counts, index) for add, counts in list(self._live.values()) for index in list(counts)]
        started, self._unstarted = self._unstarted, []
        self.stats = EngineStats(num_running=len(self._live), steps=self.stats.steps + 1)
        return StepOutput(updates, started, self.stats)

    def _advance(self, add: AddRequest, counts: dict[int, int], index: int) -> SequenceUpdate:
        token = ord("a") + (index + counts[index]) % 26
        counts[index] += 1
        finished = counts[index] == add.params.max_tokens
        logprobs = [TokenLogprobs([token], [-1.0 - index], 1)] if add.params.logprobs is not None else None
        if finished:
            del counts[index]
        times = None
        if not counts:
            del self._live[add.request_id]
            times = RequestTimes(add.arrival_time, add.arrival_time, add.arrival_time, time.monotonic())
        return SequenceUpdate(add.request_id, index, [token], logprobs=logprobs, finish_reason="length" if finished else None, times=times)

    def shutdown(self) -> None:
        self.is_shut_down = True


class FakeProcess:
    """An ``EngineProcess`` without a process. The test reads ``sent`` and speaks with ``say`` and ``die``.

    Attributes:
        sent: all messages to the engine, in order.
        core: where given, answers by itself, a step at each message and after each step.
        options, seat: what it was spawned with.
    """

    def __init__(self, core: FakeCore | None = None) -> None:
        self.sent: list[EngineInput] = []
        self.core = core
        self.stopped = False
        self.pid = 1
        self.options = EngineOptions()
        self.seat = ALONE
        self._outbox: asyncio.Queue[EngineOutput | Exception] = asyncio.Queue()

    def say(self, message: EngineOutput) -> None:
        self._outbox.put_nowait(message)

    def step(self, *updates: SequenceUpdate, started: list[str] | None = None, num_running: int = 0) -> None:
        self.say(StepOutput(list(updates), started or [], EngineStats(num_running=num_running)))

    def die(self, reason: str = "The engine process 1 ended with signal SIGKILL.") -> None:
        self._outbox.put_nowait(EngineDeadError(reason))

    @property
    def adds(self) -> list[AddRequest]:
        return [message for message in self.sent if isinstance(message, AddRequest)]

    @property
    def aborts(self) -> list[AbortSequences]:
        return [message for message in self.sent if isinstance(message, AbortSequences)]

    # ---- what the client calls ---------------------------------------------------------------------------------------

    def send(self, message: EngineInput) -> None:
        assert not self.stopped
        self.sent.append(message)
        if self.core is not None:
            answer = self.core.handle(message)
            if answer is not None:
                self.say(answer)

    async def receive(self) -> EngineOutput:
        while self.core is not None and self._outbox.empty():
            await asyncio.sleep(0)
            output = self.core.step()
            if output is not None:
                return output
        message = await self._outbox.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def stop(self, timeout: float = 5.0) -> None:
        self.stopped = True


class FakeSpawner:
    """Stands in for the class ``EngineProcess``: hands out ``FakeProcess``es and keeps them.

    Attributes:
        processes: all spawned so far.
        greet: called with each new process; says ``Loading`` and ``Ready`` unless the test wants otherwise.
    """

    def __init__(self, core: Callable[[], FakeCore] | None = None) -> None:
        self.processes: list[FakeProcess] = []
        self.greet: Callable[[FakeProcess], Any] = be_ready
        self._core = core

    async def spawn(self, options: EngineOptions, files: object, seat: Seat) -> FakeProcess:
        process = FakeProcess(self._core() if self._core is not None else None)
        process.options, process.seat = options, seat
        self.processes.append(process)
        self.greet(process)
        return process


def be_ready(process: FakeProcess) -> None:
    process.say(Loading("weights", 0.5))
    process.say(ready())
