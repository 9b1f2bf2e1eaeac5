"""One order for all sequences: who runs before whom, who is admitted next, who is preempted first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from octavo.request import Sequence


class SequenceQueue:
    """Sequences in order: by arrival (``fcfs``), or by their request's priority and then by arrival (``priority``).

    The waiting are admitted from its front, the running preempted from its back. The order is a fixed property of a sequence
    (``seq_id`` counts arrivals), so one that was preempted comes back before all that came after it.

    Args:
        by_priority: whether smaller ``Request.priority`` goes before earlier arrival.
    """

    def __init__(self, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._items: list[Sequence] = []

    def rank(self, sequence: Sequence) -> tuple[int, int]:
        """The sort key; no two sequences have the same."""
        return (sequence.request.priority if self._by_priority else 0, sequence.seq_id)

    def add(self, sequence: Sequence) -> None:
        insort(self._items, sequence, key=self.rank)

    def discard(self, sequence: Sequence) -> bool:
        """Take a sequence out; returns whether it was in."""
        index = bisect_left(self._items, self.rank(sequence), key=self.rank)
        if index < len(self._items) and self._items[index] is sequence:
            del self._items[index]
            return True
        return False

    @property
    def first(self) -> Sequence:
        return self._items[0]

    @property
    def last(self) -> Sequence:
        return self._items[-1]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)
