"""The counter-based generator: the published vectors of Philox, and what the sampler relies on."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.sampling.random import philox4x32, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # kat_vectors of Random123, "philox4x32 10".
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert philox4x32(counter, key) == expected


def test_uniform_is_the_top_53_bits_of_the_first_two_words() -> None:
    assert uniform(0, 0) == (0x6627E8D5E169C58D >> 11) / 2**53


def test_uniform_is_even_over_positions_and_over_seeds() -> None:
    """A thousand cells, 50 000 draws: chi-square within five standard deviations, over positions and over seeds."""
    for draws in ([uniform(12345, position) for position in range(50_000)], [uniform(seed, 7) for seed in range(50_000)]):
        counts = np.bincount((np.array(draws) * 1000).astype(int), minlength=1000)
        chi_square = float(((counts - 50.0) ** 2 / 50.0).sum())
        assert abs(chi_square - 999) < 5 * (2 * 999) ** 0.5


def test_neighbouring_positions_are_uncorrelated() -> None:
    draws = np.array([uniform(99, position) for position in range(50_000)])
    assert abs(float(np.corrcoef(draws[:-1], draws[1:])[0, 1])) < 5 / 50_000**0.5


def test_uniform_stays_below_one_and_depends_on_every_bit_of_what_it_is_given() -> None:
    base = uniform(0, 0)
    others = [uniform(1 << bit, 0) for bit in range(64)] + [uniform(0, 1 << bit) for bit in range(64)]
    others += [uniform(0, 0, 1 << bit) for bit in range(32)]
    assert len({base, *others}) == 161
    assert all(0.0 <= value < 1.0 for value in others)


def test_a_negative_seed_is_its_twos_complement() -> None:
    assert uniform(-5, 3) == uniform(2**64 - 5, 3)
