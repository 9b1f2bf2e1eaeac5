"""The pool's books: how often each block is referenced, and what the free ones still hold.

A block is in exactly one of three states:

- *owned*: at least one block table refers to it;
- *cached*: nobody refers to it, but its content is known by a key and may be found again; the least recently freed is reused first;
- *empty*: nobody refers to it and its content is worthless; these are reused before any cached one.

No memory is touched here: a block is a number. Every operation is O(1), but for ``audit`` and ``forget_contents``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping


class PoolError(AssertionError):
    """The books do not balance: a bug in Octavo, never the fault of a request."""


class BlockPool:
    """Reference counts, content keys and free lists of ``num_blocks`` blocks, numbered from 0.

    Args:
        num_blocks: at least 1.

    Raises:
        ValueError: a pool without blocks.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1; got {num_blocks}.")
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._holders: dict[bytes, int] = {}
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that ``take`` can still give, cached ones included."""
        return len(self._empty) + len(self._cached)

    @property
    def num_owned(self) -> int:
        return self.num_blocks - self.num_free

    def references(self, block: int) -> int:
        return self._references[block]

    def take(self) -> int:
        """A block for one owner, its former content forgotten.

        Raises:
            PoolError: no block is free; callers compare ``num_free`` first.
        """
        if self._empty:
            block = self._empty.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        else:
            raise PoolError("a block was asked of a pool that has none free")
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more owner for a block whose content is wanted: an owned one, or a cached one that thereby comes back to life.

        Raises:
            PoolError: the block is empty.
        """
        if self._references[block] == 0:
            if block not in self._cached:
                raise PoolError(f"block {block} was to be shared, but it is empty")
            del self._cached[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """One owner less. The last one leaves the block cached if its content has a key, else empty.

        Raises:
            PoolError: the block has no owner.
        """
        left = self._references[block] - 1
        if left < 0:
            raise PoolError(f"block {block} was released more often than taken")
        self._references[block] = left
        if left == 0:
            if self._keys[block] is None:
                self._empty.append(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, key: bytes) -> None:
        """Make an owned block's content findable. A key that another block already holds stays there: one copy is enough.

        Raises:
            PoolError: the block has no owner, or already holds another content.
        """
        if self._references[block] == 0 or self._keys[block] not in (None, key):
            raise PoolError(f"block {block} cannot be published: it has no owner, or it holds another content")
        if key not in self._holders:
            self._holders[key] = block
            self._keys[block] = key

    def find(self, key: bytes) -> int | None:
        """The block that holds this content, owned or cached."""
        return self._holders.get(key)

    def forget_contents(self) -> None:
        """Make no content findable any more; owned blocks stay with their owners."""
        for block in self._cached:
            self._keys[block] = None
        self._empty.extend(self._cached)
        self._cached.clear()
        for block in self._holders.values():
            self._keys[block] = None
        self._holders.clear()

    def audit(self, references: Mapping[int, int]) -> None:
        """Check the books against themselves and against the block tables.

        Args:
            references: for each block that stands in block tables, how often it does.

        Raises:
            PoolError: saying all that is wrong.
        """
        empty, cached = set(self._empty), set(self._cached)
        wrong = [] if len(empty) == len(self._empty) else ["a block is in the empty list twice"]
        for block, count in enumerate(self._references):
            if (block in empty) + (block in cached) + (count > 0) != 1:
                wrong.append(f"block {block} is not exactly one of empty, cached and owned ({block in empty}, {block in cached}, {count})")
            if count != references.get(block, 0):
                wrong.append(f"block {block} counts {count} references, the block tables hold {references.get(block, 0)}")
            key = self._keys[block]
            if (block in empty and key is not None) or (block in cached and key is None):
                wrong.append(f"block {block} is in the wrong free list for its content")
            if key is not None and self._holders.get(key) != block:
                wrong.append(f"block {block} holds a content that cannot be found")
        if len(self._holders) != sum(key is not None for key in self._keys):
            wrong.append("a content is found in a block that does not hold it")
        if wrong:
            raise PoolError("the KV pool's books do not balance: " + "; ".join(wrong))

    def _forget(self, block: int) -> None:
        key, self._keys[block] = self._keys[block], None
        if key is not None:
            del self._holders[key]
