"""Comparison of desired and actual kernel objects: a pure structure that returns the changes to make.

It is level-triggered: it compares states, so a lost, repeated or reordered notification costs at most one idempotent
operation. A key is unmanaged until a value is desired for it, and an unmanaged key is never changed.
"""

from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Changes(NamedTuple, Generic[K, V]):
    """Values to put (add or replace) and keys to delete, in the order in which they became due."""

    put: list[V]
    delete: list[V]


class Delta(Generic[K, V]):
    """Desired and actual values by key, and the keys whose change has not been requested yet."""

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
        """Desire that a key has no value; when it has none, the key is unmanaged again."""
        self._desired[key] = None
        self._compare(key)

    def release(self, key: K) -> None:
        """Stop managing a key and leave its actual value unchanged."""
        self._desired.pop(key, None)
        self._due.pop(key, None)

    def satisfied(self, key: K) -> bool:
        """Return whether a managed key holds the desired value."""
        wanted = self._desired.get(key)
        return wanted is not None and self.actual.get(key) == wanted

    def saw(self, key: K, value: V) -> bool:
        """Record the actual value of a key; return whether it differs from the known one."""
        if self.actual.get(key) == value:
            return False
        self.actual[key] = value
        self._compare(key)
        return True

    def gone(self, key: K, value: V) -> bool:
        """Record that this value is gone (another value of the key stays); return whether it was known."""
        if self.actual.get(key) != value:
            return False
        del self.actual[key]
        self._compare(key)
        return True

    def replace_actual(self, actual: Mapping[K, V]) -> set[K]:
        """Replace all actual values by a full view; return the keys whose value changed."""
        before, self.actual = self.actual, dict(actual)
        changed = {key for key in before.keys() | actual.keys() if before.get(key) != actual.get(key)}
        for key in list(self._desired):
            self._compare(key)
        return changed

    def retry(self, key: K) -> None:
        """Request a key again if it still differs."""
        self._compare(key)

    def take_changes(self) -> Changes[K, V]:
        """Return the changes to make, each once; a key is returned again when its values change or on `retry`."""
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
