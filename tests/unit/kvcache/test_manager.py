from __future__ import annotations

import itertools
import random

import pytest

from octavo.kvcache.block_pool import PoolError
from octavo.kvcache.manager import NO_PREFIX, UNCHANGED, KVCacheManager, Prefix
from octavo.request import Request, Sequence
from octavo.sampling_params import SamplingParams

SIZE = 4
IDS = itertools.count()


def sequence(tokens: list[int], salt: str = "") -> Sequence:
    number = next(IDS)
    request = Request(f"r{number}", list(tokens), SamplingParams(), 0, cache_salt=salt)
    return Sequence(number, request, 0, list(tokens))


def compute(kv: KVCacheManager, seq: Sequence, prefix: Prefix = NO_PREFIX) -> None:
    """Open a sequence and compute all it knows."""
    assert kv.open(seq, prefix, 0)
    seq.num_computed = prefix.num_tokens
    assert kv.allocate(seq, seq.num_to_compute) is not None
    seq.num_computed = len(seq.token_ids)
    kv.register(seq)


def test_blocks_are_taken_as_tokens_come_and_changes_name_the_new_ones_only() -> None:
    kv, seq = KVCacheManager(10, SIZE, True), sequence(list(range(6)))
    kv.open(seq, NO_PREFIX, 0)
    assert kv.allocate(seq, 3) == (0, (0,), ())
    seq.num_computed = 3
    assert kv.allocate(seq, 3) == (1, (1,), ())
    seq.num_computed = 6
    assert kv.allocate(seq, 2) is UNCHANGED
    seq.num_computed = 8
    assert kv.allocate(seq, 9) == (2, (2, 3, 4), ())
    assert kv.block_table(seq) == [0, 1, 2, 3, 4]
    kv.audit()


def test_allocation_is_all_or_nothing() -> None:
    kv, seq = KVCacheManager(2, SIZE, True), sequence(list(range(8)))
    kv.open(seq, NO_PREFIX, 0)
    assert kv.allocate(seq, 9) is None
    assert kv.num_free_blocks == 2 and kv.block_table(seq) == []
    assert kv.allocate(seq, 8) is not None


def test_open_wants_room_for_all_known_tokens_and_the_reserve() -> None:
    kv = KVCacheManager(5, SIZE, True)
    assert not kv.open(sequence([1] * 13), NO_PREFIX, reserve=2)
    assert kv.holders() == set()
    seq = sequence([1] * 13)
    assert kv.open(seq, NO_PREFIX, reserve=1)
    with pytest.raises(PoolError, match="already"):
        kv.open(seq, NO_PREFIX, 0)


def test_open_counts_cached_blocks_it_revives_as_room_it_uses() -> None:
    kv, first = KVCacheManager(4, SIZE, True), sequence(list(range(9)))
    compute(kv, first)
    kv.free(first)
    second = sequence(list(range(9)))
    assert kv.lookup(second).num_tokens == 8
    assert not kv.open(second, kv.lookup(second), reserve=2)
    assert kv.open(second, kv.lookup(second), reserve=1)
    kv.audit()


def test_open_counts_the_copy_that_a_fork_will_need() -> None:
    kv, parent = KVCacheManager(3, SIZE, True), sequence(list(range(7)))
    compute(kv, parent)
    child = sequence(list(range(7)))
    assert not kv.open(child, kv.fork(parent, 6), reserve=1)
    assert kv.open(child, kv.fork(parent, 6), reserve=0)


def test_lookup_gives_whole_blocks_and_never_the_last_token() -> None:
    kv, first = KVCacheManager(10, SIZE, True), sequence(list(range(11)))
    compute(kv, first)
    table = tuple(kv.block_table(first))
    assert kv.lookup(sequence(list(range(8)))) == (table[:1], 4, True)
    assert kv.lookup(sequence(list(range(9)))) == (table[:2], 8, True)
    assert kv.lookup(sequence([*range(11), 5, 6, 7])) == (table[:2], 8, True)
    assert kv.lookup(sequence([9, *range(1, 11)])) == ((), 0, True)


def test_lookup_never_crosses_cache_salts() -> None:
    kv, first = KVCacheManager(10, SIZE, True), sequence(list(range(9)), salt="a")
    compute(kv, first)
    assert kv.lookup(sequence(list(range(9)), salt="b")).num_tokens == 0
    assert kv.lookup(sequence(list(range(9)))).num_tokens == 0
    assert kv.lookup(sequence(list(range(9)), salt="a")).num_tokens == 8


def test_a_block_is_findable_only_once_all_its_slots_are_computed() -> None:
    kv, first = KVCacheManager(10, SIZE, True), sequence(list(range(12)))
    kv.open(first, NO_PREFIX, 0)
    kv.allocate(first, 12)
    kv.register(first)
    assert kv.lookup(sequence(list(range(12)))).num_tokens == 0
    first.num_computed = 7
    kv.register(first)
    assert kv.lookup(sequence(list(range(12)))).num_tokens == 4
    first.num_computed = 8
    kv.register(first)
    assert kv.lookup(sequence(list(range(12)))).num_tokens == 8


def test_without_prefix_caching_nothing_is_found_or_kept() -> None:
    kv, first = KVCacheManager(10, SIZE, False), sequence(list(range(12)))
    compute(kv, first)
    assert kv.lookup(sequence(list(range(12)))) is NO_PREFIX
    assert kv._keys == {}, "no key was computed in vain"
    kv.free(first)
    kv.audit()
    assert (kv.prefix_queries, kv.prefix_hits) == (0, 0)


def test_lookups_are_counted_when_they_are_used_and_only_then() -> None:
    kv, first = KVCacheManager(4, SIZE, True), sequence(list(range(9)))
    compute(kv, first, kv.lookup(first))
    assert (kv.prefix_queries, kv.prefix_hits) == (9, 0)
    second = sequence(list(range(9)))
    for _ in range(3):
        assert not kv.open(second, kv.lookup(second), reserve=1)
    assert (kv.prefix_queries, kv.prefix_hits) == (9, 0)
    assert kv.open(second, kv.lookup(second), reserve=0)
    assert (kv.prefix_queries, kv.prefix_hits) == (18, 8)


def test_a_child_shares_the_parents_blocks_and_gets_its_own_copy_of_the_one_it_writes() -> None:
    kv, parent = KVCacheManager(10, SIZE, True), sequence(list(range(7)))
    compute(kv, parent)
    child = sequence(list(range(7)))
    assert kv.open(child, kv.fork(parent, 6), reserve=0)
    child.num_computed = 6
    change = kv.allocate(child, 1)
    assert change is not None
    ours, theirs = kv.block_table(child), kv.block_table(parent)
    assert change == (1, (ours[1],), ((theirs[1], ours[1]),))
    assert ours[0] == theirs[0] and ours[1] != theirs[1]
    kv.audit()
    assert kv.allocate(parent, 1) is UNCHANGED, "the parent's block is its own again"


def test_a_copy_and_new_blocks_come_in_one_change() -> None:
    kv, parent = KVCacheManager(10, SIZE, True), sequence(list(range(7)))
    compute(kv, parent)
    child = sequence([*range(7), 50, 51, 52, 53])
    kv.open(child, kv.fork(parent, 6), reserve=0)
    child.num_computed = 6
    change = kv.allocate(child, 5)
    assert change is not None and change.start == 1 and len(change.block_ids) == 2 and len(change.copies) == 1
    assert kv.block_table(child)[1:] == list(change.block_ids)


def test_a_fork_at_a_block_border_copies_nothing() -> None:
    kv, parent = KVCacheManager(10, SIZE, True), sequence(list(range(9)))
    compute(kv, parent)
    child = sequence(list(range(9)))
    kv.open(child, kv.fork(parent, 8), reserve=0)
    child.num_computed = 8
    change = kv.allocate(child, 1)
    assert change is not None and change.start == 2 and change.copies == ()


def test_a_copy_that_finds_no_block_changes_nothing() -> None:
    kv, parent = KVCacheManager(3, SIZE, True), sequence(list(range(7)))
    compute(kv, parent)
    child, other = sequence(list(range(7))), sequence([1])
    kv.open(child, kv.fork(parent, 6), reserve=0)
    child.num_computed = 6
    compute(kv, other)
    assert kv.allocate(child, 1) is None
    assert kv.block_table(child) == kv.block_table(parent)
    kv.audit()


def test_freeing_leaves_what_others_share_and_gives_up_the_tail_before_the_head() -> None:
    kv, first = KVCacheManager(3, SIZE, True), sequence(list(range(12)))
    compute(kv, first)
    head, middle, tail = kv.block_table(first)
    kv.free(first)
    kv.free(first)
    assert kv.num_free_blocks == 3
    newcomer = sequence([77] * 8)
    compute(kv, newcomer)
    assert kv.block_table(newcomer) == [tail, middle]
    assert kv.lookup(sequence(list(range(12)))).block_ids == (head,)


def test_nothing_is_kept_of_a_sequence_that_only_looked() -> None:
    kv, seq = KVCacheManager(3, SIZE, True), sequence(list(range(12)))
    kv.lookup(seq)
    kv.free(seq)
    assert kv._keys == {}


def test_reset_forgets_cached_prefixes_and_running_sequences_go_on() -> None:
    kv, seq = KVCacheManager(5, SIZE, True), sequence(list(range(10)))
    compute(kv, seq)
    kv.reset_prefix_cache()
    assert kv.lookup(sequence(list(range(10)))).num_tokens == 0
    assert kv.allocate(seq, 5) is not None
    seq.token_ids += [1] * 5
    seq.num_computed = 15
    kv.register(seq)
    kv.audit()
    kv.free(seq)
    kv.audit()
    assert kv.num_free_blocks == 5


def test_usage_is_the_share_of_owned_blocks_and_waste_the_share_of_their_empty_slots() -> None:
    kv = KVCacheManager(10, SIZE, True)
    assert (kv.usage, kv.waste) == (0.0, 0.0)
    parent = sequence(list(range(9)))
    compute(kv, parent)
    assert (kv.usage, kv.waste) == (0.3, 3 / 12)
    child = sequence(list(range(9)))
    kv.open(child, kv.fork(parent, 8), 0)
    child.num_computed = 8
    kv.allocate(child, 1)
    child.num_computed = 9
    assert (kv.usage, kv.waste) == (0.4, 6 / 16), "shared blocks count once"


def test_waste_counts_slots_that_are_allocated_but_not_yet_computed() -> None:
    kv, seq = KVCacheManager(10, SIZE, True), sequence(list(range(10)))
    kv.open(seq, NO_PREFIX, 0)
    kv.allocate(seq, 10)
    assert kv.waste == 1.0
    seq.num_computed = 5
    assert kv.waste == 7 / 12


def test_the_audit_sees_a_table_too_short_for_its_tokens_and_a_count_that_no_table_explains() -> None:
    kv, seq = KVCacheManager(10, SIZE, True), sequence(list(range(10)))
    compute(kv, seq)
    seq.num_computed = 13
    with pytest.raises(PoolError, match="13 tokens in 3 blocks"):
        kv.audit()
    seq.num_computed = 10
    kv._tables[seq.seq_id].block_ids.pop()
    with pytest.raises(PoolError, match="the block tables hold 0"):
        kv.audit()


def test_waste_on_a_load_of_mixed_lengths_stays_under_four_percent() -> None:
    """The bar is the PagedAttention paper's figure (Kwon et al., 2023); lengths of 200 to 2000 tokens, blocks of 16."""
    draw, kv, worst = random.Random(0), KVCacheManager(16384, 16, True), 0.0
    for _ in range(20):
        seqs = [sequence([draw.randrange(1000) for _ in range(draw.randint(200, 2000))]) for _ in range(64)]
        for seq in seqs:
            compute(kv, seq)
        worst = max(worst, kv.waste)
        for seq in seqs:
            kv.free(seq)
    assert 0.0 < worst < 0.04
