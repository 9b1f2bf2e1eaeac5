"""A model that is a table: the next token's log probabilities from the last two tokens, in Python, and an engine that runs it."""

from __future__ import annotations

import math
import random
import time

from byte_model import EOS, VOCAB_SIZE
from fake_engine import FakeCore

from octavo.batch import TokenLogprobs
from octavo.engine.messages import AddRequest, RequestTimes, SequenceUpdate

LETTERS = tuple(b"abcd")


def next_logprobs(token_ids: list[int]) -> dict[int, float]:
    """Log probabilities of the four letters and the end token after some tokens; nothing else has any probability worth a name."""
    rng = random.Random(repr(token_ids[-2:]))
    weights = {token: rng.random() ** 3 + 0.01 for token in LETTERS} | {EOS: 0.4 * rng.random()}
    total = sum(weights.values())
    return {token: math.log(weight / total) for token, weight in weights.items()}


class TableCore(FakeCore):
    """Answers requests for one token greedily by the table; longer ones are ``FakeCore``'s alphabet."""

    def _advance(self, add: AddRequest, counts: dict[int, int], index: int) -> SequenceUpdate:
        if add.params.max_tokens != 1:
            return super()._advance(add, counts, index)
        found = dict.fromkeys(range(VOCAB_SIZE), -30.0) | next_logprobs(add.prompt_token_ids)
        ranked = sorted(found, key=lambda token: (-found[token], token))
        kept = [ranked[0], *ranked[: add.params.logprobs or 0]]
        prompt = None
        if (count := add.params.prompt_logprobs) is not None:
            prompt = [TokenLogprobs([token, *range(count)], [-2.0] * (count + 1), 1) for token in add.prompt_token_ids[1:]]
        del self._live[add.request_id]
        return SequenceUpdate(
            add.request_id,
            index,
            ranked[:1],
            num_cached_tokens=1,
            logprobs=[TokenLogprobs(kept, [found[token] for token in kept], 1)],
            prompt_logprobs=prompt,
            finish_reason="length",
            times=RequestTimes(add.arrival_time, add.arrival_time + 0.25, add.arrival_time + 0.5, time.monotonic() + 1, 1),
        )
