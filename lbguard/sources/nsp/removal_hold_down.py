"""Hold-down of removals from a registry's list. Pure.

While the registry stays connected, what it takes off its list is taken off at once: it means it. After a connection was
lost, the other end may be a registry that has just started and does not know all entries yet. Meridio's reads its
configuration after it began to serve, so its first list of streams is empty; and when its database is lost, targets
come back one by one as they refresh their entries, by default every 30 s. Its own load balancer believes each of these
lists. We do not: a list that comes first after a loss and lacks more than a share of what was known opens a settle
time. Until it ends, or until nothing is missing any more, additions and changes pass and removals wait.
"""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

_LATE_S = 1.0
"""Whoever looks so long after the end of a settle time was stopped or held up, and has lists to read first."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RemovalHoldDown(Generic[Key, Value]):
    """One list, as it is believed. Times are seconds of one monotonic clock.

    Args:
        settle_s: how long removals wait after a loss.
        share: what share (0 to 1) of the known may be missing at once without any wait.
        doubt_empty_start: let an empty list wait too when nothing was known before.
    """

    def __init__(self, settle_s: float, share: float, *, doubt_empty_start: bool = False) -> None:
        self._settle_s = settle_s
        self._share = share
        self._doubt_empty_start = doubt_empty_start
        self._told: Mapping[Key, Value] | None = None
        self._believed: dict[Key, Value] | None = None
        self._first_of_session = True
        self._until: float | None = None

    @property
    def believed(self) -> dict[Key, Value] | None:
        """Return the list in force; None while there is none."""
        return self._believed

    @property
    def waits(self) -> int:
        """Return the number of removals that wait."""
        if self._until is None:
            return 0
        return len((self._believed or {}).keys() - (self._told or {}).keys())

    @property
    def settles_at(self) -> float | None:
        """Return when the hold-down ends; None when none runs."""
        return self._until

    def begin_session(self) -> None:
        """Record that the connection is a new one."""
        self._first_of_session = True

    def take(self, told: Mapping[Key, Value], now: float) -> None:
        """Apply a list."""
        first, self._first_of_session = self._first_of_session, False
        self._told = told
        missing = len((self._believed or {}).keys() - told.keys())
        if first:
            self._until = now + self._settle_s if self._is_doubtful(told, missing) else None
        elif not missing and (told or self._believed is not None):
            self._until = None
        self._settle(now)

    def expire(self, now: float) -> None:
        """Apply the waiting list when its time has come."""
        if self._told is not None:
            self._settle(now)

    def drop(self, key: Key) -> None:
        """Let one removal wait no longer."""
        if self._believed is not None and self._told is not None and key not in self._told:
            self._believed.pop(key, None)

    def _is_doubtful(self, told: Mapping[Key, Value], missing: int) -> bool:
        if self._believed is None:
            return self._doubt_empty_start and not told
        return bool(missing) and (not told or missing > self._share * len(self._believed))

    def _settle(self, now: float) -> None:
        assert self._told is not None
        if self._until is not None and now > self._until + _LATE_S:
            self._until = now + _LATE_S
        if self._until is not None and now < self._until:
            if self._believed is not None:
                self._believed = {**self._told, **{k: v for k, v in self._believed.items() if k not in self._told}}
            return
        self._until = None
        self._believed = dict(self._told)
