"""Who is silent is noticed, and time in which nobody looked is held against nobody."""

from __future__ import annotations

import pytest

from octavo.executor import child_process
from octavo.executor.child_process import SILENCE_SECONDS, Watch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one entry is the time."""
    now = [100.0]
    monkeypatch.setattr(child_process.time, "monotonic", lambda: now[0])
    return now


def look(watch: Watch, clock: list[float], seconds: float, seen: tuple[int, ...] = ()) -> int | None:
    """Look once a second for so long; signs come from some."""
    found = None
    for _ in range(int(seconds)):
        clock[0] += 1
        for name in seen:
            watch.saw(name)
        found = watch.silent()
    return found


def test_who_shows_no_sign_is_found_in_time(clock: list[float]) -> None:
    watch = Watch(range(3))
    assert look(watch, clock, SILENCE_SECONDS, (0, 2)) is None
    assert look(watch, clock, 1, (0, 2)) == 1


def test_who_shows_signs_is_not(clock: list[float]) -> None:
    watch = Watch(range(2))
    assert look(watch, clock, 5 * SILENCE_SECONDS, (0, 1)) is None


def test_a_watcher_that_was_away_itself_gives_all_of_them_time_again(clock: list[float]) -> None:
    watch = Watch(range(2))
    look(watch, clock, 10)
    clock[0] += 3600  # this process was stopped
    assert watch.silent() is None
    assert look(watch, clock, SILENCE_SECONDS, (0,)) is None
    assert look(watch, clock, 1, (0,)) == 1
