"""Deadlines as data: an ordered set of named moments. The shell asks for the next one and arms a single timer."""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """One moment per key, in seconds of the caller's clock. Setting a key again replaces its moment.

    Replaced and cancelled entries stay in the heap until they surface or outnumber the live ones, so every operation
    costs O(log n), amortized.
    """

    def __init__(self) -> None:
        self._at: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._at)

    def set(self, key: K, at: float) -> None:
        """Set or move a key's moment."""
        self._sequence += 1
        self._at[key] = (at, self._sequence)
        heapq.heappush(self._heap, (at, self._sequence, key))
        if len(self._heap) > 64 + 2 * len(self._at):
            self._heap = [(moment, sequence, k) for k, (moment, sequence) in self._at.items()]
            heapq.heapify(self._heap)

    def shift(self, by_s: float) -> None:
        """Move every moment by so many seconds; their order stays."""
        self._at = {key: (at + by_s, sequence) for key, (at, sequence) in self._at.items()}
        self._heap = [(at + by_s, sequence, key) for at, sequence, key in self._heap]

    def cancel(self, key: K) -> None:
        """Forget a key; an unknown one is no error."""
        self._at.pop(key, None)

    def get(self, key: K) -> float | None:
        """Return a key's moment, if it has one."""
        entry = self._at.get(key)
        return entry[0] if entry else None

    def in_order(self) -> list[tuple[float, K]]:
        """Return every moment with its key, in the order in which `pop_due` returns the keys."""
        waiting = sorted((at, sequence, key) for key, (at, sequence) in self._at.items())
        return [(at, key) for at, _, key in waiting]

    def next(self) -> float | None:
        """Return the earliest moment, if there is any."""
        self._drop_dead()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float, limit: int | None = None) -> list[K]:
        """Remove and return the keys whose moment is at or before `now`, earliest first, at most `limit` of them."""
        due: list[K] = []
        while True:
            self._drop_dead()
            if not self._heap or self._heap[0][0] > now or len(due) == limit:
                return due
            key = heapq.heappop(self._heap)[2]
            del self._at[key]
            due.append(key)

    def _drop_dead(self) -> None:
        while self._heap:
            at, sequence, key = self._heap[0]
            if self._at.get(key) == (at, sequence):
                return
            heapq.heappop(self._heap)
