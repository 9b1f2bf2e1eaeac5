"""Full blocks by content: what one sequence computed, a later one with the same beginning need not compute again.

The keys and values in a block depend on every token before them, so a block is identified by a chain: its key is a hash of
the key of the block before it and its own token ids; the chain starts from the request's cache salt. Keys are 256-bit BLAKE2b
digests, so that nobody can make two contents collide and read another tenant's pages.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from octavo.kvcache.block_pool import BlockPool

DIGEST_BYTES = 32


class PrefixCache:
    """Keys, search and counters over a pool that remembers which block holds which key.

    Args:
        pool: the blocks; it evicts the least recently freed content when it needs room.
        block_size: token slots in a block.

    Attributes:
        queries, hits: tokens looked up and tokens found, counted once for each sequence that came to run (again).
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._pack = struct.Struct(f"<{block_size}I").pack
        self.queries = 0
        self.hits = 0

    def extend_keys(self, keys: list[bytes], token_ids: list[int], num_blocks: int, cache_salt: str) -> None:
        """Append keys until ``keys`` names the first ``num_blocks`` blocks of a sequence.

        Args:
            keys: the keys of the sequence's first ``len(keys)`` blocks.
            token_ids: the sequence's tokens, at least ``num_blocks * block_size``, each in [0, 2**32).
            cache_salt: only sequences of equal salt can have equal keys.
        """
        size = self._block_size
        for start in range(len(keys) * size, num_blocks * size, size):
            parent = keys[-1] if keys else _root(cache_salt)
            content = self._pack(*token_ids[start : start + size])
            keys.append(hashlib.blake2b(parent + content, digest_size=DIGEST_BYTES, person=b"octavo block").digest())

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest findable run of ``keys``, from the first on."""
        blocks: list[int] = []
        for key in keys:
            block = self._pool.find(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def register(self, block: int, key: bytes) -> None:
        """Make a block findable; every slot of it must have been computed."""
        self._pool.publish(block, key)

    def count(self, num_queried: int, num_found: int) -> None:
        """Add to the counters, in tokens."""
        self.queries += num_queried
        self.hits += num_found

    def reset(self) -> None:
        """Forget every content; the counters go on."""
        self._pool.forget_contents()


def _root(cache_salt: str) -> bytes:
    """What stands for the parent of a sequence's first block."""
    return hashlib.blake2b(cache_salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, person=b"octavo root").digest()
