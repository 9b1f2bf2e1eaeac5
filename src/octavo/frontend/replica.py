"""One of the server's engines: its process from start to start, the requests that it runs, and what it last said of itself."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo.config import EngineOptions
from octavo.engine.messages import (
    AbortSequences,
    Call,
    CallResult,
    EngineStats,
    Failed,
    Loading,
    Ready,
    Seat,
    SequenceUpdate,
    StepOutput,
)
from octavo.engine.process import EngineProcess
from octavo.errors import EngineDeadError, ModelLoadError, OctavoError
from octavo.frontend.input_processor import InputProcessor, PreparedRequest
from octavo.frontend.output_processor import OutputProcessor
from octavo.frontend.request_stream import DeltaChannel, RequestStream
from octavo.frontend.tokenizer import Tokenizer
from octavo.log import get_logger
from octavo.models.hub import ModelFiles

logger = get_logger(__name__)

MAX_DEATHS_IN_A_ROW = 5
"""Deaths without ``STABLE_SECONDS`` of service in between, after which an engine is given up."""

STABLE_SECONDS = 60.0
FIRST_BACKOFF_SECONDS = 0.5
"""Wait before the second restart in a row; doubled for each further one. The first comes at once."""

LOADING_STOP_SECONDS = 0.5
"""How long an engine that did not come up gets to exit by itself."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told what happens at a replica.

    Attributes:
        changed: its phase or its progress.
        stepped: it has done a step.
        started, gone: the request of that name has left the waiting queue, or is the engine's no more.
    """

    changed: Callable[[], None]
    stepped: Callable[[EngineStats], None]
    started: Callable[[str], None]
    gone: Callable[[str], None]


@dataclass(slots=True, eq=False)
class _LiveRequest:
    """A request the engine has been told of. ``wire_id`` is never used twice, so late news of an old request cannot reach a new one."""

    request_id: str
    wire_id: str
    num_sequences: int
    processor: OutputProcessor
    channel: DeltaChannel


class Replica:
    """An engine process and its requests; all on one event loop.

    Args:
        seat: which of the engines it is.
        options: the engine's own.
        watcher: is told.

    Attributes:
        number: which one it is, from 0.
        phase: loading, ready, restarting or failed.
        progress: of loading, in [0, 1]; -1 where unknown.
        ready: its figures, once it has been up.
        stats: the latest after a step.
        stopping: set when it is not to be started again.
    """

    def __init__(self, seat: Seat, options: EngineOptions, watcher: Watcher) -> None:
        self.number = seat.number
        self.phase = "loading"
        self.progress = -1.0
        self.ready: Ready | None = None
        self.stats = EngineStats()
        self.stopping = False
        self._seat = seat
        self._options = options
        self._watcher = watcher
        self._process: EngineProcess | None = None
        self._knows_vocabulary = False
        self._live: dict[str, _LiveRequest] = {}
        self._calls: dict[int, asyncio.Future[CallResult]] = {}

    # ---- requests ----------------------------------------------------------------------------------------------------

    @property
    def num_requests(self) -> int:
        """Requests that the engine has been told of and that have not ended."""
        return len(self._live)

    @property
    def load(self) -> int:
        """Sequences of those requests."""
        return sum(live.num_sequences for live in self._live.values())

    @property
    def num_running(self) -> int:
        """Sequences with a place, by its last word; after an abort of all, no step corrects that."""
        return self.stats.num_running if self._live else 0

    def send(self, name: str, request: PreparedRequest, tokenizer: Tokenizer, inputs: InputProcessor) -> RequestStream:
        """Give the engine a request; its phase is ``ready``."""
        assert self._process is not None
        wire_id, params = request.message.request_id, request.params
        live = _LiveRequest(name, wire_id, params.num_sequences, OutputProcessor(request, name, tokenizer), DeltaChannel())
        if params.structured_outputs is not None and not self._knows_vocabulary:
            self._process.send(inputs.vocabulary())
            self._knows_vocabulary = True
        self._process.send(request.message)
        self._live[wire_id] = live
        return RequestStream(name, request, live.channel, functools.partial(self._abort, wire_id), self.number)

    async def call(self, call: Call) -> CallResult:
        """Ask the engine; its phase is ``ready``.

        Raises:
            EngineDeadError: it died before it answered.
        """
        assert self._process is not None
        answer: asyncio.Future[CallResult] = asyncio.get_running_loop().create_future()
        self._calls[call.call_id] = answer
        try:
            self._process.send(call)
            return await answer
        finally:
            self._calls.pop(call.call_id, None)

    def abort_all(self) -> None:
        for wire_id in list(self._live):
            self._abort(wire_id)

    def _abort(self, wire_id: str) -> None:
        live = self._live.get(wire_id)
        if live is None:
            return
        if self._process is not None:
            self._process.send(AbortSequences(wire_id))
        self._forget(live)
        live.channel.put(live.processor.abort())

    def _forget(self, live: _LiveRequest) -> None:
        self._live.pop(live.wire_id, None)
        self._watcher.gone(live.request_id)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def boot(self, files: ModelFiles) -> None:
        """Spawn an engine process and wait until it is ready.

        Raises:
            ModelLoadError: it says why it cannot.
            EngineDeadError: it died without a word.
        """
        self._process = process = await EngineProcess.spawn(self._options, files, self._seat)
        self._knows_vocabulary = False
        try:
            while True:
                message = await process.receive()
                if isinstance(message, Loading):
                    self.progress = message.fraction
                    self._watcher.changed()
                elif isinstance(message, Failed):
                    raise ModelLoadError(message.message)
                elif isinstance(message, Ready):
                    self.ready = message
                    return
        except BaseException:
            await self.drop_process(LOADING_STOP_SECONDS)
            raise

    async def serve(self, files: ModelFiles) -> None:
        """Take in what the booted engine says, and start it again after a death, until told to stop.

        Raises:
            EngineDeadError: it died too often in a row.
        """
        deaths = 0
        while True:
            self._set_phase("ready")
            begin = time.monotonic()
            reason = await self._listen()
            deaths = 1 if time.monotonic() - begin >= STABLE_SECONDS else deaths + 1
            self.lose_everything(reason)
            if self.stopping:
                return
            deaths = await self._restart(files, deaths, reason)

    def give_up(self, reason: str) -> None:
        """It will not come back."""
        self.lose_everything(reason)
        self._set_phase("failed")

    async def drop_process(self, seconds: float = 5.0) -> None:
        """Stop the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            await process.stop(seconds)

    def lose_everything(self, reason: str) -> None:
        """Tell everyone who waits for the dead engine."""
        for live in list(self._live.values()):
            self._forget(live)
            live.channel.fail(EngineDeadError(f"The engine died while the request ran: {reason}"))
        self.fail_calls(reason)
        self.stats = EngineStats()

    def fail_calls(self, reason: str) -> None:
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(EngineDeadError(f"The engine died before it answered: {reason}"))

    def _set_phase(self, phase: str) -> None:
        self.phase, self.progress = phase, -1.0
        self._watcher.changed()

    async def _restart(self, files: ModelFiles, deaths: int, reason: str) -> int:
        """Bring up a new engine process; returns the deaths in a row so far.

        Raises:
            EngineDeadError: there were too many.
        """
        self._set_phase("restarting")
        while True:
            logger.error("%s died (%d in a row): %s", self._seat.name, deaths, reason)
            await self.drop_process(LOADING_STOP_SECONDS)
            if deaths >= MAX_DEATHS_IN_A_ROW:
                raise EngineDeadError(f"The engine died {deaths} times in a row; the last time: {reason}")
            if deaths > 1:
                await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (deaths - 2))
            try:
                await self.boot(files)
            except (EngineDeadError, ModelLoadError) as error:
                deaths, reason = deaths + 1, str(error)
            else:
                return deaths

    async def _listen(self) -> str:
        """Take in what the engine says until it dies; returns the reason."""
        assert self._process is not None
        last_words = ""
        while True:
            try:
                message = await self._process.receive()
            except EngineDeadError as error:
                return last_words or str(error)
            if isinstance(message, StepOutput):
                self._take_step(message)
            elif isinstance(message, CallResult):
                answer = self._calls.get(message.call_id)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            elif isinstance(message, Failed):
                last_words = message.message

    def _take_step(self, step: StepOutput) -> None:
        self.stats = step.stats
        self._watcher.stepped(step.stats)
        for wire_id in step.started:
            live = self._live.get(wire_id)
            if live is not None:
                self._watcher.started(live.request_id)
        for update in step.updates:
            live = self._live.get(update.request_id)
            if live is not None:
                self._take_update(live, update)

    def _take_update(self, live: _LiveRequest, update: SequenceUpdate) -> None:
        assert self._process is not None
        try:
            delta = live.processor.update(update)
        except Exception as error:  # a fault in one request's text must not take the others down
            logger.exception("cannot make the text of request %s", live.request_id)
            self._process.send(AbortSequences(live.wire_id))
            self._forget(live)
            live.channel.fail(OctavoError(f"internal error while making text: {type(error).__name__}: {error}"))
            return
        stopped = live.processor.take_stopped()
        if stopped:
            self._process.send(AbortSequences(live.wire_id, stopped))
        if live.processor.finished:
            self._forget(live)
        if delta is not None:
            live.channel.put(delta)
