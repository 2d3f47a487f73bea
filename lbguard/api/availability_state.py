"""Availability of this load balancer, made of the availability of its streams."""

import asyncio
from collections.abc import AsyncIterator, Iterable


class AvailabilityState:
    """The availability of the whole, made of that of each stream. For one thread."""

    def __init__(self) -> None:
        self._streams: dict[str, bool] = {}
        self._names: set[str] | None = None
        self._stopped = False
        self._changed = asyncio.Event()
        self.value: bool | None = None
        """True if the load balancer can forward; None while that is not known."""

    def set(self, stream: str, available: bool) -> None:
        """Take the state of one stream (effect SetAvailability)."""
        self._streams[stream] = available
        self._update()

    def retain(self, streams: Iterable[str]) -> None:
        """Record the complete list of streams: others are removed, and unknown ones are waited for."""
        self._names = names = set(streams)
        self._streams = {name: available for name, available in self._streams.items() if name in names}
        self._update()

    def stop(self) -> None:
        """Become unavailable for good."""
        self._stopped = True
        self._update()

    async def changes(self) -> AsyncIterator[bool]:
        """Yield the state once it is known, and each time that it differs from the last yielded one.

        A slow watcher gets only the newest state.
        """
        reported: bool | None = None
        while True:
            changed, value = self._changed, self.value
            if value is None or value is reported:
                await changed.wait()
            else:
                reported = value
                yield value

    def _update(self) -> None:
        value: bool | None = None
        if self._stopped:
            value = False
        elif any(self._streams.values()):
            value = True
        elif self._names is not None and self._names <= self._streams.keys():
            value = False
        elif self.value is not None:
            # A stream came that is not known yet; that alone takes nothing back.
            value = self.value
        if value is not self.value:
            self.value = value
            self._changed.set()
            self._changed = asyncio.Event()
