from __future__ import annotations

from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.prefix_cache import PrefixCache

SIZE = 4


def keys(tokens: list[int], salt: str = "") -> list[bytes]:
    made: list[bytes] = []
    PrefixCache(BlockPool(1), SIZE).extend_keys(made, tokens, len(tokens) // SIZE, salt)
    return made


def test_a_key_depends_on_the_blocks_tokens_and_on_all_before_them() -> None:
    base = keys([1, 2, 3, 4, 5, 6, 7, 8])
    assert base == keys([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert base[0] == keys([1, 2, 3, 4, 0, 0, 0, 0])[0]
    assert base[1] != keys([0, 2, 3, 4, 5, 6, 7, 8])[1]
    assert base[0] != keys([5, 6, 7, 8])[0]
    assert base[1] != keys([5, 6, 7, 8])[0]


def test_no_key_is_shared_between_salts() -> None:
    tokens = list(range(40))
    assert not set(keys(tokens)) & set(keys(tokens, "a")) and not set(keys(tokens, "a")) & set(keys(tokens, "b"))


def test_any_salt_and_any_token_id_of_32_bits_has_a_key() -> None:
    assert len(set(keys([0, 2**32 - 1, 1, 2], "\ud800") + keys([0, 2**32 - 1, 1, 2], "ü"))) == 2


def test_keys_made_in_steps_are_those_made_at_once() -> None:
    cache, tokens = PrefixCache(BlockPool(1), SIZE), list(range(20))
    stepwise: list[bytes] = []
    for num_blocks in (1, 1, 3, 5):
        cache.extend_keys(stepwise, tokens, num_blocks, "s")
        assert len(stepwise) == num_blocks
    assert stepwise == keys(tokens, "s")


def test_find_stops_at_the_first_block_that_is_missing() -> None:
    pool = BlockPool(3)
    cache, chain = PrefixCache(pool, SIZE), keys(list(range(12)))
    blocks = [pool.take() for _ in range(3)]
    for index in (0, 2):
        cache.register(blocks[index], chain[index])
    assert cache.find(chain) == [blocks[0]]
    cache.register(blocks[1], chain[1])
    assert cache.find(chain) == blocks
    assert cache.find(chain[:2]) == blocks[:2]


def test_reset_forgets_contents_and_keeps_the_counters() -> None:
    pool = BlockPool(1)
    cache, chain = PrefixCache(pool, SIZE), keys([1, 2, 3, 4])
    cache.register(pool.take(), chain[0])
    cache.count(10, 4)
    cache.count(6, 0)
    cache.reset()
    assert cache.find(chain) == []
    assert (cache.queries, cache.hits) == (16, 4)
