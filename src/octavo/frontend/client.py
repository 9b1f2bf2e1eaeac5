"""The server's handle on the engine: start it, submit requests, read what comes back, live through its death.

All of it runs on one event loop; the only threads are those that read files and tokenise long texts. torch is never imported here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import time
import uuid
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
    SequenceUpdate,
    StepOutput,
)
from octavo.engine.process import EngineProcess
from octavo.errors import EngineDeadError, InvalidRequestError, ModelLoadError, NotReadyError, OctavoError, QueueFullError
from octavo.frontend.input_processor import LONG_TEXT_CHARS, MAX_ID_CHARS, Ask, InputProcessor, PreparedRequest, Prompt, check_text
from octavo.frontend.output_processor import OutputProcessor
from octavo.frontend.request_stream import DeltaChannel, RequestStream
from octavo.frontend.served_model import ServedModel, load_served_model
from octavo.log import get_logger
from octavo.models.hub import ModelFiles, resolve
from octavo.sampling_params import SamplingParams

__all__ = ["EngineClient", "RequestStream"]

logger = get_logger(__name__)

FIRST_LOAD_PHASES = frozenset({"starting", "downloading", "loading"})
"""Phases in which requests wait in line; in all others but ``ready`` they are refused."""

MAX_DEATHS_IN_A_ROW = 5
"""Engine deaths without ``STABLE_SECONDS`` of service in between, after which the client gives up."""

STABLE_SECONDS = 60.0
FIRST_BACKOFF_SECONDS = 0.5
"""Wait before the second restart in a row; doubled for each further one. The first comes at once."""

LOADING_STOP_SECONDS = 0.5
"""How long an engine that did not come up gets to exit by itself."""


@dataclass(slots=True, eq=False)
class _LiveRequest:
    """A request the engine has been told of. ``wire_id`` is never used twice, so late news of an old request cannot reach a new one."""

    request_id: str
    wire_id: str
    processor: OutputProcessor
    channel: DeltaChannel


class EngineClient:
    """Runs the engine process and speaks for it.

    Attributes:
        phase: starting, downloading, loading, ready, restarting, draining or failed.
        progress: of the phase, in [0, 1]; -1 where unknown.
        failure: why the phase is ``failed``, else None.
        model: what is served; None until its small files are read. Its ``max_model_len`` is final once the phase is ``ready``.
        ready: the engine's own figures, once it is up.
        stats: the latest after a step.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.phase = "starting"
        self.progress = -1.0
        self.failure: str | None = None
        self.model: ServedModel | None = None
        self.ready: Ready | None = None
        self.stats = EngineStats()
        self._options = options
        self._inputs: InputProcessor | None = None
        self._process: EngineProcess | None = None
        self._knows_vocabulary: EngineProcess | None = None
        self._main: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._stopping = False
        self._phase_changed = asyncio.Event()
        self._nothing_live = asyncio.Event()
        self._nothing_live.set()
        self._live: dict[str, _LiveRequest] = {}
        self._names: set[str] = set()
        self._in_line: set[str] = set()
        self._calls: dict[int, asyncio.Future[CallResult]] = {}
        self._counter = itertools.count(1)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to find the model and to load it, in the background; returns at once."""
        if self._main is None:
            self._main = asyncio.create_task(self._run(), name="octavo-engine-client")

    async def wait_ready(self) -> None:
        """Wait until the engine takes requests.

        Raises:
            OctavoError: start-up failed (``ConfigError``, ``ModelLoadError``, ...), or the client is shutting down (``NotReadyError``).
        """
        while self.phase not in ("ready", "failed", "draining"):
            await self._phase_changed.wait()
        if self._error is not None:
            raise self._error
        if self.phase == "draining":
            raise self._not_ready()

    async def drain(self, timeout: float) -> None:
        """Take no new requests and let the running ones finish.

        Args:
            timeout: seconds they get; those that still run then are left to ``shutdown``.
        """
        self._stop_taking()
        try:
            await asyncio.wait_for(self._nothing_live.wait(), timeout)
        except TimeoutError:
            logger.warning("%d requests still run after %.0f s of draining", len(self._live), timeout)

    async def shutdown(self) -> None:
        """End everything now: running requests end as aborted, the engine process stops. Idempotent."""
        self._stop_taking()
        for live in list(self._live.values()):
            self._abort(live.wire_id)
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self._drop_process()
        self._fail_calls("the engine was shut down")

    def _stop_taking(self) -> None:
        if self.phase != "failed":
            self._set_phase("draining")
        self._stopping = True

    def _set_phase(self, phase: str) -> None:
        if self._stopping:  # on the way out nothing but the exit is worth telling
            return
        self.phase, self.progress = phase, -1.0
        changed, self._phase_changed = self._phase_changed, asyncio.Event()
        changed.set()

    # ---- requests ----------------------------------------------------------------------------------------------------

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
    ) -> RequestStream:
        """Hand a request to the engine; while the model first loads, wait in line for it.

        Args:
            prompt: text or token ids.
            params: how to sample.
            request_id: unique among live requests; drawn when omitted.
            priority, cache_salt: see ``Ask``.
            add_special_tokens: see ``InputProcessor.process``.

        Raises:
            InvalidRequestError: the request cannot be served as asked.
            QueueFullError: too many requests wait already.
            NotReadyError: the engine is restarting, draining or failed.
        """
        self._check_open()
        name = request_id if request_id is not None else f"req-{uuid.uuid4().hex}"
        check_text("request_id", name, MAX_ID_CHARS)
        if name in self._names:
            raise InvalidRequestError(f"request_id {name!r} is that of a request that still runs; use another.", "request_id")
        self._check_room()
        self._names.add(name)
        self._in_line.add(name)
        try:
            inputs = await self._when_loaded()
            ask = Ask(f"{name}#{next(self._counter)}", prompt, params, priority, cache_salt)
            process = functools.partial(inputs.process, [ask], add_special_tokens=add_special_tokens)
            long = isinstance(prompt, str) and len(prompt) >= LONG_TEXT_CHARS
            if params.structured_outputs is not None:
                long = True  # compiling takes up to a second
                await asyncio.to_thread(inputs.vocabulary)
            (request,) = await asyncio.to_thread(process) if long else process()
            self._check_open()  # the engine may have died meanwhile
            return self._send(name, request)
        except BaseException:
            self._forget_name(name)
            raise

    async def reset_prefix_cache(self) -> bool:
        """Forget all shared pages.

        Returns:
            False when requests still hold some, and nothing was forgotten.

        Raises:
            NotReadyError: the engine does not run.
            EngineDeadError: it died before it answered.
        """
        if self.phase != "ready" or self._process is None:
            raise self._not_ready()
        call = Call(next(self._counter), "reset_prefix_cache")
        answer: asyncio.Future[CallResult] = asyncio.get_running_loop().create_future()
        self._calls[call.call_id] = answer
        try:
            self._process.send(call)
            result = await answer
        finally:
            self._calls.pop(call.call_id, None)
        if result.error:
            raise OctavoError(result.error)
        return bool(result.value)

    def _check_open(self) -> None:
        if self.phase != "ready" and self.phase not in FIRST_LOAD_PHASES:
            raise self._not_ready()

    def _not_ready(self) -> NotReadyError:
        says = {
            "restarting": "The engine died and is being restarted; try again in a few seconds.",
            "draining": "The server is shutting down and takes no new requests.",
            "failed": f"The engine failed: {self.failure}",
        }
        return NotReadyError(
            says.get(self.phase, f"The model is not loaded yet ({self.phase}); try again in a few seconds."), self.phase, 5
        )

    def _check_room(self) -> None:
        """Refuse a request when as many wait as the queue holds, besides those that will find a free seat in the next step."""
        scheduler = self._options.scheduler
        seats = self.ready.max_num_seqs if self.ready is not None else scheduler.max_num_seqs
        running = self.stats.num_running if self._live else 0  # after an abort of all, no step corrects the figure
        if len(self._in_line) >= scheduler.max_num_queued_reqs + max(0, seats - running):
            raise QueueFullError(f"{len(self._in_line)} requests wait already (--max-num-queued-reqs); try again later.")

    async def _when_loaded(self) -> InputProcessor:
        while self.phase in FIRST_LOAD_PHASES:
            await self._phase_changed.wait()
        self._check_open()
        assert self._inputs is not None
        return self._inputs

    def _send(self, name: str, request: PreparedRequest) -> RequestStream:
        assert self._process is not None and self.model is not None
        wire_id = request.message.request_id
        live = _LiveRequest(name, wire_id, OutputProcessor(request, name, self.model.tokenizer), DeltaChannel())
        if request.params.structured_outputs is not None and self._knows_vocabulary is not self._process:
            assert self._inputs is not None
            self._process.send(self._inputs.vocabulary())
            self._knows_vocabulary = self._process
        self._process.send(request.message)
        self._live[wire_id] = live
        self._nothing_live.clear()
        return RequestStream(name, request, live.channel, functools.partial(self._abort, wire_id))

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
        self._forget_name(live.request_id)
        if not self._live:
            self._nothing_live.set()

    def _forget_name(self, name: str) -> None:
        self._names.discard(name)
        self._in_line.discard(name)

    # ---- the engine process ------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """The background task: start, listen, and start again after a death, until told to stop or there is no point."""
        try:
            files = await self._find_model()
            await self._first_start(files)
            deaths = 0
            while True:
                self._set_phase("ready")
                begin = time.monotonic()
                reason = await self._listen()
                deaths = 1 if time.monotonic() - begin >= STABLE_SECONDS else deaths + 1
                self._lose_everything(reason)
                if self._stopping:
                    return
                deaths = await self._restart(files, deaths, reason)
        except OctavoError as error:
            self._give_up(error)
        except Exception as error:
            logger.exception("the engine client failed")
            self._give_up(ModelLoadError(f"internal error: {type(error).__name__}: {error}"))
        finally:
            await self._drop_process()

    async def _find_model(self) -> ModelFiles:
        self._set_phase("downloading")

        def tell(what: str, done: int, total: int) -> None:
            before, self.progress = self.progress, done / total if total > 0 else -1.0
            if int(before * 10) < int(self.progress * 10):  # a line each tenth
                logger.info("downloading %s: %.0f of %.0f MB", what, done / 1e6, total / 1e6)

        model = self._options.model
        return await asyncio.to_thread(resolve, model.model, model.revision, tell)

    async def _first_start(self, files: ModelFiles) -> None:
        """Load the engine and read what the frontend needs, side by side; the first failure ends both."""
        self._set_phase("loading")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_model(files))
                group.create_task(self._boot(files))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        assert self.model is not None and self.ready is not None
        self.model = dataclasses.replace(self.model, max_model_len=self.ready.max_model_len)
        self._inputs = InputProcessor(self.model, self._options)

    async def _read_model(self, files: ModelFiles) -> None:
        self.model = await asyncio.to_thread(load_served_model, self._options.model, files)

    async def _boot(self, files: ModelFiles) -> None:
        """Spawn an engine process and wait until it is ready.

        Raises:
            ModelLoadError: it says why it cannot.
            EngineDeadError: it died without a word.
        """
        self._process = process = await EngineProcess.spawn(self._options, files)
        try:
            while True:
                message = await process.receive()
                if isinstance(message, Loading):
                    self.progress = message.fraction
                elif isinstance(message, Failed):
                    raise ModelLoadError(message.message)
                elif isinstance(message, Ready):
                    self.ready = message
                    return
        except BaseException:
            await self._drop_process(LOADING_STOP_SECONDS)
            raise

    async def _restart(self, files: ModelFiles, deaths: int, reason: str) -> int:
        """Bring up a new engine process; returns the deaths in a row so far.

        Raises:
            EngineDeadError: there were too many.
        """
        self._set_phase("restarting")
        while True:
            logger.error("the engine died (%d in a row): %s", deaths, reason)
            await self._drop_process(LOADING_STOP_SECONDS)
            if deaths >= MAX_DEATHS_IN_A_ROW:
                raise EngineDeadError(f"The engine died {deaths} times in a row; the last time: {reason}")
            if deaths > 1:
                await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (deaths - 2))
            try:
                await self._boot(files)
            except (EngineDeadError, ModelLoadError) as error:
                deaths, reason = deaths + 1, str(error)
            else:
                return deaths

    async def _drop_process(self, seconds: float = 5.0) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.stop(seconds)

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
        for wire_id in step.started:
            live = self._live.get(wire_id)
            if live is not None:
                self._in_line.discard(live.request_id)
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

    def _lose_everything(self, reason: str) -> None:
        """Tell everyone who waits for the dead engine."""
        for live in list(self._live.values()):
            self._forget(live)
            live.channel.fail(EngineDeadError(f"The engine died while the request ran: {reason}"))
        self._fail_calls(reason)
        self.stats = EngineStats()

    def _fail_calls(self, reason: str) -> None:
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(EngineDeadError(f"The engine died before it answered: {reason}"))

    def _give_up(self, error: OctavoError) -> None:
        self._error, self.failure = error, str(error)
        self._lose_everything(str(error))
        self._set_phase("failed")
        logger.error("giving up: %s", error)
