"""Which of several engines a request goes to: the least loaded one, unless another knows so much of its prompt that waiting there pays."""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence

CHUNK_TOKENS = 64
"""Prompts are remembered in pieces of so many tokens; what is left at the end is not."""

TOKENS_A_SEQUENCE = 256
"""So many prompt tokens that need not be computed are worth one more sequence beside one's own."""

MOST_CHUNKS = 2**14
"""Remembered for each engine, the least recently met are forgotten first: a million tokens, about as much as a pool holds."""

_DIGEST_BYTES = 16
_PACK = struct.Struct(f"<{CHUNK_TOKENS}q").pack


class Router:
    """Remembers which engine was sent which prompts, and chooses by that and by the engines' loads. The same calls, the same choices.

    What an engine holds in truth is not asked for: it forgets pages as it needs room, so a memory of the same length comes close.

    Args:
        engines: how many there are.
        remembers: whether engines keep the pages of prompts at all.
    """

    def __init__(self, engines: int, remembers: bool) -> None:
        self._known: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(engines)]
        self._remembers = remembers and engines > 1

    def choose(self, token_ids: Sequence[int], cache_salt: str, loads: Mapping[int, int]) -> int:
        """Choose an engine for a prompt, and remember that it went there.

        Args:
            token_ids: the prompt.
            cache_salt: prompts share pages only with those of their own salt.
            loads: sequences that each engine runs or has waiting, for those that take requests: one at least.

        Returns:
            the engine with the smallest load, an engine's load being lessened by what it knows of the prompt; of equals the first.
        """
        keys = self._keys(token_ids, cache_salt)
        scores = {engine: load - self._num_known(engine, keys) / TOKENS_A_SEQUENCE for engine, load in loads.items()}
        chosen = min(scores, key=lambda engine: (scores[engine], loads[engine], engine))
        known = self._known[chosen]
        for key in keys:
            known[key] = None
            known.move_to_end(key)
        while len(known) > MOST_CHUNKS:
            known.popitem(last=False)
        return chosen

    def forget(self, engine: int) -> None:
        """An engine has lost its pages."""
        self._known[engine].clear()

    def _num_known(self, engine: int, keys: Sequence[bytes]) -> int:
        """Tokens of a prompt that an engine was sent before: a run of chunks from the first on."""
        known, count = self._known[engine], 0
        for key in keys:
            if key not in known:
                break
            count += CHUNK_TOKENS
        return count

    def _keys(self, token_ids: Sequence[int], cache_salt: str) -> list[bytes]:
        """A name for each whole chunk and all before it: a chained hash, as the engines' own prefix caches have."""
        if not self._remembers:
            return []
        keys, last = [], hashlib.blake2b(cache_salt.encode(), digest_size=_DIGEST_BYTES).digest()
        for begin in range(0, len(token_ids) - CHUNK_TOKENS + 1, CHUNK_TOKENS):
            content = _PACK(*token_ids[begin : begin + CHUNK_TOKENS])
            last = hashlib.blake2b(last + content, digest_size=_DIGEST_BYTES).digest()
            keys.append(last)
        return keys
