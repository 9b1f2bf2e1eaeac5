"""The server's handle on its engines: start them, choose one for each request, live through their deaths.

What becomes of one engine is in ``replica.py``, which request goes where in ``routing.py``. All of it runs on one event loop; the only
threads are those that read files and tokenise long texts. torch is never imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from octavo.config import EngineOptions
from octavo.engine.messages import Call, EngineStats, Ready, Seat
from octavo.errors import InvalidRequestError, ModelLoadError, NotReadyError, OctavoError, QueueFullError
from octavo.frontend.input_processor import LONG_TEXT_CHARS, MAX_ID_CHARS, Ask, InputProcessor, PreparedRequest, Prompt, check_text
from octavo.frontend.replica import Replica, Watcher
from octavo.frontend.request_stream import RequestStream
from octavo.frontend.routing import Router
from octavo.frontend.served_model import ServedModel, load_served_model
from octavo.log import get_logger
from octavo.models.hub import ModelFiles, resolve
from octavo.runner.device import available_ram, usable_cores
from octavo.sampling_params import SamplingParams

__all__ = ["EngineClient", "RequestStream"]

logger = get_logger(__name__)

FIRST_LOAD_PHASES = frozenset({"starting", "downloading", "loading"})
"""Phases in which requests wait in line; in all others but ``ready`` they are refused."""


def _ignore(number: int, stats: EngineStats) -> None:
    """Nobody listens to the steps."""


class EngineClient:
    """Runs the engine processes and speaks for them: one, or ``data_parallel_size`` side by side.

    Attributes:
        phase: starting, downloading, loading, ready, restarting, draining or failed. It is ready while one engine is.
        progress: of the phase, in [0, 1]; -1 where unknown.
        failure: why the phase is ``failed``, else None.
        model: what is served; None until its small files are read. Its ``max_model_len`` is final once the phase is ``ready``.
        replicas: the engines.
        on_step: called with an engine's number and its figures after each step.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.phase = "starting"
        self.progress = -1.0
        self.failure: str | None = None
        self.model: ServedModel | None = None
        self.on_step: Callable[[int, EngineStats], None] = _ignore
        self._options = options
        self.replicas = self._make_replicas()
        self._router = Router(len(self.replicas), options.cache.enable_prefix_caching)
        self._inputs: InputProcessor | None = None
        self._main: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._serving = False
        self._stopping = False
        self._phase_changed = asyncio.Event()
        self._nothing_live = asyncio.Event()
        self._nothing_live.set()
        self._num_held = 0
        self._names: set[str] = set()
        self._in_line: set[str] = set()
        self._counter = itertools.count(1)

    def _make_replicas(self) -> list[Replica]:
        """The engines, each with its share of the cores and of the memory that is free now."""
        options, count = self._options, self._options.device.data_parallel_size
        memory = None
        if count > 1:
            threads = max(1, (options.device.threads or usable_cores()) // count)
            options = dataclasses.replace(options, device=dataclasses.replace(options.device, threads=threads))
            memory = available_ram() // count
        replicas = []
        for number in range(count):
            stepped = functools.partial(self._take_stats, number)
            watcher = Watcher(self._replica_changed, stepped, self._in_line_no_more, self._forget_request)
            replicas.append(Replica(Seat(number, count, memory), options, watcher))
        return replicas

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
            logger.warning("%d requests still run after %.0f s of draining", self._num_live, timeout)

    async def shutdown(self) -> None:
        """End everything now: running requests end as aborted, the engine process stops. Idempotent."""
        self._stop_taking()
        for replica in self.replicas:
            replica.abort_all()
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        for replica in self.replicas:
            replica.fail_calls("the engine was shut down")

    def _stop_taking(self) -> None:
        if self.phase != "failed":
            self._set_phase("draining")
        self._stopping = True
        for replica in self.replicas:
            replica.stopping = True

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
        admitted: bool = False,
    ) -> RequestStream:
        """Hand a request to the engine; while the model first loads, wait in line for it.

        Args:
            prompt: text or token ids.
            params: how to sample.
            request_id: unique among live requests; drawn when omitted.
            priority, cache_salt: see ``Ask``.
            add_special_tokens: see ``InputProcessor.process``.
            admitted: this goes on with work that was let in before (``holding``): a full queue or a drain does not turn it away.

        Raises:
            InvalidRequestError: the request cannot be served as asked.
            QueueFullError: too many requests wait already.
            NotReadyError: the engine is restarting, draining or failed.
        """
        self._check_open(admitted)
        name = request_id if request_id is not None else f"req-{uuid.uuid4().hex}"
        check_text("request_id", name, MAX_ID_CHARS)
        if name in self._names:
            raise InvalidRequestError(f"request_id {name!r} is that of a request that still runs; use another.", "request_id")
        if not admitted:
            self._check_room()
        self._names.add(name)
        self._in_line.add(name)
        try:
            inputs = await self._when_loaded(admitted)
            ask = Ask(f"{name}#{next(self._counter)}", prompt, params, priority, cache_salt)
            process = functools.partial(inputs.process, [ask], add_special_tokens=add_special_tokens)
            long = isinstance(prompt, str) and len(prompt) >= LONG_TEXT_CHARS
            if params.structured_outputs is not None:
                long = True  # compiling takes up to a second
                await asyncio.to_thread(inputs.vocabulary)
            (request,) = await asyncio.to_thread(process) if long else process()
            self._check_open(admitted)  # the engine may have died meanwhile
            return self._send(name, request)
        except BaseException:
            self._forget_name(name)
            raise

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Work of several requests, one after the other: a drain waits for it even while none of them runs."""
        self._num_held += 1
        self._nothing_live.clear()
        try:
            yield
        finally:
            self._num_held -= 1
            self._note_nothing_live()

    async def reset_prefix_cache(self) -> bool:
        """Forget all shared pages.

        Returns:
            False when requests still hold some in an engine, and nothing was forgotten there.

        Raises:
            NotReadyError: the engine does not run.
            EngineDeadError: it died before it answered.
        """
        if self.phase != "ready":
            raise self._not_ready()
        up = [replica for replica in self.replicas if replica.phase == "ready"]
        results = await asyncio.gather(*(replica.call(Call(next(self._counter), "reset_prefix_cache")) for replica in up))
        for replica, result in zip(up, results, strict=True):
            if result.error:
                raise OctavoError(result.error)
            if result.value:
                self._router.forget(replica.number)
        return all(result.value for result in results)

    def _check_open(self, admitted: bool) -> None:
        if admitted and self.phase == "draining" and any(replica.phase == "ready" for replica in self.replicas):
            return
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
        up = [replica for replica in self.replicas if replica.phase in ("loading", "ready")]
        seats = sum(replica.ready.max_num_seqs if replica.ready is not None else scheduler.max_num_seqs for replica in up)
        running = sum(replica.num_running for replica in up)
        if len(self._in_line) >= scheduler.max_num_queued_reqs + max(0, seats - running):
            raise QueueFullError(f"{len(self._in_line)} requests wait already (--max-num-queued-reqs); try again later.")

    async def _when_loaded(self, admitted: bool) -> InputProcessor:
        while self.phase in FIRST_LOAD_PHASES:
            await self._phase_changed.wait()
        self._check_open(admitted)
        assert self._inputs is not None
        return self._inputs

    def _send(self, name: str, request: PreparedRequest) -> RequestStream:
        assert self.model is not None and self._inputs is not None
        loads = {replica.number: replica.load for replica in self.replicas if replica.phase == "ready"}
        number = self._router.choose(request.prompt_token_ids, request.message.cache_salt, loads)
        self._nothing_live.clear()
        return self.replicas[number].send(name, request, self.model.tokenizer, self._inputs)

    def _forget_request(self, name: str) -> None:
        self._forget_name(name)
        self._note_nothing_live()

    @property
    def _num_live(self) -> int:
        return sum(replica.num_requests for replica in self.replicas)

    def _note_nothing_live(self) -> None:
        if not self._num_live and not self._num_held:
            self._nothing_live.set()

    def _forget_name(self, name: str) -> None:
        self._names.discard(name)
        self._in_line.discard(name)

    def _in_line_no_more(self, name: str) -> None:
        self._in_line.discard(name)

    # ---- the engines -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> Ready | None:
        """The figures of the first engine that is up; they differ in none but the pool's size."""
        return next((replica.ready for replica in self.replicas if replica.ready is not None), None)

    def _take_stats(self, number: int, stats: EngineStats) -> None:
        self.on_step(number, stats)

    def _replica_changed(self) -> None:
        """An engine has another phase or has loaded more."""
        phases = {replica.phase for replica in self.replicas}
        for replica in self.replicas:
            if replica.phase == "restarting":
                self._router.forget(replica.number)
        if not self._serving:
            self.progress = min(replica.progress for replica in self.replicas)
        elif "ready" in phases:
            if self.phase != "ready":
                self._set_phase("ready")
        elif "restarting" in phases and self.phase != "restarting":
            self._set_phase("restarting")

    async def _run(self) -> None:
        """The background task: start the engines, and keep them up until told to stop or there is no point."""
        try:
            files = await self._find_model()
            await self._first_start(files)
            self._serving = True
            await _together(*(self._keep_up(replica, files) for replica in self.replicas))
        except OctavoError as error:
            self._give_up(error)
        except Exception as error:
            logger.exception("the engine client failed")
            self._give_up(ModelLoadError(f"internal error: {type(error).__name__}: {error}"))
        finally:
            await asyncio.gather(*(replica.drop_process() for replica in self.replicas))

    async def _keep_up(self, replica: Replica, files: ModelFiles) -> None:
        """Have an engine serve. Where it cannot be kept up the others go on without it.

        Raises:
            OctavoError: it was the last one.
        """
        try:
            await replica.serve(files)
        except OctavoError as error:
            replica.give_up(str(error))
            if all(other.phase == "failed" for other in self.replicas):
                raise
            logger.error("engine %d is given up, the others go on: %s", replica.number, error)

    async def _find_model(self) -> ModelFiles:
        self._set_phase("downloading")

        def tell(what: str, done: int, total: int) -> None:
            before, self.progress = self.progress, done / total if total > 0 else -1.0
            if int(before * 10) < int(self.progress * 10):  # a line each tenth
                logger.info("downloading %s: %.0f of %.0f MB", what, done / 1e6, total / 1e6)

        model = self._options.model
        return await asyncio.to_thread(resolve, model.model, model.revision, tell)

    async def _first_start(self, files: ModelFiles) -> None:
        """Load the engines and read what the frontend needs, side by side; the first failure ends all."""
        self._set_phase("loading")
        await _together(self._read_model(files), *(replica.boot(files) for replica in self.replicas))
        assert self.model is not None
        longest = min(replica.ready.max_model_len for replica in self.replicas if replica.ready is not None)
        self.model = dataclasses.replace(self.model, max_model_len=longest)
        self._inputs = InputProcessor(self.model, self._options)

    async def _read_model(self, files: ModelFiles) -> None:
        self.model = await asyncio.to_thread(load_served_model, self._options.model, files)

    def _give_up(self, error: OctavoError) -> None:
        self._error, self.failure = error, str(error)
        for replica in self.replicas:
            replica.lose_everything(str(error))
        self._set_phase("failed")
        logger.error("giving up: %s", error)


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of it side by side; the first failure ends the rest and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in work:
                group.create_task(part)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
