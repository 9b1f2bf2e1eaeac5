"""Masks of tokens against sets of ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.sampling.token_mask import apply_masks, ids_of_mask, mask_of_bytes, mask_of_ids, within, without

SIZES = st.sampled_from([1, 7, 8, 9, 64, 100])


@given(SIZES, st.sets(st.integers(0, 120)), st.sets(st.integers(-3, 130)), st.sets(st.integers(0, 120)))
def test_masks_are_sets(size: int, ids: set[int], banned: set[int], allowed: set[int]) -> None:
    mask = mask_of_ids(ids, size)
    kept = {token for token in ids if token < size}
    assert ids_of_mask(mask) == sorted(kept)
    assert set(ids_of_mask(without(mask, banned))) == (kept - banned or kept)
    assert set(ids_of_mask(within(mask, sorted(allowed)))) == (kept & allowed or kept)
    assert set(ids_of_mask(mask)) == kept  # left alone


@pytest.mark.parametrize("size", [1, 8, 13, 64])
def test_bits_beyond_the_vocabulary_do_not_count(size: int) -> None:
    assert ids_of_mask(mask_of_bytes(b"\xff" * 12, size)) == list(range(size))


@given(SIZES, st.lists(st.sets(st.integers(0, 99), min_size=1), min_size=1, max_size=3), st.integers(0, 20))
def test_applied_to_logits_they_leave_the_allowed_ones_alone(size: int, every: list[set[int]], beyond: int) -> None:
    width = size + beyond
    logits = torch.arange(width * (len(every) + 1), dtype=torch.float32).reshape(-1, width) - 5
    expected = torch.full_like(logits, float("-inf"))
    expected[0] = logits[0]  # a row without a mask
    for row, ids in enumerate(every, 1):
        kept = [token for token in ids if token < size]
        expected[row, kept] = logits[row, kept]
    apply_masks(logits, [(row, mask_of_ids(ids, size)) for row, ids in enumerate(every, 1)])
    assert torch.equal(logits, expected)


def test_what_is_not_a_number_stays_so() -> None:
    logits = torch.tensor([[float("nan"), 1.0, 2.0]])
    apply_masks(logits, [(0, mask_of_ids([0, 1], 3))])
    assert logits[0, 0].isnan() and logits[0, 1:].tolist() == [1.0, float("-inf")]
