"""Desired against actual, for things that stand in the kernel: a pure structure that says what has to change.

Level-triggered: it compares states, so a lost, repeated or reordered notification costs at most one idempotent
operation. A key is unmanaged until something is desired for it, and nothing unmanaged is ever touched.
"""

from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Changes(NamedTuple, Generic[K, V]):
    """Values to put (add or replace) and keys to delete, each in the order in which it became due."""

    put: list[V]
    delete: list[V]


class Delta(Generic[K, V]):
    """Desired and actual values by key, and the keys whose difference has not been requested yet."""

    def __init__(self) -> None:
        self.actual: dict[K, V] = {}
        self._desired: dict[K, V | None] = {}
        self._due: dict[K, None] = {}

    def want(self, key: K, value: V) -> None:
        """Desire a value for a key."""
        if self._desired.get(key) != value:
            self._desired[key] = value
            self._compare(key)

    def want_absent(self, key: K) -> None:
        """Desire that a key has no value; once that is so, the key is unmanaged again."""
        self._desired[key] = None
        self._compare(key)

    def release(self, key: K) -> None:
        """Stop managing a key and leave what exists as it is."""
        self._desired.pop(key, None)
        self._due.pop(key, None)

    def satisfied(self, key: K) -> bool:
        """Return whether a managed key holds the desired value."""
        wanted = self._desired.get(key)
        return wanted is not None and self.actual.get(key) == wanted

    def saw(self, key: K, value: V) -> bool:
        """Note the actual value of a key; return whether that is news."""
        if self.actual.get(key) == value:
            return False
        self.actual[key] = value
        self._compare(key)
        return True

    def gone(self, key: K, value: V) -> bool:
        """Note that this very value is gone (another value under the key stays); return whether that is news."""
        if self.actual.get(key) != value:
            return False
        del self.actual[key]
        self._compare(key)
        return True

    def replace_actual(self, actual: Mapping[K, V]) -> set[K]:
        """Apply a full view in place of all that was known; return the keys that differ from before."""
        before, self.actual = self.actual, dict(actual)
        changed = {key for key in before.keys() | actual.keys() if before.get(key) != actual.get(key)}
        for key in list(self._desired):
            self._compare(key)
        return changed

    def retry(self, key: K) -> None:
        """Request a key again if it still differs."""
        self._compare(key)

    def take_changes(self) -> Changes[K, V]:
        """Return what has to change, once; a key comes again when its comparison changes or on `retry`."""
        changes: Changes[K, V] = Changes([], [])
        for key in self._due:
            wanted = self._desired.get(key)
            if wanted is not None:
                changes.put.append(wanted)
            elif key in self.actual:
                changes.delete.append(self.actual[key])
        self._due.clear()
        return changes

    def _compare(self, key: K) -> None:
        if key not in self._desired:
            return
        wanted = self._desired[key]
        if self.actual.get(key) == wanted:
            self._due.pop(key, None)
            if wanted is None:
                del self._desired[key]
        else:
            self._due[key] = None
