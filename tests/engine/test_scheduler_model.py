"""Random operations on the scheduler against a fake worker that proves every page right.

The worker keeps what a real one keeps (tokens, block tables) and "computes" by writing into each slot a hash of the whole prefix
that ends there. On every step each slot a sequence reads must hold the hash of its own prefix, so a wrong share, a missing copy, an
eviction of live pages or a stale block after preemption cannot go unseen. A sampled token is a pure function of the prefix and the
sequence's seed, so the outputs must be those of the same request served alone.

Steps may be in flight: the worker executes a plan only when its result is asked for, after later plans were made, as a device does that
works its steps off in order.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from octavo.batch import Batch, NewSequence, SampledToken, ScheduledSequence, StepResult, TokenLogprobs
from octavo.config import SchedulerOptions
from octavo.errors import InvalidRequestError
from octavo.kvcache.manager import KVCacheManager
from octavo.request import FinishReason, Request, Sequence, SequenceStatus, sequence_seed
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler, SequenceProgress

VOCABULARY = 40
EOS = (0, 1)


def extend(prefix_hash: int, token: int) -> int:
    return hash((prefix_hash, token))


def pick(prefix_hash: int, seed: int, forbidden: frozenset[int]) -> int:
    token = hash((prefix_hash, seed)) % VOCABULARY
    while token in forbidden:
        token = (token + 1) % VOCABULARY
    return token


def answer_alone(request: Request, index: int, max_model_len: int) -> tuple[list[int], FinishReason, int | None]:
    """The oracle: the request served without a pool, a batch or a scheduler."""
    params, seed, tokens = request.params, sequence_seed(request.seed, index), []
    ends = set() if params.ignore_eos else set(EOS)
    prefix_hash = hash(request.cache_salt)
    for token in request.prompt_token_ids:
        prefix_hash = extend(prefix_hash, token)
    while True:
        early = len(tokens) < params.min_tokens
        token = pick(prefix_hash, seed, frozenset(ends | set(params.stop_token_ids)) if early else frozenset())
        tokens.append(token)
        prefix_hash = extend(prefix_hash, token)
        if not early and token in ends:
            return tokens, FinishReason.STOP, None
        if not early and token in params.stop_token_ids:
            return tokens, FinishReason.STOP, token
        if len(tokens) == params.max_tokens or len(request.prompt_token_ids) + len(tokens) == max_model_len:
            return tokens, FinishReason.LENGTH, None


@dataclass
class Known:
    """What the worker keeps of one sequence. ``hashes[i]`` stands for the prefix that ends with token ``i``."""

    new: NewSequence
    token_ids: list[int]
    hashes: list[int]
    table: list[int] = field(default_factory=list)


class FakeWorker:
    """Executes batches as a runner would, and refuses whatever a runner could not."""

    def __init__(self, num_blocks: int, block_size: int, options: SchedulerOptions) -> None:
        self.block_size = block_size
        self.options = options
        self.slots: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.known: dict[int, Known] = {}
        self.salts: dict[int, str] = {}
        self.step = -1
        self.num_copies = 0

    def execute(self, batch: Batch) -> StepResult:
        assert batch.step > self.step
        self.step = batch.step
        self._check_budgets(batch)
        for seq_id in batch.dropped:
            del self.known[seq_id]
        for new in batch.new:
            self._learn(new)
        self._copy(batch.block_copies)
        for entry in batch.scheduled:
            self._apply_table(entry, whole=entry.seq_id in {new.seq_id for new in batch.new})
            self._check_reads(entry.seq_id, entry.num_computed)
        self._check_writes(batch)
        for entry in batch.scheduled:
            known = self.known[entry.seq_id]
            for position in range(entry.num_computed, entry.num_computed + entry.num_tokens):
                self.slots[known.table[position // self.block_size]][position % self.block_size] = known.hashes[position]
        for entry in batch.scheduled:
            self._check_reads(entry.seq_id, entry.num_computed + entry.num_tokens)
        return self._sample(batch)

    def _check_budgets(self, batch: Batch) -> None:
        ids = [entry.seq_id for entry in batch.scheduled]
        assert 0 < len(ids) == len(set(ids)) <= self.options.max_num_seqs
        assert all(entry.num_tokens >= 1 for entry in batch.scheduled)
        assert batch.num_tokens <= self.options.max_num_batched_tokens
        assert {new.seq_id for new in batch.new} <= set(ids)
        assert len(batch.dropped) == len(set(batch.dropped))

    def _learn(self, new: NewSequence) -> None:
        assert new.seq_id not in self.known
        hashes, current = [], hash(self.salts[new.seq_id])
        for token in new.token_ids:
            current = extend(current, token)
            hashes.append(current)
        self.known[new.seq_id] = Known(new, new.token_ids, hashes)

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        destinations = [destination for _, destination in copies]
        assert len(set(destinations)) == len(destinations), "two copies into one block"
        assert not set(destinations) & {source for source, _ in copies}, "copies depend on their order"
        for source, destination in copies:
            self.slots[destination] = list(self.slots[source])
        self.num_copies += len(copies)

    def _apply_table(self, entry: ScheduledSequence, whole: bool) -> None:
        known = self.known[entry.seq_id]
        assert entry.num_computed + entry.num_tokens <= len(known.token_ids)
        assert entry.samples == (entry.num_computed + entry.num_tokens == len(known.token_ids))
        if entry.block_ids:
            assert entry.table_start <= len(known.table) and (entry.table_start == 0 or not whole)
            known.table[entry.table_start :] = entry.block_ids
        assert len(known.table) * self.block_size >= entry.num_computed + entry.num_tokens
        assert len(known.table) == len(set(known.table))

    def _check_reads(self, seq_id: int, num_tokens: int) -> None:
        known, size = self.known[seq_id], self.block_size
        held = [slot for block in known.table[: -(-num_tokens // size)] for slot in self.slots[block]][:num_tokens]
        assert held == known.hashes[:num_tokens], f"sequence {seq_id} reads slots that are not its own prefix"

    def _check_writes(self, batch: Batch) -> None:
        """A block that is written has one reader and one writer."""
        readers: dict[int, set[int]] = {}
        for seq_id, known in self.known.items():
            for block in known.table:
                readers.setdefault(block, set()).add(seq_id)
        for entry in batch.scheduled:
            table = self.known[entry.seq_id].table
            last = (entry.num_computed + entry.num_tokens - 1) // self.block_size
            for block in table[entry.num_computed // self.block_size : last + 1]:
                assert readers[block] == {entry.seq_id}, f"block {block} is written while {readers[block]} use it"

    def _sample(self, batch: Batch) -> StepResult:
        result = StepResult([])
        for entry in batch.scheduled:
            known = self.known[entry.seq_id]
            new = known.new
            if new.params.prompt_logprobs is not None:
                prompt = known.token_ids[: new.num_prompt_tokens]
                nexts = prompt[entry.num_computed + 1 : entry.num_computed + entry.num_tokens + 1]
                result.prompt_logprobs[entry.seq_id] = [TokenLogprobs([token], [-1.0], 1) for token in nexts]
            if entry.samples:
                early = len(known.token_ids) - new.num_prompt_tokens < new.params.min_tokens
                token = pick(known.hashes[-1], new.seed, frozenset(new.suppress_until_min if early else ()))
                known.hashes.append(extend(known.hashes[-1], token))
                known.token_ids.append(token)
                result.sampled.append(SampledToken(entry.seq_id, token))
        return result


class Model:
    """Drives a scheduler with random operations and knows what must be true after each.

    Args:
        depth: how many steps may be in flight while the next is planned.
        stages: of the pipeline that steps run through.
    """

    def __init__(self, seed: int, policy: str, prefix_caching: bool, depth: int, stages: int) -> None:
        self.random = random.Random(seed)
        self.block_size = self.random.choice((2, 4, 8))
        self.max_model_len = self.random.randint(24, 64)
        num_blocks = -(-self.max_model_len // self.block_size) + self.random.choice((0, 1, 3, 10, 40))
        self.options = SchedulerOptions(
            max_num_seqs=self.random.choice((1, 2, 5, 16)),
            max_num_batched_tokens=self.random.choice((1, 3, 7, 16, 200)),
            scheduling_policy=policy,
        )
        self.kv = KVCacheManager(num_blocks, self.block_size, prefix_caching)
        self.scheduler = Scheduler(self.options, self.kv, self.max_model_len, stages)
        self.worker = FakeWorker(num_blocks, self.block_size, self.options)
        self.attended = self.random.random() < 0.5  # whether there are requests that are not simple
        self.stems = [[self.random.randrange(VOCABULARY) for _ in range(40)] for _ in range(3)]
        self.live: dict[int, Sequence] = {}
        self.requests: list[Request] = []
        self.outputs: dict[int, list[int]] = {}
        self.ended: dict[int, FinishReason] = {}
        self.prompt_logprobs: dict[str, list[int]] = {}
        self.started: list[Request] = []
        self.operations = 0
        self.depth = depth
        self.stages = stages
        self.in_flight: deque[Batch] = deque()
        self.told: set[int] = set()  # sequences the worker knows, by the plans
        self.ahead = self.too_many = 0

    # ---- operations --------------------------------------------------------------------------------------------------

    def operate(self) -> None:
        self.operations += 1
        kind = self.random.random()
        if kind < 0.2 and len(self.live) < 40:
            self.add()
        elif kind < 0.25:
            self.abort()
        elif kind < 0.26:
            self.kv.reset_prefix_cache()
        else:
            self.step()
        self.scheduler.audit()
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.live)

    def add(self) -> None:
        draw = self.random
        stem = draw.choice(self.stems)[: draw.randint(0, min(40, self.max_model_len - 4))]
        prompt = stem + [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 3))]
        max_tokens = draw.choice((1, 2, 8, 30))
        params = SamplingParams(
            n=draw.choice((1, 1, 1, 2, 4)),
            max_tokens=max_tokens,
            min_tokens=draw.choice((0, 0, min(4, max_tokens))) if self.attended else 0,
            ignore_eos=draw.random() < 0.5,
            stop_token_ids=draw.choice(([], [1, 5, 6])),
            prompt_logprobs=draw.choice((None, None, None, 0)) if self.attended else None,
        )
        request = Request(
            request_id=f"r{len(self.requests)}",
            prompt_token_ids=prompt,
            params=params,
            seed=draw.randrange(-(2**63), 2**64),
            eos_token_ids=EOS,
            priority=draw.choice((0, 0, -1, 5)),
            cache_salt=draw.choice(("", "", "tenant")),
        )
        self.scheduler.add(request)
        self.requests.append(request)
        for sequence in request.sequences:
            self.live[sequence.seq_id] = sequence
            self.outputs[sequence.seq_id] = []
            self.worker.salts[sequence.seq_id] = request.cache_salt

    def abort(self) -> None:
        if not self.requests:
            return
        request = self.random.choice(self.requests[-12:])
        indices = self.random.choice(((), (0,), (1, 3), tuple(range(10))))
        expected = [s for s in request.sequences if s.seq_id in self.live and (not indices or s.index in indices)]
        assert self.scheduler.abort(request.request_id, indices) == expected
        for sequence in expected:
            assert sequence.finish_reason is FinishReason.ABORT
            self.end(sequence)

    def step(self) -> None:
        """What the engine does: plan, and collect what the next plan must not be made without."""
        preemptions = self.scheduler.preemptions["out_of_blocks"]
        batch = self.scheduler.schedule()
        self.take_started()
        if batch is None:
            assert self.in_flight or not self.live, "nothing can run, and never will"
        else:
            self.check_order(batch)
            if self.in_flight:
                self.ahead += 1
                assert self.scheduler.preemptions["out_of_blocks"] == preemptions, "preempted while steps are in flight"
                if self.stages == 1:
                    assert all(self.live[s].request.simple for s in self.told if s in self.live), "planned ahead of a token that matters"
            self.told = (self.told - set(batch.dropped)) | {new.seq_id for new in batch.new}
            self.in_flight.append(batch)
        stay = max(0, len(self.in_flight) - 1) if batch is None else self.depth if self.scheduler.plans_ahead else 0
        while len(self.in_flight) > stay:
            self.collect()

    def collect(self) -> None:
        batch = self.in_flight.popleft()
        if self.random.random() < 0.1:
            self.abort()
        result = self.worker.execute(batch)
        if self.random.random() < 0.1:
            self.abort()
        self.too_many += sum(self.ended.get(e.seq_id) in (FinishReason.STOP, FinishReason.LENGTH) for e in batch.scheduled)
        assert all(self.ended.get(entry.seq_id) is not FinishReason.LENGTH for entry in batch.scheduled), "no need to run that"
        for progress in self.scheduler.update(batch, result):
            self.take(progress)

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def rank(self, seq_id: int) -> tuple[int, int]:
        by_priority = self.options.scheduling_policy == "priority"
        return (self.live[seq_id].request.priority if by_priority else 0, seq_id)

    def is_ending(self, seq_id: int) -> bool:
        """Whether a step in flight samples a sequence's last token, whatever token it is."""
        sequence = self.live[seq_id]
        count = sum(entry.samples for batch in self.in_flight for entry in batch.scheduled if entry.seq_id == seq_id)
        length = len(sequence.token_ids) + count
        return count > 0 and (sequence.num_output_tokens + count == sequence.request.params.max_tokens or length == self.max_model_len)

    def check_order(self, batch: Batch) -> None:
        new = {entry.seq_id for entry in batch.new}
        preempted = [seq_id for seq_id in batch.dropped if seq_id in self.live]
        stayed = [seq_id for seq_id in self.told if seq_id not in batch.dropped]
        ending = {seq_id for seq_id in stayed if self.is_ending(seq_id)}
        run = {entry.seq_id for entry in batch.scheduled}
        if self.stages == 1:
            assert run == new | set(stayed) - ending, "a running sequence was left out"
        else:
            self.check_turn(batch, new, set(stayed), len(self.told & self.live.keys()), bool(preempted))
        if preempted:
            assert not new, "admitted while preempting"
            assert max(map(self.rank, stayed)) < min(map(self.rank, preempted)), "not the latest-come was preempted"
        held = {
            s.seq_id
            for s in self.live.values()
            if s.index > 0
            and s.request.sequences[0].status is not SequenceStatus.FINISHED
            and s.request.sequences[0].num_output_tokens == 0
        }
        assert not held & new, "a sibling started before its leader had computed the prompt"
        waiting = set(self.live) - new - set(stayed) - held
        if new and waiting:
            assert max(map(self.rank, new)) < min(map(self.rank, waiting)), "admitted out of order"

    def check_turn(self, batch: Batch, new: set[int], stayed: set[int], num_running: int, preempted: bool) -> None:
        """A pipeline's step: nobody whose token is pending, all that catch up, and a stage's share of those that decode."""
        run = {entry.seq_id for entry in batch.scheduled}
        pending = {entry.seq_id for step in self.in_flight for entry in step.scheduled if entry.samples}
        assert not run & pending, "the token that it starts from is not known"
        left_out = stayed - pending - run
        decodes = [e for e in batch.scheduled if e.seq_id not in new and e.num_tokens == 1 and e.samples]
        if left_out and not preempted and len(run) < self.options.max_num_batched_tokens:
            assert len(decodes) == -(-num_running // self.stages), "a sequence was left out although there was room"
            assert all(len(self.live[s].token_ids) - self.live[s].num_computed == 1 for s in left_out), "a chunk has to wait for nobody"
        assert len(decodes) <= -(-num_running // self.stages)

    def take(self, progress: SequenceProgress) -> None:
        sequence = progress.sequence
        assert sequence.seq_id in self.live
        self.outputs[sequence.seq_id] += progress.token_ids
        request = sequence.request
        if progress.prompt_logprobs is not None:
            assert sequence.index == 0 and request.request_id not in self.prompt_logprobs
            self.prompt_logprobs[request.request_id] = [entry.token_ids[0] for entry in progress.prompt_logprobs]
        if sequence.status is SequenceStatus.FINISHED:
            tokens, reason, stop_reason = answer_alone(request, sequence.index, self.max_model_len)
            assert (self.outputs[sequence.seq_id], sequence.finish_reason, sequence.stop_reason) == (tokens, reason, stop_reason)
            if sequence.index == 0 and request.params.prompt_logprobs is not None:
                assert self.prompt_logprobs[request.request_id] == request.prompt_token_ids[1:]
            self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        assert sequence.seq_id not in self.ended and sequence.finish_reason is not None
        self.ended[sequence.seq_id] = sequence.finish_reason
        del self.live[sequence.seq_id]

    def take_started(self) -> None:
        for request in self.scheduler.take_started():
            assert request not in self.started and request.first_scheduled_time is not None
            self.started.append(request)

    def drain(self) -> None:
        """Work all off; that it ends at all is the proof that nothing waits for ever."""
        for _ in range(400 * (1 + len(self.live)) + 10):
            if not self.scheduler.has_work() and not self.in_flight:
                break
            self.step()
        assert not self.live and not self.scheduler.has_work() and self.scheduler.schedule() is None
        self.scheduler.audit()
        assert self.kv.num_free_blocks == self.kv.num_blocks
        assert self.kv.usage == 0.0 and self.kv.waste == 0.0 and not self.kv.holders()
        assert len(self.ended) == sum(len(request.sequences) for request in self.requests)
        for request in self.requests:
            if any(self.ended[s.seq_id] is not FinishReason.ABORT for s in request.sequences):
                assert request in self.started and request.first_token_time is not None


@pytest.mark.parametrize(("depth", "stages"), [(0, 1), (1, 1), (2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_random_operations_keep_every_page_right_and_every_answer_as_if_alone(
    policy: str, prefix_caching: bool, depth: int, stages: int
) -> None:
    operations = preemptions = copies = hits = ahead = too_many = 0
    reasons: set[FinishReason] = set()
    for seed in range(40):
        model = Model(seed, policy, prefix_caching, depth, stages)
        for _ in range(200):
            model.operate()
        model.drain()
        operations += model.operations
        preemptions += model.scheduler.preemptions["out_of_blocks"]
        copies += model.worker.num_copies
        hits += model.kv.prefix_hits
        ahead += model.ahead
        too_many += model.too_many
        reasons |= set(model.ended.values())
    # The load must have met what it is there to test.
    assert (
        operations >= 40 * 200
        and preemptions > 20
        and copies > 20
        and reasons == {FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT}
    )
    assert hits > 1000 if prefix_caching else hits == 0
    assert ahead > 1000 if depth else ahead == 0
    assert too_many > 100 if depth and stages == 1 else too_many == 0


def test_a_request_that_no_pool_state_could_serve_is_refused_at_the_door() -> None:
    kv = KVCacheManager(4, 4, True)
    scheduler = Scheduler(SchedulerOptions(), kv, 1000)
    fits = Request("fits", [1] * 9, SamplingParams(max_tokens=8), 0)
    with pytest.raises(InvalidRequestError, match="KV pool holds 16"):
        scheduler.add(Request("too long", [1] * 9, SamplingParams(max_tokens=9), 0))
    scheduler.add(fits)
    worker = FakeWorker(4, 4, SchedulerOptions())
    worker.salts[fits.sequences[0].seq_id] = ""
    while (batch := scheduler.schedule()) is not None:
        scheduler.update(batch, worker.execute(batch))
    assert fits.sequences[0].finish_reason is FinishReason.LENGTH
