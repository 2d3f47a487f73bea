"""Answers of neighbours that the kernel was asked to verify. Pure.

The kernel needs a second to find out that a neighbour does not answer. A living one answers within milliseconds. With
parking, packets to a neighbour whose answer is overdue are kept instead of sent to a link-layer address at which it may
not be any more: at worst they are late by the rest of a slow answer.
"""

from collections.abc import Sequence

from lbguard.core.addr import Ip
from lbguard.core.deadlines import Deadlines
from lbguard.core.model import LinkKey
from lbguard.core.netview import NetView

ANSWER_S = 0.05
"""An answer later than this is overdue."""
_LATE_S = 0.02
"""An observer that is this late itself reads what has arrived meanwhile, before it calls an answer overdue."""

_Asked = tuple[LinkKey, Ip]


class NeighborAnswers:
    """Entries that are being verified, and what is known of their answers."""

    def __init__(self, view: NetView) -> None:
        self._view = view
        self._asked_at: dict[_Asked, float] = {}
        self._due: Deadlines[_Asked] = Deadlines()

    def asking(self, link: LinkKey, ip: Ip, now: float) -> None:
        """Note that the request to verify an entry is made now."""
        self._asked_at[link, ip] = now

    def probed(self, entries: Sequence[tuple[int, Ip]], now: float) -> None:
        """Await the answers of these entries (ifindex, address): the kernel has got the request."""
        for ifindex, ip in entries:
            link = self._view.links.get(ifindex)
            if link is not None and (link.key, ip) in self._asked_at and not self._answered((link.key, ip)):
                self._due.set((link.key, ip), now + ANSWER_S)

    def forget(self, ip: Ip) -> None:
        """Forget an address that no target has any more."""
        for asked in [asked for asked in self._asked_at if asked[1] == ip]:
            del self._asked_at[asked]
            self._due.cancel(asked)

    def stalled(self, duration_s: float) -> None:
        """Move what is awaited by the duration of a stall."""
        self._due.shift(duration_s)

    def next(self) -> float | None:
        """Return when an answer is overdue next."""
        return self._due.next()

    def take_overdue(self, now: float) -> list[_Asked]:
        """Return the entries whose answer became overdue, on links that are still there."""
        overdue: list[_Asked] = []
        first = self._due.next()
        if first is None or first > now:
            return overdue
        for at, asked in self._due.in_order():
            if at > now:
                break
            if now - at > _LATE_S:
                self._due.set(asked, now + _LATE_S)
                continue
            self._due.cancel(asked)
            if not self._answered(asked):
                overdue.append(asked)
        return overdue

    def _answered(self, asked: _Asked) -> bool:
        """Return whether a neighbour proved since it was asked that it is there, or cannot prove it any more."""
        key, ip = asked
        link = self._view.links.get(key.ifindex)
        neighbor = link.neighbors.get(ip) if link is not None and link.key == key else None
        return neighbor is None or not neighbor.resolved or neighbor.confirmed_at >= self._asked_at[asked]
