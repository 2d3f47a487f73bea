"""Solicitation of unresolved neighbours on a new link: which addresses, and when to ask again.

The kernel asks once at once and then every retransmission time, too slowly for what happens here: the peer's port often
forwards a few milliseconds after our link is up, so the first question is lost; and for IPv6 the kernel asks nothing at
all before the link-local address has passed duplicate address detection, up to two seconds. So what is unresolved is
asked for in our own name, from our usable address on the link, at growing intervals.
"""

from lbguard.core.addr import Ip
from lbguard.core.deadlines import Deadlines
from lbguard.core.model import LinkKey

PAUSES_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
"""Pauses before each question, counted from the one before (the first from the link's arrival)."""

_PER_ROUND = 512


class NeighborSolicitation:
    """Addresses to solicit, each on one incarnation of a link."""

    def __init__(self) -> None:
        self._due: Deadlines[tuple[LinkKey, Ip]] = Deadlines()
        self._asked: dict[tuple[LinkKey, Ip], int] = {}

    def begin(self, link: LinkKey, ip: Ip, now: float) -> None:
        """Start (or restart) soliciting an address."""
        self._asked[link, ip] = 0
        self._due.set((link, ip), now + PAUSES_S[0])

    def end(self, link: LinkKey, ip: Ip) -> None:
        """Stop soliciting an address."""
        if self._asked.pop((link, ip), None) is not None:
            self._due.cancel((link, ip))

    def take_due(self, now: float) -> list[tuple[LinkKey, Ip]]:
        """Return the addresses to solicit now. Each comes again after its next pause, until `end`."""
        due = self._due.pop_due(now, _PER_ROUND)
        for key in due:
            asked = self._asked[key] + 1
            if asked < len(PAUSES_S):
                self._asked[key] = asked
                self._due.set(key, now + PAUSES_S[asked])
            else:
                del self._asked[key]
        return due

    def next(self) -> float | None:
        """Return when the next address is due."""
        return self._due.next()
