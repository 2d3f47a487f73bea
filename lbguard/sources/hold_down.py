"""Hold-down of removals from a list that its source may report incompletely. Pure."""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

_LATE_S = 1.0
"""A caller that is so late after the end of a settle time was stopped or blocked, and reads waiting lists first."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RemovalHoldDown(Generic[Key, Value]):
    """One list, with delayed removals. Times are seconds of one monotonic clock.

    Args:
        settle_s: how long removals wait after a loss.
        share: the share (0 to 1) of known entries that may be missing at once without a delay.
        doubt_empty_start: delay an empty list too when nothing was known before.
    """

    def __init__(self, settle_s: float, share: float, *, doubt_empty_start: bool = False) -> None:
        self._settle_s = settle_s
        self._share = share
        self._doubt_empty_start = doubt_empty_start
        self._listed: Mapping[Key, Value] | None = None
        self._believed: dict[Key, Value] | None = None
        self._first_of_session = True
        self._until: float | None = None

    @property
    def believed(self) -> dict[Key, Value] | None:
        """Return the list in force; None while there is none."""
        return self._believed

    @property
    def waits(self) -> int:
        """Return the number of delayed removals."""
        if self._until is None:
            return 0
        return len((self._believed or {}).keys() - (self._listed or {}).keys())

    @property
    def settles_at(self) -> float | None:
        """Return when the hold-down ends; None when none runs."""
        return self._until

    def begin_session(self) -> None:
        """Record that the connection is a new one."""
        self._first_of_session = True

    def apply(self, listed: Mapping[Key, Value], now: float) -> None:
        """Apply a list."""
        first, self._first_of_session = self._first_of_session, False
        self._listed = listed
        missing = len((self._believed or {}).keys() - listed.keys())
        if first:
            self._until = now + self._settle_s if self._is_doubtful(listed, missing) else None
        elif not missing and (listed or self._believed is not None):
            self._until = None
        self._settle(now)

    def expire(self, now: float) -> None:
        """Apply the delayed list when its time has come."""
        if self._listed is not None:
            self._settle(now)

    def drop(self, key: Key) -> None:
        """Apply one removal without further delay."""
        if self._believed is not None and self._listed is not None and key not in self._listed:
            self._believed.pop(key, None)

    def _is_doubtful(self, listed: Mapping[Key, Value], missing: int) -> bool:
        if self._believed is None:
            return self._doubt_empty_start and not listed
        return bool(missing) and (not listed or missing > self._share * len(self._believed))

    def _settle(self, now: float) -> None:
        assert self._listed is not None
        if self._until is not None and now > self._until + _LATE_S:
            self._until = now + _LATE_S
        if self._until is not None and now < self._until:
            if self._believed is not None:
                self._believed = {**self._listed, **{k: v for k, v in self._believed.items() if k not in self._listed}}
            return
        self._until = None
        self._believed = dict(self._listed)
