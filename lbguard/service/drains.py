"""Watch over draining targets: which of them got no packet for `drain.idle`. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Drain:
    packets: int
    since: float
    reported: bool = False


class DrainWatch:
    """Compares readings of the packet counts of draining targets, which are known by their marks.

    The time without a packet begins with the first reading of a drain, and anew whenever a count changes, also when
    the counts were reset.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._drains: dict[int, _Drain] = {}

    def configure(self, idle_s: float) -> None:
        """Use another time from now on, also for the drains that go on."""
        self._idle_s = idle_s

    def observe(self, marks: Iterable[int], packets: Mapping[int, int], now: float) -> tuple[int, ...]:
        """Record a reading, and return the marks that are idle for long enough now, each once.

        `marks`: the targets that drain now. `packets`: the counts; a target that is not counted is never idle.
        """
        before, self._drains = self._drains, {}
        idle = []
        for mark in marks:
            if mark not in packets:
                continue
            drain = before.get(mark)
            if drain is None or drain.packets != packets[mark]:
                drain = _Drain(packets[mark], now)
            elif not drain.reported and now - drain.since >= self._idle_s:
                drain.reported = True
                idle.append(mark)
            self._drains[mark] = drain
        return tuple(idle)
