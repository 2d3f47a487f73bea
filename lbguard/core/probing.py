"""Schedule for verifying neighbour entries: every address once per interval, spread evenly over it."""

from lbguard.core.addr import Ip

_SLICES = 10
"""Few enough that waking up costs little beside the probes, many enough that no slice is a burst."""


class ProbeWheel:
    """Timer wheel that spreads addresses over the slices of an interval (seconds); one slice is due at a time."""

    def __init__(self, interval_s: float) -> None:
        self._step_s = interval_s / _SLICES
        self._slices: list[dict[Ip, None]] = [{} for _ in range(_SLICES)]
        self._slice_of: dict[Ip, int] = {}
        self._cursor = 0
        self._at = float("-inf")
        self._next_slice = 0

    def add(self, ip: Ip) -> None:
        """Probe an address from now on; one that is there already stays where it is."""
        if ip not in self._slice_of:
            self._slice_of[ip] = self._next_slice
            self._slices[self._next_slice][ip] = None
            # A stride coprime to the number of slices spreads few addresses over the whole interval.
            self._next_slice = (self._next_slice + 7) % _SLICES

    def remove(self, ip: Ip) -> None:
        """Stop probing an address."""
        index = self._slice_of.pop(ip, None)
        if index is not None:
            del self._slices[index][ip]

    def next(self, now: float) -> float | None:
        """Return when the next slice with anything in it is due; None while there is nothing or probing is off."""
        if not self._slice_of or self._step_s <= 0:
            return None
        if self._at == float("-inf"):
            self._at = now + self._step_s
        while not self._slices[self._cursor]:
            self._cursor = (self._cursor + 1) % _SLICES
            self._at += self._step_s
        return self._at

    def due(self, now: float) -> list[Ip]:
        """Return the addresses of one due slice and move on. After a stall nothing is made up for."""
        at = self.next(now)
        if at is None or at > now:
            return []
        ips = list(self._slices[self._cursor])
        self._cursor = (self._cursor + 1) % _SLICES
        self._at = max(at + self._step_s, now)
        return ips
