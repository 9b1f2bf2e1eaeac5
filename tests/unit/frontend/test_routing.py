"""Which engine a request goes to."""

from __future__ import annotations

import random

import pytest

from octavo.frontend import routing
from octavo.frontend.routing import CHUNK_TOKENS, TOKENS_A_SEQUENCE, Router

LONG = list(range(4 * TOKENS_A_SEQUENCE))


def test_a_new_prompt_goes_to_the_least_loaded_and_of_equals_to_the_first() -> None:
    router = Router(3, remembers=True)
    assert router.choose([1, 2], "", {0: 3, 1: 1, 2: 2}) == 1
    assert router.choose([1, 2], "", {0: 2, 2: 2}) == 0


def test_a_known_prompt_is_worth_waiting_for_up_to_a_bound() -> None:
    router = Router(2, remembers=True)
    assert router.choose(LONG, "", {0: 1, 1: 0}) == 1
    assert router.choose(LONG, "", {0: 0, 1: 3}) == 1
    # Where both are as good, the less loaded one is: it then knows the prompt, too.
    assert router.choose(LONG, "", {0: 0, 1: 5}) == 0
    assert router.choose(LONG, "", {0: 1, 1: 0}) == 1


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        (LONG[:TOKENS_A_SEQUENCE] + [7] * 500, 0),  # worth one sequence: a draw, and less runs there
        ([*LONG[: TOKENS_A_SEQUENCE + CHUNK_TOKENS], 7], 1),
        ([*LONG[: TOKENS_A_SEQUENCE + CHUNK_TOKENS - 1], 7], 0),
        ([9, *LONG], 0),  # the same tokens elsewhere in a prompt are of no use
    ],
)
def test_what_is_known_is_a_beginning_in_whole_chunks(prompt: list[int], chosen: int) -> None:
    router = Router(2, remembers=True)
    router.choose(LONG, "", {1: 0})
    assert router.choose(prompt, "", {0: 0, 1: 1}) == chosen


def test_salts_do_not_share() -> None:
    router = Router(2, remembers=True)
    router.choose(LONG, "a", {1: 0})
    assert router.choose(LONG, "b", {0: 0, 1: 1}) == 0
    assert router.choose(LONG, "a", {0: 0, 1: 1}) == 1


def test_an_engine_that_lost_its_pages_or_keeps_none_has_no_advantage() -> None:
    router = Router(2, remembers=True)
    router.choose(LONG, "", {1: 0})
    router.forget(1)
    assert router.choose(LONG, "", {0: 0, 1: 1}) == 0
    router = Router(2, remembers=False)
    router.choose(LONG, "", {1: 0})
    assert router.choose(LONG, "", {0: 0, 1: 1}) == 0


def test_the_oldest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MOST_CHUNKS", 8)
    router = Router(2, remembers=True)
    prompts = [[number] * 4 * CHUNK_TOKENS for number in range(3)]
    for prompt in prompts:
        router.choose(prompt, "", {1: 0})
    assert len(router._known[1]) == 8
    monkeypatch.setattr(routing, "TOKENS_A_SEQUENCE", 1)
    assert router.choose(prompts[2], "", {0: 0, 1: 1}) == 1
    assert router.choose(prompts[0], "", {0: 0, 1: 1}) == 0


def test_the_same_requests_go_the_same_ways() -> None:
    runs = []
    for _ in range(2):
        draw, router = random.Random(5), Router(4, remembers=True)
        prompts = [[draw.randrange(50) for _ in range(draw.randint(1, 600))] for _ in range(20)]
        runs.append([router.choose(draw.choice(prompts), "", {engine: draw.randrange(6) for engine in range(4)}) for _ in range(300)])
    assert runs[0] == runs[1] and len(set(runs[0])) == 4
