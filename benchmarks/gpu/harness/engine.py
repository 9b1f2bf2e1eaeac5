"""An engine in this process, fed with token ids: no server, no sockets, no tokenizer; the engine's loop is all of Octavo's host work."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from octavo.batch import TokenLogprobs
from octavo.config import engine_options
from octavo.engine.core import EngineCore
from octavo.engine.messages import AbortSequences, AddRequest, Call, StepOutput
from octavo.models.hub import resolve
from octavo.sampling_params import SamplingParams


def _no_progress(phase: str, fraction: float) -> None:
    """Loading that nobody watches."""


class Engine:
    """An ``EngineCore`` and the answers of the requests it was given.

    Args:
        model: a directory.
        progress: told (phase, fraction) while weights load.
        options: the engine's options by name.

    Attributes:
        tokens: each request's, by its number.
        logprobs: of those, where asked for.
        first: when each request's first token came (``time.perf_counter``).
        cached: prompt tokens that each request found in the prefix cache.
        running: requests that have not ended.
    """

    def __init__(self, model: Path, progress: Callable[[str, float], None] = _no_progress, **options: Any) -> None:
        self.core = EngineCore(engine_options(model=str(model), **options), resolve(str(model)), progress)
        self._numbers = itertools.count()
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self.first: dict[int, float] = {}
        self.cached: dict[int, int] = {}
        self.running: set[int] = set()

    def add(self, prompt: list[int], new_tokens: int, key: int = 0, **params: Any) -> int:
        """Hand in a request for exactly ``new_tokens`` tokens, greedy unless ``params`` say otherwise, drawn by ``key``; its number."""
        number = next(self._numbers)
        chosen = SamplingParams(**({"temperature": 0.0, "max_tokens": new_tokens, "ignore_eos": True, "detokenize": False} | params))
        self.core.handle(AddRequest(str(number), prompt, chosen, key, arrival_time=time.monotonic()))
        self.tokens[number], self.logprobs[number] = [], []
        self.running.add(number)
        return number

    def step(self) -> int:
        """One call of the engine; how many tokens came out.

        Raises:
            RuntimeError: a request ended otherwise than by its length, or nothing can run.
        """
        output = self.core.step()
        if output is None:
            raise RuntimeError("the engine has nothing to run, yet requests wait")
        return self._take(output)

    def _take(self, output: StepOutput) -> int:
        count = 0
        for update in output.updates:
            number = int(update.request_id)
            if update.token_ids and number not in self.first:
                self.first[number] = time.perf_counter()
                self.cached[number] = update.num_cached_tokens
            count += len(update.token_ids)
            self.tokens[number] += update.token_ids
            self.logprobs[number] += update.logprobs or []
            if update.finish_reason is not None:
                self.running.discard(number)
                if update.finish_reason not in ("length", "abort"):
                    raise RuntimeError(f"a request ended with {update.finish_reason}: {update.stop_reason}")
        return count

    def drain(self) -> None:
        """Step until no request runs."""
        while self.running:
            self.step()

    def abort(self) -> None:
        """End all requests and take in what is left of them."""
        for number in self.running:
            self.core.handle(AbortSequences(str(number)))
        self.running.clear()
        while self.core.has_work():
            if (output := self.core.step()) is not None:
                self._take(output)

    def generate(self, prompts: Sequence[list[int]], new_tokens: int, **params: Any) -> list[int]:
        """Run requests to their end, side by side; their numbers."""
        numbers = [self.add(prompt, new_tokens, key, **params) for key, prompt in enumerate(prompts)]
        self.drain()
        return numbers

    def forget_prefixes(self) -> None:
        """Empty the prefix cache."""
        self.core.handle(Call(0, "reset_prefix_cache"))

    def shutdown(self) -> None:
        """Free the model and the pages."""
        self.core.shutdown()
