"""Deadlines as data: an ordered set of moments by key, and retries with backoff.

The service reads the next moment and arms a single timer.
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Moments by key, in seconds of the caller's clock. Setting a key again replaces its moment.

    Replaced and cancelled entries stay in the heap until they reach its top or outnumber the live ones, so every
    operation costs O(log n), amortized.
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
        """Forget a key; an unknown key is ignored."""
        self._at.pop(key, None)

    def get(self, key: K) -> float | None:
        """Return a key's moment; None when it has none."""
        entry = self._at.get(key)
        return entry[0] if entry else None

    def in_order(self) -> list[tuple[float, K]]:
        """Return every moment with its key, in the order in which `pop_due` returns the keys."""
        waiting = sorted((at, sequence, key) for key, (at, sequence) in self._at.items())
        return [(at, key) for at, _, key in waiting]

    def next(self) -> float | None:
        """Return the earliest moment; None when there is none."""
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


class Retries(Generic[K]):
    """Exponential backoff per key between two bounds in seconds. No jitter: each kernel has one lbguard."""

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._failures: dict[K, int] = {}
        self._due: Deadlines[K] = Deadlines()

    def failed(self, key: K, now: float) -> None:
        """Record a failure: the key is due again after a delay that doubles with each failure in a row."""
        failures = self._failures.get(key, 0)
        self._failures[key] = min(failures + 1, 32)
        self._due.set(key, now + min(self._max_s, self._min_s * 2.0**failures))

    def succeeded(self, key: K) -> None:
        """Forget the failures of a key."""
        if self._failures.pop(key, None) is not None:
            self._due.cancel(key)

    def failures(self, key: K) -> int:
        """Return how often a key failed in a row."""
        return self._failures.get(key, 0)

    def waiting(self, key: K) -> bool:
        """Return whether a key failed and is not due yet."""
        return self._due.get(key) is not None

    def pop_due(self, now: float) -> list[K]:
        """Remove and return the keys that are due for a retry."""
        return self._due.pop_due(now)

    def next(self) -> float | None:
        """Return when the next key is due."""
        return self._due.next()
