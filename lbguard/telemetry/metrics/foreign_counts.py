"""Counters that follow counts of another part (the kernel, an adapter)."""


class ForeignCounts:
    """Converter of readings of a growing foreign count into increments; a smaller reading means a restart at 0."""

    def __init__(self) -> None:
        self._last: dict[object, int] = {}

    def grown(self, key: object, reading: int) -> int:
        """Return by how much a count grew since its last reading."""
        last = self._last.get(key, 0)
        self._last[key] = reading
        return reading - last if reading >= last else reading

    def forget(self, key: object) -> None:
        """Forget a count; its next reading counts from 0."""
        self._last.pop(key, None)
