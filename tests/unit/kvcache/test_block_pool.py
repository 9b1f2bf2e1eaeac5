from __future__ import annotations

import pytest

from octavo.kvcache.block_pool import BlockPool, PoolError


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def cached_pool(num_blocks: int) -> BlockPool:
    """A pool all of whose blocks are cached: block i holds key(i) and was freed as the i-th."""
    pool = BlockPool(num_blocks)
    for _ in range(num_blocks):
        block = pool.take()
        pool.publish(block, key(block))
    for block in range(num_blocks):
        pool.release(block)
    return pool


def test_a_new_pool_gives_each_block_once_and_then_no_more() -> None:
    pool = BlockPool(5)
    assert sorted(pool.take() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.num_owned) == (0, 5)
    with pytest.raises(PoolError, match="none free"):
        pool.take()


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(0)


def test_a_shared_block_is_free_only_after_its_last_owner_let_go() -> None:
    pool = BlockPool(1)
    block = pool.take()
    pool.share(block)
    assert pool.references(block) == 2
    pool.release(block)
    assert pool.num_free == 0
    pool.release(block)
    assert pool.num_free == 1


def test_a_block_cannot_be_released_twice() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.release(block)
    with pytest.raises(PoolError, match="more often than taken"):
        pool.release(block)


def test_a_freed_block_keeps_its_content_until_it_is_reused() -> None:
    pool = BlockPool(1)
    block = pool.take()
    pool.publish(block, key(7))
    pool.release(block)
    assert pool.find(key(7)) == block
    assert pool.take() == block
    assert pool.find(key(7)) is None


def test_empty_blocks_are_reused_before_cached_ones_and_cached_ones_in_the_order_they_were_freed() -> None:
    pool = BlockPool(4)
    for _ in range(4):
        pool.take()
    for block in (2, 0, 3):
        pool.publish(block, key(block))
        pool.release(block)
    pool.release(1)
    assert [pool.take() for _ in range(4)] == [1, 2, 0, 3]


def test_sharing_a_cached_block_saves_it_from_reuse() -> None:
    pool = cached_pool(3)
    pool.share(0)
    assert (pool.references(0), pool.num_free) == (1, 2)
    assert [pool.take(), pool.take()] == [1, 2]
    assert pool.find(key(0)) == 0
    pool.audit({0: 1, 1: 1, 2: 1})


def test_an_empty_block_cannot_be_shared() -> None:
    with pytest.raises(PoolError, match="empty"):
        BlockPool(2).share(0)


def test_equal_contents_are_found_in_the_first_block_only() -> None:
    pool = BlockPool(2)
    first, second = pool.take(), pool.take()
    pool.publish(first, key(1))
    pool.publish(second, key(1))
    assert pool.find(key(1)) == first
    pool.release(second)
    assert pool.take() == second
    assert pool.find(key(1)) == first
    pool.audit({first: 1, second: 1})


def test_only_an_owned_block_without_other_content_can_be_published() -> None:
    pool = BlockPool(2)
    with pytest.raises(PoolError):
        pool.publish(0, key(1))
    block = pool.take()
    pool.publish(block, key(1))
    pool.publish(block, key(1))
    with pytest.raises(PoolError):
        pool.publish(block, key(2))


def test_forgetting_contents_empties_cached_blocks_and_leaves_owned_ones_to_their_owners() -> None:
    pool = cached_pool(3)
    pool.share(1)
    pool.forget_contents()
    assert all(pool.find(key(block)) is None for block in range(3))
    assert pool.num_free == 2
    pool.audit({1: 1})
    pool.release(1)
    pool.audit({})


def test_the_audit_compares_reference_counts_with_the_block_tables() -> None:
    pool = BlockPool(3)
    block = pool.take()
    pool.audit({block: 1})
    with pytest.raises(PoolError, match=f"block {block} counts 1 references, the block tables hold 2"):
        pool.audit({block: 2})
    with pytest.raises(PoolError, match="hold 0"):
        pool.audit({})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pool: pool._empty.append(0), "block 0 is not exactly one of"),
        (lambda pool: pool._empty.append(pool._empty[-1]), "twice"),
        (lambda pool: pool._empty.pop(), "is not exactly one of"),
        (lambda pool: pool._cached.pop(1), "block 1 is not exactly one of"),
        (lambda pool: pool._keys.__setitem__(1, None), "wrong free list"),
        (lambda pool: pool._holders.pop(key(1)), "cannot be found"),
        (lambda pool: pool._holders.__setitem__(key(9), 2), "does not hold it"),
    ],
)
def test_the_audit_sees_every_kind_of_damage(damage, message: str) -> None:  # type: ignore[no-untyped-def]
    pool = BlockPool(4)
    assert [pool.take(), pool.take()] == [0, 1]
    pool.publish(1, key(1))
    pool.release(1)
    pool.audit({0: 1})
    damage(pool)
    with pytest.raises(PoolError, match=message):
        pool.audit({0: 1})
