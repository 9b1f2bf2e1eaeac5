"""Block tables: which blocks hold the keys and values of which sequence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.kvcache.block_pool import BlockPool, PoolError
from octavo.kvcache.prefix_cache import PrefixCache
from octavo.request import Sequence


class Prefix(NamedTuple):
    """Tokens at a sequence's beginning whose keys and values are already in the pool.

    Attributes:
        block_ids: the blocks that hold them; the last one may be part full after a fork.
        num_tokens: how many tokens they are.
        from_cache: whether the prefix cache was asked for them (and counts the question).
    """

    block_ids: tuple[int, ...]
    num_tokens: int
    from_cache: bool


class TableChange(NamedTuple):
    """What an allocation did to a block table.

    Attributes:
        start, block_ids: from index ``start`` on the table now reads ``block_ids``; none: it is unchanged.
        copies: (source, destination) blocks to copy before anything is written.
    """

    start: int
    block_ids: tuple[int, ...]
    copies: tuple[tuple[int, int], ...]


NO_PREFIX = Prefix((), 0, False)
UNCHANGED = TableChange(0, (), ())


@dataclass(slots=True)
class _Table:
    """A sequence's blocks in order, the first ``num_registered`` of which the prefix cache has seen."""

    sequence: Sequence
    num_registered: int
    block_ids: list[int] = field(default_factory=list)


class KVCacheManager:
    """The pool as the scheduler sees it: sequences open a table, allocate step by step, and free it.

    The scheduler alone changes ``Sequence.num_computed``; slots below it hold keys and values by the time that the next planned step
    runs, slots above are to be written. Pages may be freed while steps in flight use them, for steps run in the order of their plans:
    whoever gets a page next writes it after that.

    Args:
        num_blocks: blocks in the pool.
        block_size: token slots in a block.
        enable_prefix_caching: whether sequences find each other's full blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks)
        self._cache = PrefixCache(self._pool, block_size)
        self._tables: dict[int, _Table] = {}
        self._keys: dict[int, list[bytes]] = {}

    # ---- figures -----------------------------------------------------------------------------------------------------

    @property
    def num_free_blocks(self) -> int:
        return self._pool.num_free

    @property
    def usage(self) -> float:
        """Share of the pool's blocks that block tables refer to."""
        return self._pool.num_owned / self.num_blocks

    @property
    def waste(self) -> float:
        """Share of the owned blocks' slots that hold no token. Between steps only a sequence's last block can be part empty."""
        size = self.block_size
        empty: dict[int, int] = {}
        for table in self._tables.values():
            computed = table.sequence.num_computed
            for index in range(computed // size, len(table.block_ids)):
                block = table.block_ids[index]
                empty[block] = min(empty.get(block, size), (index + 1) * size - computed)
        return sum(empty.values()) / (self._pool.num_owned * size) if empty else 0.0

    @property
    def prefix_queries(self) -> int:
        """Tokens looked up in the prefix cache."""
        return self._cache.queries

    @property
    def prefix_hits(self) -> int:
        """Tokens found in the prefix cache."""
        return self._cache.hits

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` slots need."""
        return -(-num_tokens // self.block_size)

    def block_table(self, sequence: Sequence) -> list[int]:
        """A copy of an open sequence's block table."""
        return list(self._tables[sequence.seq_id].block_ids)

    def holders(self) -> set[int]:
        """``seq_id`` of every sequence with an open table."""
        return set(self._tables)

    # ---- a sequence's way through the pool ---------------------------------------------------------------------------

    def lookup(self, sequence: Sequence) -> Prefix:
        """The longest cached prefix: whole blocks, and at most all tokens but the last, whose logits are wanted. Changes nothing."""
        if not self.enable_prefix_caching:
            return NO_PREFIX
        # A sequence that waits at the head of the queue asks at each step: the keys are made once.
        keys = self._keys.setdefault(sequence.seq_id, [])
        num_blocks = (len(sequence.token_ids) - 1) // self.block_size
        self._cache.extend_keys(keys, sequence.token_ids, num_blocks, sequence.request.cache_salt)
        blocks = self._cache.find(keys[:num_blocks])
        return Prefix(tuple(blocks), len(blocks) * self.block_size, True)

    def fork(self, parent: Sequence, num_tokens: int) -> Prefix:
        """The parent's first ``num_tokens`` tokens as a prefix for a child that begins with the same ones. Changes nothing.

        Args:
            parent: an open sequence that has computed at least ``num_tokens``.
        """
        return Prefix(tuple(self._tables[parent.seq_id].block_ids[: self.blocks_for(num_tokens)]), num_tokens, False)

    def open(self, sequence: Sequence, prefix: Prefix, reserve: int) -> bool:
        """Start a block table that shares the blocks of ``prefix``, if there is room for all that the sequence knows.

        Room means: after blocks for all of ``token_ids`` were taken, ``reserve`` blocks would still be free. They are not taken
        yet, ``allocate`` does that.

        Returns:
            whether it was opened; if not, nothing has changed.

        Raises:
            PoolError: the sequence has a table already.
        """
        if sequence.seq_id in self._tables:
            raise PoolError(f"sequence {sequence.seq_id} has a block table already")
        to_copy = 1 if prefix.num_tokens % self.block_size else 0
        to_take = self.blocks_for(len(sequence.token_ids)) - len(prefix.block_ids) + to_copy
        to_revive = sum(self._pool.references(block) == 0 for block in prefix.block_ids)
        if to_take + to_revive + reserve > self._pool.num_free:
            return False
        for block in prefix.block_ids:
            self._pool.share(block)
        self._tables[sequence.seq_id] = _Table(sequence, prefix.num_tokens // self.block_size, list(prefix.block_ids))
        if prefix.from_cache:
            self._cache.count(len(sequence.token_ids), prefix.num_tokens)
        return True

    def allocate(self, sequence: Sequence, num_tokens: int) -> TableChange | None:
        """Make the slots of the next ``num_tokens`` tokens writable: take blocks, and copy those that others share.

        Sources of copies stay owned by those who share them, and destinations are fresh, so the copies of sequences that
        fork in one step from ones that do not may run in any order.

        Returns:
            what changed in the table; None, with nothing changed, when the pool has too few free blocks.
        """
        pool, blocks = self._pool, self._tables[sequence.seq_id].block_ids
        first = sequence.num_computed // self.block_size
        num_missing = -(-(sequence.num_computed + num_tokens) // self.block_size) - len(blocks)
        if num_missing <= 0 and pool.references(blocks[first]) == 1:
            return UNCHANGED
        shared = [index for index in range(first, len(blocks)) if pool.references(blocks[index]) > 1]
        if max(num_missing, 0) + len(shared) > pool.num_free:
            return None
        start = shared[0] if shared else len(blocks)
        copies = []
        for index in shared:
            source, blocks[index] = blocks[index], pool.take()
            pool.release(source)
            copies.append((source, blocks[index]))
        blocks.extend([pool.take() for _ in range(num_missing)])
        return TableChange(start, tuple(blocks[start:]), tuple(copies))

    def blocks_to_take(self, sequence: Sequence, num_tokens: int) -> int:
        """Free blocks that ``allocate`` would take for the next ``num_tokens`` tokens as things are."""
        blocks = self._tables[sequence.seq_id].block_ids
        num_shared = sum(self._pool.references(block) > 1 for block in blocks[sequence.num_computed // self.block_size :])
        return max(self.blocks_for(sequence.num_computed + num_tokens) - len(blocks), 0) + num_shared

    def register(self, sequence: Sequence) -> None:
        """Let the prefix cache know the blocks that were filled since the last call, by steps whose results are in."""
        table = self._tables[sequence.seq_id]
        num_full = (sequence.num_computed - sequence.num_in_flight) // self.block_size
        if num_full == table.num_registered or not self.enable_prefix_caching:
            return
        keys = self._keys.setdefault(sequence.seq_id, [])
        self._cache.extend_keys(keys, sequence.token_ids, num_full, sequence.request.cache_salt)
        for index in range(table.num_registered, num_full):
            self._cache.register(table.block_ids[index], keys[index])
        table.num_registered = num_full

    def free(self, sequence: Sequence) -> None:
        """Give back all that is kept for a sequence, open or not. Registered blocks stay findable until they are reused."""
        self._keys.pop(sequence.seq_id, None)
        table = self._tables.pop(sequence.seq_id, None)
        if table is not None:
            # The tail first: it is the least likely to be shared, so it shall be the first to be reused.
            for block in reversed(table.block_ids):
                self._pool.release(block)

    def reset_prefix_cache(self) -> None:
        """Forget all cached contents; running sequences keep their blocks."""
        self._cache.reset()

    def audit(self) -> None:
        """Check that every block is in one place and that reference counts agree with the block tables.

        Raises:
            PoolError: saying all that is wrong.
        """
        self._pool.audit(Counter(block for table in self._tables.values() for block in table.block_ids))
        for seq_id, table in self._tables.items():
            if len(table.block_ids) * self.block_size < table.sequence.num_computed:
                raise PoolError(f"sequence {seq_id} has computed {table.sequence.num_computed} tokens in {len(table.block_ids)} blocks")
