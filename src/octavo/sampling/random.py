"""Random numbers that are a function of (seed, position) alone.

A counter-based generator has no state to carry, save or split: the draw for a position is a hash of the sequence's seed and
that position. So a token does not depend on the batch, on preemption or on how many draws other requests made.

The hash is Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF

Words4 = tuple[int, int, int, int]


def philox4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Four random 32-bit words from four counter words and two key words (ten rounds)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = _MULTIPLIERS[0] * c0
        product1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & _WORD, (product0 >> 32) ^ c3 ^ k1, product0 & _WORD
        k0 = (k0 + _WEYL[0]) & _WORD
        k1 = (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, position: int, attempt: int = 0) -> float:
    """A uniform number in [0, 1) of a sequence at a position, a multiple of 2**-53.

    Args:
        seed: the sequence's key; its low 64 bits count, so a negative seed is the same as its two's complement.
        position: index of the token to be drawn, counted from the start of the prompt; its low 64 bits count.
        attempt: each one has a number of its own; its low 32 bits count.
    """
    counter = position & _WORD, position >> 32 & _WORD, attempt & _WORD, 0
    high, low, _, _ = philox4x32(counter, (seed & _WORD, seed >> 32 & _WORD))
    return ((high << 32 | low) >> 11) * 2.0**-53
