"""The engine: take in messages, schedule, launch, collect, and say what came of it. One step can be seen whole in ``step``.

Where the device works on its own, the next step is planned and launched before the result of the last one is collected, so that the
device never waits for the host. The tokens are the same as without.

``engine/process.py`` runs this in a process of its own behind a socket; ``octavo.LLM`` runs it in its own process.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from octavo.batch import Batch, NewSequence, PendingStep, ScheduledSequence
from octavo.config import EngineOptions
from octavo.engine.messages import (
    ALONE,
    AbortSequences,
    AddRequest,
    Call,
    CallResult,
    EngineInput,
    EngineStats,
    Ready,
    RequestTimes,
    Seat,
    SequenceUpdate,
    StepOutput,
)
from octavo.errors import ConfigError, InvalidRequestError
from octavo.executor.base import Executor
from octavo.executor.hosts import find_hosts
from octavo.executor.local import LocalExecutor
from octavo.kvcache.manager import KVCacheManager
from octavo.log import get_logger
from octavo.models.hub import ModelFiles
from octavo.models.loader import read_model_config, stored_formats
from octavo.request import FinishReason, Request
from octavo.runner.device import resident_bytes, select_device
from octavo.runner.memory_plan import bill_of, gib, plan_ranks
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler, SequenceProgress
from octavo.vocabulary import Vocabulary

logger = get_logger(__name__)

RSS_EVERY = 32
"""Steps between two looks at the process's resident memory."""

COMPILE_POLL_SECONDS = 0.01
"""How long a step waits for a form to be compiled when nothing else can run."""


def _no_progress(phase: str, fraction: float) -> None:
    """Loading progress that nobody watches."""


class EngineCore:
    """The step loop's state.

    Args:
        options: the engine's options.
        files: the checkpoint.
        progress: told (phase, fraction) while the model loads.
        make_executor: what holds the model, if not the executor that the options ask for; tests put a fake here.
        seat: which of several engines this is.

    Raises:
        OctavoError: a checkpoint that cannot be served, a plan that does not fit, an option that cannot be honoured.
    """

    def __init__(
        self,
        options: EngineOptions,
        files: ModelFiles,
        progress: Callable[[str, float], None] = _no_progress,
        make_executor: Callable[..., Executor] | None = None,
        seat: Seat = ALONE,
    ) -> None:
        if options.hosts.node_rank > 0:
            raise ConfigError(f"node_rank={options.hosts.node_rank}: such a host has no engine; `octavo serve` has it wait for host 0.")
        ranks = options.device.tensor_parallel_size * options.device.pipeline_parallel_size // options.hosts.nnodes  # on this host
        alone = ranks == 1 and options.hosts.nnodes == 1
        device = select_device(options.device, seat.number if alone else None, seat.count * ranks)
        config = read_model_config(files)
        available = seat.memory_bytes if device.kind == "cpu" else None if alone else device.free_for(seat.number * ranks, ranks)
        formats = stored_formats(files, config, options.model.load_format)
        hosts, free = find_hosts(options, config, device.kind), dict[int, int]()
        with contextlib.ExitStack() as undo:  # where this engine cannot start, those that were to work for it are told
            if hosts is not None:
                undo.callback(hosts.close)
                options, free = hosts.options, hosts.gather()
            plans = plan_ranks(config, options, device, free.pop(0, available), formats, list(free.values()))
            self.plan = bill_of(plans)
            for name, size, note in self.plan.rows():
                logger.info("plan: %-12s %10s  %s", name, gib(size), note)
            for note in self.plan.notes:
                logger.info("plan: %s", note)
            if make_executor is not None or (len(plans) == 1 and hosts is None):
                self._executor = (make_executor or LocalExecutor)(files, config, options, self.plan, device, progress)
            else:
                from octavo.executor.multiproc import MultiprocExecutor

                self._executor = MultiprocExecutor(files, config, options, plans, device, progress, hosts, (seat.number, seat.count))
            undo.callback(self._executor.shutdown)
            self._warm_up()
            undo.pop_all()
        self.kv = KVCacheManager(self.plan.num_blocks, self.plan.block_size, options.cache.enable_prefix_caching)
        self.scheduler = Scheduler(options.scheduler, self.kv, self.plan.max_model_len, self._executor.stages)
        self.stats = EngineStats(rss_bytes=resident_bytes())
        self._requests: dict[str, Request] = {}
        self._rejections: list[SequenceUpdate] = []
        self._compiling: dict[str, tuple[Request, Future[Any]]] = {}
        self._in_flight: deque[tuple[Batch, PendingStep]] = deque()  # oldest first
        self._unreported = False  # an abort changed the figures since the last output
        self.ready = Ready(
            max_model_len=self.plan.max_model_len,
            max_num_seqs=self.plan.max_num_seqs,
            num_blocks=self.plan.num_blocks,
            block_size=self.plan.block_size,
            plan=self.plan.as_bytes(),
        )

    # ---- messages in -------------------------------------------------------------------------------------------------

    def handle(self, message: EngineInput) -> CallResult | None:
        """Take in one message; a ``Call`` is answered at once, all else shows in later steps' outputs."""
        if isinstance(message, AddRequest):
            self._add(message)
        elif isinstance(message, AbortSequences):
            self._abort(message)
        elif isinstance(message, Vocabulary):
            self._executor.learn(message)
        elif isinstance(message, Call):
            return self._answer(message)
        return None

    @property
    def watched(self) -> bool:
        """Whether there are workers that may die while nothing runs: ``check`` is to be called now and then."""
        return self._executor.watched

    def check(self) -> None:
        """Raises ``OctavoError`` where a worker is dead or hangs."""
        self._executor.check()

    def has_work(self) -> bool:
        waiting = bool(self._rejections) or bool(self._compiling) or self._unreported
        return waiting or bool(self._in_flight) or self.scheduler.has_work()

    def _add(self, message: AddRequest) -> None:
        request = Request(
            request_id=message.request_id,
            prompt_token_ids=message.prompt_token_ids,
            params=message.params,
            seed=message.seed,
            eos_token_ids=tuple(message.eos_token_ids),
            bad_word_ids=tuple(tuple(word) for word in message.bad_word_ids),
            priority=message.priority,
            cache_salt=message.cache_salt,
            arrival_time=message.arrival_time,
        )
        if request.params.structured_outputs is not None:
            self._compiling[request.request_id] = (request, self._executor.compile(request.params.structured_outputs))
        else:
            self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        try:
            self.scheduler.add(request)
        except InvalidRequestError as error:
            self._reject(request, error)
            return
        self._requests[request.request_id] = request

    def _reject(self, request: Request, error: InvalidRequestError) -> None:
        update = SequenceUpdate(request.request_id, 0, [], finish_reason=FinishReason.ERROR.value, stop_reason=str(error))
        self._rejections.append(update)

    def _enqueue_compiled(self) -> None:
        """Let the requests into the queue whose forms are compiled by now; running ones never wait for that."""
        if self._compiling and not self._in_flight and not self.scheduler.has_work():
            wait([future for _, future in self._compiling.values()], COMPILE_POLL_SECONDS, FIRST_COMPLETED)
        for request, future in [entry for entry in self._compiling.values() if entry[1].done()]:
            del self._compiling[request.request_id]
            error = future.exception()
            if error is None:
                self._enqueue(request)
            elif isinstance(error, InvalidRequestError):
                self._reject(request, error)
            else:
                raise error

    def _abort(self, message: AbortSequences) -> None:
        if self._compiling.pop(message.request_id, None) is not None:
            self._unreported = True
        request = self._requests.get(message.request_id)
        if request is not None:
            self.scheduler.abort(message.request_id, tuple(message.indices))
            self._unreported = True
            if request.finished:
                del self._requests[message.request_id]

    def _answer(self, call: Call) -> CallResult:
        if call.method == "reset_prefix_cache":
            self.kv.reset_prefix_cache()
            return CallResult(call.call_id, True)
        if call.method == "audit":
            self.scheduler.audit()
            return CallResult(call.call_id, {"free_blocks": self.kv.num_free_blocks, "num_blocks": self.kv.num_blocks})
        return CallResult(call.call_id, error=f"the engine has no call {call.method!r}")

    # ---- the step ----------------------------------------------------------------------------------------------------

    def step(self) -> StepOutput | None:
        """Launch a step, if anything can run, collect the oldest one, and report what came of it.

        A step is collected in the call after the one that launched it where the device works on its own, in a pipeline when there is
        one for each stage, else in the same call; at once where nothing can be launched before its result is known. After an abort, the
        new figures are reported even if nothing runs.

        Returns:
            None where there is nothing to say: nothing was launched or collected, and nothing is in flight.
        """
        if self._compiling and self._executor.watched:
            self._executor.check()  # what workers compile is known when they have been heard
        self._enqueue_compiled()
        updates, self._rejections = self._rejections, []
        unreported, self._unreported = self._unreported, False
        begin = time.perf_counter()
        batch = self.scheduler.schedule()
        if batch is not None:
            self._in_flight.append((batch, self._executor.launch(batch)))
        elif not self._in_flight:
            return StepOutput(updates, [], self._look()) if updates or unreported or self._compiling else None
        stay = len(self._in_flight) - 1 if batch is None else self._executor.depth if self.scheduler.plans_ahead else 0
        done: list[Batch] = []
        while len(self._in_flight) > stay:
            done.append(self._collect(updates))
        started = [request.request_id for request in self.scheduler.take_started()]
        return StepOutput(updates, started, self._look(done, time.perf_counter() - begin))

    def _collect(self, updates: list[SequenceUpdate]) -> Batch:
        """Wait for the oldest step in flight and take in its result."""
        batch, pending = self._in_flight.popleft()
        updates += map(self._update, self.scheduler.update(batch, pending.result()))
        return batch

    def _update(self, progress: SequenceProgress) -> SequenceUpdate:
        sequence, request = progress.sequence, progress.sequence.request
        if request.finished:
            self._requests.pop(request.request_id, None)
        times = None
        if request.finished or sequence.num_output_tokens == 1:
            times = RequestTimes(
                arrival=request.arrival_time,
                first_scheduled=request.first_scheduled_time or 0.0,
                first_token=request.first_token_time or 0.0,
                finished=time.monotonic() if request.finished else 0.0,
                num_preemptions=request.num_preemptions,
            )
        return SequenceUpdate(
            request_id=request.request_id,
            index=sequence.index,
            token_ids=progress.token_ids,
            num_cached_tokens=sequence.num_cached_tokens,
            logprobs=progress.logprobs,
            prompt_logprobs=progress.prompt_logprobs,
            finish_reason=sequence.finish_reason.value if sequence.finish_reason else None,
            stop_reason=sequence.stop_reason,
            times=times,
        )

    def _look(self, done: Sequence[Batch] = (), seconds: float = 0.0) -> EngineStats:
        """The figures after the steps ``done``, which a call of ``step`` collected in so many seconds."""
        scheduler, kv, before = self.scheduler, self.kv, self.stats
        self.stats = EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + len(self._compiling),
            kv_usage=kv.usage,
            kv_waste=kv.waste,
            prefix_queries=kv.prefix_queries,
            prefix_hits=kv.prefix_hits,
            preemptions=dict(scheduler.preemptions),
            step_tokens=sum(batch.num_tokens for batch in done),
            step_seconds=seconds if done else 0.0,
            steps=before.steps + len(done),
            rss_bytes=resident_bytes() if before.steps % RSS_EVERY == 0 else before.rss_bytes,
        )
        return self.stats

    def _warm_up(self) -> None:
        """Run a prompt and a decode through the model once, so that lazily built kernels are not the first request's to wait for.

        The tokens land in block 0, which nothing owns yet; whoever gets it overwrites them.
        """
        tokens = min(8, self.plan.block_size)
        new = NewSequence(-1, [0] * tokens, tokens, SamplingParams(temperature=0.0), seed=0)
        self._executor.execute(Batch(0, [], [new], [], [ScheduledSequence(-1, 0, tokens - 1, 0, [0], False)]))
        self._executor.execute(Batch(0, [], [], [], [ScheduledSequence(-1, tokens - 1, 1, 0, [], True)]))
        self._executor.execute(Batch(0, [-1], [], [], []))

    def shutdown(self) -> None:
        """Free the model and the pages; steps in flight are given up. Idempotent."""
        self._in_flight.clear()
        self._executor.shutdown()
