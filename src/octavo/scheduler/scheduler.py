"""Which tokens of which sequences run in the next step, and what becomes of a step's result.

There is no prefill and no decode: a sequence knows tokens and has computed some of them, and each step lets it catch up under one
token budget and one sequence budget. Chunked prefill, prefix hits, preemption by recompute and forks are all this one rule.

A step may be planned while others are in flight: the plan builds on what they will have computed and on how many tokens they will have
sampled, not on which. A sequence that turns out to have ended meanwhile has had one step too many, whose result is ignored.

In a pipeline the steps in flight are at different stages, and only the last one samples: a sequence then waits for its token, and a step
takes its share of the sequences, so that there are some for each stage. Chunks of one prompt follow each other at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec

from octavo.batch import Batch, NewSequence, SampledToken, ScheduledSequence, StepResult, TokenLogprobs
from octavo.config import SchedulerOptions
from octavo.errors import InvalidRequestError
from octavo.kvcache.block_pool import PoolError
from octavo.kvcache.manager import NO_PREFIX, KVCacheManager, Prefix, TableChange
from octavo.request import FinishReason, Request, Sequence, SequenceStatus, sequence_seed
from octavo.scheduler.queue import SequenceQueue

OUT_OF_BLOCKS = "out_of_blocks"


@dataclass(slots=True)
class SequenceProgress:
    """What a step gave one sequence; whether and why that ended it stands in the sequence.

    Attributes:
        token_ids: new output tokens, the stop token included.
        logprobs: one entry a new token, where asked for.
        prompt_logprobs: one entry a prompt token from the second on: once, for sequence 0, when the prompt is complete.
    """

    sequence: Sequence
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs] | None


class Scheduler:
    """All requests between their arrival and their end.

    ``schedule`` plans a step, the caller has it executed, ``update`` takes in the result, in the order of the plans; ``add`` and
    ``abort`` may come at any time between calls. Further steps may be planned before a result is in while ``plans_ahead`` says so.

    Args:
        options: budgets and order.
        kv: the pages; nobody else may open or free tables in it.
        max_model_len: most tokens of a sequence, prompt and output.
        stages: of the pipeline that steps run through.
        clock: seconds, for the times of requests.

    Attributes:
        preemptions: how many there were, by reason.
    """

    def __init__(
        self,
        options: SchedulerOptions,
        kv: KVCacheManager,
        max_model_len: int,
        stages: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._stages = stages
        # Each of them has a token in a step of its turn, and has a turn in every so many steps.
        self._most_running = min(options.max_num_seqs, stages * options.max_num_batched_tokens)
        self._kv = kv
        self._max_model_len = max_model_len
        self._clock = clock
        by_priority = options.scheduling_policy == "priority"
        self._waiting = SequenceQueue(by_priority)
        self._running = SequenceQueue(by_priority)
        self._requests: dict[str, Request] = {}
        self._sequences: dict[int, Sequence] = {}
        self._siblings: dict[str, list[Sequence]] = {}  # sequences 1 .. n-1 whose leader, sequence 0, computes the prompt yet
        self._prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        self._dropped: list[int] = []
        self._started: list[Request] = []
        self._attended: set[int] = set()  # running sequences that are not simple
        self._next_seq_id = 0
        self._step = 0
        self._num_in_flight = 0
        self.preemptions: Counter[str] = Counter()

    # ---- requests ----------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take a request in and make its sequences; the first joins the waiting queue.

        Raises:
            InvalidRequestError: it can never run: too long for the context or for the whole pool, empty, or its id is in use.
        """
        self._check(request)
        first = self._next_seq_id
        self._next_seq_id += request.params.num_sequences
        request.sequences = [
            Sequence(first + index, request, index, list(request.prompt_token_ids)) for index in range(request.params.num_sequences)
        ]
        self._requests[request.request_id] = request
        self._sequences.update((sequence.seq_id, sequence) for sequence in request.sequences)
        self._waiting.add(request.sequences[0])
        if len(request.sequences) > 1:
            self._siblings[request.request_id] = request.sequences[1:]

    def abort(self, request_id: str, indices: Collection[int] = ()) -> list[Sequence]:
        """End sequences of a request now and free their pages; a step in flight may still compute them, its result is ignored.

        That step may even write to pages that are free by now: steps run in order, so whoever gets the pages next writes them later.

        Args:
            indices: which sequences; empty is all.

        Returns:
            those that this call ended: none for a request or sequence that is unknown or has ended before.
        """
        request = self._requests.get(request_id)
        if request is None:
            return []
        live = [sequence for sequence in request.sequences if sequence.status is not SequenceStatus.FINISHED]
        ended = [sequence for sequence in live if not indices or sequence.index in indices]
        for sequence in ended:
            self._end(sequence, FinishReason.ABORT, None)
        return ended

    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._sequences)

    def take_started(self) -> list[Request]:
        """Requests that were scheduled for the first time since the last call."""
        started, self._started = self._started, []
        return started

    @property
    def plans_ahead(self) -> bool:
        """Whether the next step may be planned while steps are in flight.

        Not while a sequence runs whose last token must be known; in a pipeline it is, or the sequence is not planned.
        """
        return self._stages > 1 or not self._attended

    @property
    def num_running(self) -> int:
        """Sequences that hold pages."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a place, or for their leader to compute the prompt."""
        return len(self._sequences) - len(self._running)

    def audit(self) -> None:
        """Check the pool's books, and that exactly the running sequences hold pages.

        Raises:
            PoolError: saying what is wrong.
        """
        self._kv.audit()
        if self._kv.holders() != {sequence.seq_id for sequence in self._running}:
            raise PoolError("the sequences with a block table are not the running ones")

    # ---- the step ----------------------------------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """Plan a step: first the running sequences in order, then, if all of them have their pages, waiting ones.

        Returns:
            the plan; None when no sequence can run (the workers then learn of dropped sequences with the next plan), or none before
            the results of the steps in flight are in.
        """
        batch = Batch(self._step, [], [], [], [])
        budget = self._options.max_num_batched_tokens
        running = self._whose_turn()
        if self._num_in_flight > 0 and not self._has_room(running):
            return None  # who is preempted must know its tokens: it comes back whole
        num_running, num_preempted = len(self._running), 0
        for position, sequence in enumerate(running):
            if sequence.status is not SequenceStatus.RUNNING:
                break  # preempted for one before it, and so are all that follow
            num_behind = len(running) - position - 1
            if num_preempted > 0:
                num_behind = sum(other.status is SequenceStatus.RUNNING for other in running[position + 1 :])
            num_tokens = _share(sequence, budget, num_behind)
            change = self._allocate(sequence, num_tokens)
            num_preempted = num_running - len(self._running)
            if change is None:
                break
            budget -= num_tokens
            self._put(batch, sequence, num_tokens, change.start, [*change.block_ids], change.copies)
        if num_preempted == 0:
            self._admit(batch, budget)
        if not batch.scheduled:
            return None
        batch.dropped, self._dropped = self._dropped, []
        self._send_off(batch)
        return batch

    def _whose_turn(self) -> list[Sequence]:
        """The running sequences that the next step takes, in order: all that need not wait for a token, or a stage's share of them.

        Those that catch up on a prompt come on top, for they do not wait.
        """
        if self._stages == 1:
            return [sequence for sequence in self._running if not self._ends_in_flight(sequence)]
        left, turn = -(-len(self._running) // self._stages), []
        for sequence in self._running:
            decodes = sequence.num_to_compute == 1
            if sequence.num_pending > 0 or (decodes and left == 0):
                continue
            left -= decodes
            turn.append(sequence)
        return turn[: self._options.max_num_batched_tokens]

    def _has_room(self, running: list[Sequence]) -> bool:
        """Whether running sequences get their pages without a preemption; may say no where two would copy the same block."""
        budget, needed = self._options.max_num_batched_tokens, 0
        for position, sequence in enumerate(running):
            num_tokens = _share(sequence, budget, len(running) - position - 1)
            budget -= num_tokens
            needed += self._kv.blocks_to_take(sequence, num_tokens)
        return needed <= self._kv.num_free_blocks

    def _send_off(self, batch: Batch) -> None:
        """Count a complete plan as in flight. Not before it is complete: nobody may fork what the same step is to compute."""
        self._step += 1
        self._num_in_flight += 1
        for entry in batch.scheduled:
            sequence = self._sequences[entry.seq_id]
            sequence.num_computed += entry.num_tokens
            sequence.num_in_flight += entry.num_tokens
            sequence.num_pending += entry.samples

    def _allocate(self, sequence: Sequence, num_tokens: int) -> TableChange | None:
        """Get pages for a running sequence, if need be from the latest-come ones; None when it was the latest-come itself.

        The first in order always gets its pages, for ``add`` saw to it that the pool can hold any sequence alone.
        """
        while (change := self._kv.allocate(sequence, num_tokens)) is None:
            victim = self._running.last
            self._preempt(victim)
            if victim is sequence:
                return None
        return change

    def _admit(self, batch: Batch, budget: int) -> None:
        """Start waiting sequences in order while budgets last and the next one fits; nobody is preempted for it.

        It fits when the pages of all its known tokens leave one more block for each running sequence, so that it is not preempted
        again at once. Running sequences have the pages of all they know by now: one that did not would have spent the budget.
        """
        while budget > 0 and len(self._waiting) > 0 and len(self._running) < self._most_running:
            sequence = self._waiting.first
            prefix = self._find_prefix(sequence)
            if not self._kv.open(sequence, prefix, reserve=len(self._running)):
                return
            self._start(sequence, prefix)
            num_tokens = min(sequence.num_to_compute, budget)
            change = self._kv.allocate(sequence, num_tokens)
            if change is None:
                raise PoolError(f"sequence {sequence.seq_id} was admitted without room for it")
            budget -= num_tokens
            batch.new.append(self._introduce(sequence))
            self._put(batch, sequence, num_tokens, 0, self._kv.block_table(sequence), change.copies)

    def _put(
        self,
        batch: Batch,
        sequence: Sequence,
        num_tokens: int,
        table_start: int,
        block_ids: list[int],
        copies: tuple[tuple[int, int], ...],
    ) -> None:
        computed = sequence.num_computed
        samples = num_tokens == sequence.num_to_compute
        batch.scheduled.append(ScheduledSequence(sequence.seq_id, computed, num_tokens, table_start, block_ids, samples))
        batch.block_copies.extend(copies)

    def _find_prefix(self, sequence: Sequence) -> Prefix:
        """What a waiting sequence need not compute: cached blocks, or the prompt that a running sibling holds."""
        if self._wants_prompt_logprobs(sequence):
            return NO_PREFIX  # each prompt token has to be computed to yield its log probabilities
        prefix = self._kv.lookup(sequence)
        num_prompt_tokens = sequence.num_prompt_tokens
        for sibling in sequence.request.sequences:
            # All but the last prompt token: that one is computed again, for logits of the sequence's own.
            holds_prompt = sibling.status is SequenceStatus.RUNNING and sibling.num_computed >= num_prompt_tokens
            if holds_prompt and prefix.num_tokens < num_prompt_tokens - 1:
                return self._kv.fork(sibling, num_prompt_tokens - 1)
        return prefix

    def _introduce(self, sequence: Sequence) -> NewSequence:
        request, params = sequence.request, sequence.request.params
        if params.prompt_logprobs is not None and not self._wants_prompt_logprobs(sequence):
            params = msgspec.structs.replace(params, prompt_logprobs=None)
        return NewSequence(
            seq_id=sequence.seq_id,
            token_ids=list(sequence.token_ids),
            num_prompt_tokens=sequence.num_prompt_tokens,
            params=params,
            seed=sequence_seed(request.seed, sequence.index),
            suppress_until_min=sorted(request.suppressed),
            bad_word_ids=[list(word) for word in request.bad_word_ids],
        )

    # ---- the result --------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, result: StepResult) -> list[SequenceProgress]:
        """Take in a step's result, the oldest in flight: append sampled tokens, end the sequences that are complete.

        Returns:
            in batch order, the sequences that got a token, and those that failed.
        """
        sampled = {entry.seq_id: entry for entry in result.sampled}
        progress = []
        self._num_in_flight -= 1
        for entry in batch.scheduled:
            sequence = self._sequences.get(entry.seq_id)
            if sequence is None or sequence.status is not SequenceStatus.RUNNING:
                continue  # it ended after the step was planned; a sequence is not preempted while steps are in flight
            sequence.num_in_flight -= entry.num_tokens
            sequence.num_pending -= entry.samples
            self._kv.register(sequence)
            if entry.seq_id in result.prompt_logprobs and self._wants_prompt_logprobs(sequence):
                self._prompt_logprobs.setdefault(entry.seq_id, []).extend(result.prompt_logprobs[entry.seq_id])
            if entry.seq_id in result.failed:
                self._end(sequence, FinishReason.ERROR, result.reasons.get(entry.seq_id))
                progress.append(SequenceProgress(sequence, [], None, None))
            elif entry.samples:
                progress.append(self._append(sequence, sampled[entry.seq_id], complete=entry.seq_id in result.complete))
        return progress

    def _append(self, sequence: Sequence, sampled: SampledToken, *, complete: bool) -> SequenceProgress:
        """Give a sequence the token it sampled, and end it if that completes it (``complete``: its form, in any case)."""
        request = sequence.request
        if request.first_token_time is None:
            request.first_token_time = self._clock()
        prompt_logprobs = None
        if self._wants_prompt_logprobs(sequence):
            prompt_logprobs = self._prompt_logprobs.pop(sequence.seq_id, [])
        token = sampled.token_id
        sequence.token_ids.append(token)
        if (end := self._find_end(sequence, token, complete=complete)) is not None:
            self._end(sequence, *end)
        elif sequence.index == 0:
            self._release_siblings(request)
        logprobs = [sampled.logprobs] if sampled.logprobs is not None else None
        return SequenceProgress(sequence, [token], logprobs, prompt_logprobs)

    def _find_end(self, sequence: Sequence, token: int, *, complete: bool) -> tuple[FinishReason, int | None] | None:
        """Whether the token just appended ends its sequence: the finish reason and the stop reason."""
        request, params = sequence.request, sequence.request.params
        num_output_tokens = sequence.num_output_tokens
        if num_output_tokens > params.min_tokens:
            if token in request.eos_token_ids and not params.ignore_eos:
                return FinishReason.STOP, None
            if token in params.stop_token_ids:
                return FinishReason.STOP, token
        if complete:
            return FinishReason.STOP, None
        if self._is_full(sequence, num_output_tokens):
            return FinishReason.LENGTH, None
        return None

    def _ends_in_flight(self, sequence: Sequence) -> bool:
        """Whether a pending token is a sequence's last, whatever token it is."""
        return sequence.num_pending > 0 and self._is_full(sequence, sequence.num_output_tokens + sequence.num_pending)

    def _is_full(self, sequence: Sequence, num_output_tokens: int) -> bool:
        """Whether a sequence may have no more than so many output tokens."""
        return num_output_tokens == sequence.request.params.max_tokens or (
            sequence.num_prompt_tokens + num_output_tokens == self._max_model_len
        )

    # ---- the states of a sequence ------------------------------------------------------------------------------------

    def _start(self, sequence: Sequence, prefix: Prefix) -> None:
        """Waiting to running."""
        request = sequence.request
        self._waiting.discard(sequence)
        self._running.add(sequence)
        sequence.status = SequenceStatus.RUNNING
        sequence.num_computed = prefix.num_tokens
        if not request.simple:
            self._attended.add(sequence.seq_id)
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = prefix.num_tokens
        if request.first_scheduled_time is None:
            request.first_scheduled_time = self._clock()
            self._started.append(request)

    def _preempt(self, sequence: Sequence) -> None:
        """Running back to waiting: the pages go, the tokens stay, and it will catch up on all of them. Nothing is in flight."""
        self._leave_running(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        self._prompt_logprobs.pop(sequence.seq_id, None)
        self._waiting.add(sequence)
        self.preemptions[OUT_OF_BLOCKS] += 1

    def _end(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None) -> None:
        """Any state to finished."""
        if sequence.status is SequenceStatus.RUNNING:
            self._leave_running(sequence)
        else:
            self._waiting.discard(sequence)
            self._kv.free(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason, sequence.stop_reason = reason, stop_reason
        self._prompt_logprobs.pop(sequence.seq_id, None)
        del self._sequences[sequence.seq_id]
        if sequence.index == 0:
            self._release_siblings(sequence.request)
        if sequence.request.finished:
            del self._requests[sequence.request.request_id]

    def _leave_running(self, sequence: Sequence) -> None:
        self._running.discard(sequence)
        self._attended.discard(sequence.seq_id)
        self._kv.free(sequence)
        self._dropped.append(sequence.seq_id)

    def _release_siblings(self, request: Request) -> None:
        """The leader has computed the prompt, or ended: those that waited for it join the queue."""
        for sibling in self._siblings.pop(request.request_id, ()):
            if sibling.status is SequenceStatus.WAITING:
                self._waiting.add(sibling)

    # ---- rules -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _wants_prompt_logprobs(sequence: Sequence) -> bool:
        """Whether the prompt's log probabilities are still to be delivered: by sequence 0, with its first token."""
        if sequence.request.params.prompt_logprobs is None:
            return False
        return sequence.index == 0 and sequence.num_output_tokens == 0

    def _check(self, request: Request) -> None:
        num_prompt_tokens, max_tokens = len(request.prompt_token_ids), request.params.max_tokens
        if request.request_id in self._requests:
            raise InvalidRequestError(f"A request with the id {request.request_id!r} is running already.", "request_id")
        if num_prompt_tokens == 0:
            raise InvalidRequestError("The prompt is empty; it must have at least one token.", "prompt")
        if num_prompt_tokens >= self._max_model_len:
            raise InvalidRequestError(
                f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt contains "
                f"{num_prompt_tokens} input tokens, which leaves no room for output. Shorten the prompt.",
                "prompt",
                "context_length_exceeded",
            )
        longest = self._max_model_len if max_tokens is None else min(num_prompt_tokens + max_tokens, self._max_model_len)
        # The last token ends the sequence and is never computed.
        if self._kv.blocks_for(longest - 1) > self._kv.num_blocks:
            room = self._kv.num_blocks * self._kv.block_size
            raise InvalidRequestError(
                f"The request may need pages for {longest - 1} tokens ({num_prompt_tokens} of the prompt and up to "
                f"{longest - num_prompt_tokens} of output), but the server's whole KV pool holds {room}. "
                f"Shorten the prompt, lower max_tokens, or start the server with a larger kv_cache_memory_bytes.",
                "prompt" if num_prompt_tokens > room else "max_tokens",
                "context_length_exceeded",
            )


def _share(sequence: Sequence, budget: int, num_behind: int) -> int:
    """Tokens that a running sequence gets in a step: each one behind it can count on one, so a long chunk does not make others pause."""
    return min(sequence.num_to_compute, budget - num_behind)
