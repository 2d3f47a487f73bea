"""Retry as one ordered structure: what failed, how often in a row, and when it is tried again."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from lbguard.core.deadlines import Deadlines

K = TypeVar("K", bound=Hashable)


class Retries(Generic[K]):
    """Exponential backoff per key between two bounds in seconds, without jitter: one guard retries its own kernel."""

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._failures: dict[K, int] = {}
        self._due: Deadlines[K] = Deadlines()

    def failed(self, key: K, now: float) -> None:
        """Note a failure: the key is due again after a delay that doubles with each one in a row."""
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
        """Return the keys that are to be tried again now."""
        return self._due.pop_due(now)

    def next(self) -> float | None:
        """Return when the next key is due."""
        return self._due.next()
