"""Backoff between attempts to reach a peer."""

from collections.abc import Callable


class Backoff:
    """Exponential backoff: waits double from one failure to the next, up to a limit."""

    def __init__(self, max_s: float, *, first_s: float = 0.05, jitter: Callable[[], float] = lambda: 1.0) -> None:
        self._first_s = min(first_s, max_s)
        self._max_s = max_s
        self._jitter = jitter
        self._next_s = self._first_s

    def next_s(self) -> float:
        """Return how long to wait now, never more than the limit."""
        wait_s, self._next_s = self._next_s, min(self._next_s * 2, self._max_s)
        return wait_s * self._jitter()

    def reset(self) -> None:
        """Start again from the first wait, after a success."""
        self._next_s = self._first_s
