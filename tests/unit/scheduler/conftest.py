"""A scheduler with a pool and a worker that answers what the test tells it to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from octavo.batch import Batch, SampledToken, StepResult
from octavo.config import SchedulerOptions
from octavo.kvcache.manager import KVCacheManager
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler, SequenceProgress


class Harness:
    """Blocks of 4 slots; time stands still until a test moves ``now``."""

    def __init__(self, num_blocks: int = 100, max_model_len: int = 200, prefix_caching: bool = True, **options: Any) -> None:
        self.now = 0.0
        self.kv = KVCacheManager(num_blocks, 4, prefix_caching)
        self.scheduler = Scheduler(SchedulerOptions(**options), self.kv, max_model_len, clock=lambda: self.now)
        self.in_flight: deque[Batch] = deque()

    def add(self, name: str, prompt: list[int] | int, *, priority: int = 0, salt: str = "", seed: int = 0, **params: Any) -> Request:
        """A request; a number as prompt makes that many tokens that no other request begins with. Eos is 2."""
        tokens = prompt if isinstance(prompt, list) else [1000 + ord(name[0])] * prompt
        params = {"max_tokens": 50, **params}
        request = Request(name, tokens, SamplingParams(**params), seed, (2,), priority=priority, cache_salt=salt)
        self.scheduler.add(request)
        return request

    def plan(self) -> Batch:
        batch = self.scheduler.schedule()
        assert batch is not None
        self.in_flight.append(batch)
        return batch

    def answer(self, tokens: Mapping[int, int | None] | None = None, token: int = 9) -> list[SequenceProgress]:
        """Give back the oldest planned step's result: ``tokens`` by seq_id (None: it has failed), ``token`` for the others."""
        batch = self.in_flight.popleft()
        found = {entry.seq_id: (tokens or {}).get(entry.seq_id, token) for entry in batch.scheduled if entry.samples}
        sampled = [SampledToken(seq_id, sample) for seq_id, sample in found.items() if sample is not None]
        failed = [seq_id for seq_id, sample in found.items() if sample is None]
        progress = self.scheduler.update(batch, StepResult(sampled, failed=failed))
        self.scheduler.audit()
        return progress

    def step(self, tokens: Mapping[int, int | None] | None = None, token: int = 9) -> Batch:
        batch = self.plan()
        self.answer(tokens, token)
        return batch


@pytest.fixture
def harness() -> Callable[..., Harness]:
    return Harness
