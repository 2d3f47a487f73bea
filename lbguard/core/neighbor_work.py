"""Work on the targets' neighbour (ARP, NDP) entries: flush, resolve, solicit, verify, tune.

Only entries that the kernel learned itself are changed: each of these requests would turn another program's entry into
one of the kernel's own (net/core/neighbour.c, __neigh_update). In `observe` mode no request is made.

On a new link the kernel sends one solicitation at once and then one every retransmission time. That is too slow: the
peer's port often forwards only a few milliseconds after our link is up, so the first solicitation is lost; and for IPv6
the kernel sends none before the link-local address has passed duplicate address detection, up to two seconds. So
lbguard solicits unresolved addresses itself, from its usable address on the link, at growing intervals.
"""

from collections.abc import Iterable

from lbguard.core.addr import Ip, Prefix
from lbguard.core.config import EngineConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.effects import (
    Effect,
    FlushNeighbors,
    ProbeNeighbors,
    ResolveNeighbors,
    SolicitNeighbors,
    TuneLink,
)
from lbguard.core.link import Link
from lbguard.core.model import LinkKey, NeighborState
from lbguard.core.neighbor_answers import NeighborAnswers
from lbguard.core.netview import NetView

_SLICES = 10
"""Number of slices: few enough that timers cost little beside the probes, enough that no slice is a burst."""


class ProbeWheel:
    """Timer wheel that spreads addresses over the slices of an interval (seconds); one slice is due at a time.

    `quick_s`: a shorter interval, for as many addresses as `_QUICK_PROBES_PER_S` allows.
    """

    def __init__(self, interval_s: float, quick_s: float = 0.0) -> None:
        self._interval_s = interval_s
        self._quick_s = quick_s
        self._slices: list[dict[Ip, None]] = [{} for _ in range(_SLICES)]
        self._slice_of: dict[Ip, int] = {}
        self._cursor = 0
        self._at = float("-inf")
        self._next_slice = 0

    @property
    def _step_s(self) -> float:
        if not self._quick_s:
            return self._interval_s / _SLICES
        return min(self._interval_s, max(self._quick_s, len(self._slice_of) / _QUICK_PROBES_PER_S)) / _SLICES

    def set_interval(self, interval_s: float) -> None:
        """Probe at another interval from now on; the next slice is due one step later."""
        self._interval_s = interval_s
        self._at = float("-inf")

    def add(self, ip: Ip) -> None:
        """Probe an address from now on; a known address keeps its slice."""
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
        """Return when the next non-empty slice is due; None when there is none or probing is off."""
        if not self._slice_of or self._step_s <= 0:
            return None
        if self._at == float("-inf"):
            self._at = now + self._step_s
        while not self._slices[self._cursor]:
            self._cursor = (self._cursor + 1) % _SLICES
            self._at += self._step_s
        return self._at

    def due(self, now: float) -> list[Ip]:
        """Return the addresses of one due slice and advance. Slices missed in a stall are skipped."""
        at = self.next(now)
        if at is None or at > now:
            return []
        ips = list(self._slices[self._cursor])
        self._cursor = (self._cursor + 1) % _SLICES
        self._at = max(at + self._step_s, now)
        return ips


_QUICK_S = 0.2
"""With parking an address is verified this often: before the first retransmissions of most connections are lost."""
_QUICK_PROBES_PER_S = 400
"""More addresses are verified less often, so that the cost does not grow with their number."""

PAUSES_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
"""Pauses before each solicitation, from the previous one (the first from the link's arrival)."""

SETTLES_S = 0.25
"""Time in which the other end of a new link may send to the link-layer address of the earlier one. It learns the new
one from our announcements: the first may be lost, and the second comes 0.1 s later."""
ANSWER_AWAITED_S = 3.0
"""An address that did not answer for so long after its link arrived gets new flows too: the link may need no neighbour
entries."""

_PER_ROUND = 512
_SILENT_PAUSE_S = 0.1
_SILENT_S = 15.0
"""An address that stopped answering is solicited this often, for this time; the kernel does it more slowly."""
_SILENT_PER_S = 1000
"""With more such addresses, each is solicited less often."""


class NeighborSolicitation:
    """Addresses to solicit, each on one incarnation of a link."""

    def __init__(self) -> None:
        self._due: Deadlines[tuple[LinkKey, Ip]] = Deadlines()
        self._asked: dict[tuple[LinkKey, Ip], int] = {}
        self._silent_until: dict[tuple[LinkKey, Ip], float] = {}

    def begin_silent(self, link: LinkKey, ip: Ip, now: float) -> None:
        """Start soliciting an address that stopped answering, and whose packets are kept meanwhile."""
        self.begin(link, ip, now)
        self._silent_until[link, ip] = now + _SILENT_S

    def begin(self, link: LinkKey, ip: Ip, now: float) -> None:
        """Start (or restart) soliciting an address."""
        self._asked[link, ip] = 0
        self._due.set((link, ip), now + PAUSES_S[0])

    def end(self, link: LinkKey, ip: Ip) -> None:
        """Stop soliciting an address."""
        self._silent_until.pop((link, ip), None)
        if self._asked.pop((link, ip), None) is not None:
            self._due.cancel((link, ip))

    def take_due(self, now: float) -> list[tuple[LinkKey, Ip]]:
        """Return the addresses to solicit now. Each is due again after its next pause, until `end`."""
        due = self._due.pop_due(now, _PER_ROUND)
        for key in due:
            asked = self._asked[key] + 1
            silent_until = self._silent_until.get(key, 0.0)
            if now < silent_until:
                pause_s = max(_SILENT_PAUSE_S, len(self._silent_until) / _SILENT_PER_S)
                self._asked[key] = min(asked, len(PAUSES_S) - 1)
                self._due.set(key, now + min(PAUSES_S[self._asked[key]], pause_s))
            elif asked < len(PAUSES_S):
                self._asked[key] = asked
                self._due.set(key, now + PAUSES_S[asked])
            else:
                self.end(*key)
        return due

    def next(self) -> float | None:
        """Return when the next address is due."""
        return self._due.next()


_UNKNOWN = (NeighborState.NONE, NeighborState.FAILED)
_UNRESOLVED = (*_UNKNOWN, NeighborState.INCOMPLETE)


def our_address(link: Link, subnet: Prefix | None, known: Ip = b"") -> Ip:
    """Return our usable address on a link in a subnet, the previous one while it exists; empty when there is none."""
    return known if known in link.ready else link.our_address(subnet)


class NeighborWork:
    """Collects neighbour work until `take_flushes` and `take_rest` return it."""

    def __init__(self, config: EngineConfig, view: NetView) -> None:
        self._config = config
        self._view = view
        quick_s = _QUICK_S if config.parking else 0.0
        self._wheel = ProbeWheel(0.0 if config.observe else config.neighbor_probe_interval_s, quick_s)
        self._answers = NeighborAnswers(view)
        self._solicitation = NeighborSolicitation()
        self._settling: Deadlines[tuple[LinkKey, Ip]] = Deadlines()
        self._awaited: Deadlines[tuple[LinkKey, Ip]] = Deadlines()
        self._flush: dict[tuple[int, Ip], None] = {}
        self._resolve: dict[tuple[int, Ip], None] = {}
        self._tuned: dict[int, LinkKey] = {}
        self._to_tune: list[Link] = []

    def configure(self, config: EngineConfig) -> None:
        """Use another configuration from now on."""
        if config.neighbor_probe_interval_s != self._config.neighbor_probe_interval_s and not config.observe:
            self._wheel.set_interval(config.neighbor_probe_interval_s)
        self._config = config

    def follow(self, ip: Ip) -> None:
        """Verify an address from time to time from now on."""
        self._wheel.add(ip)

    def unfollow(self, ip: Ip) -> None:
        """Stop verifying an address, and leave its entries unchanged from now on."""
        self._wheel.remove(ip)
        self._answers.forget(ip)
        for pending in (self._flush, self._resolve):
            for entry in [entry for entry in pending if entry[1] == ip]:
                del pending[entry]

    def probed(self, entries: tuple[tuple[int, Ip], ...], now: float) -> None:
        """Await the answers of entries that the kernel was asked to verify."""
        self._answers.probed(entries, now)

    def stalled(self, duration_s: float) -> None:
        """Await answers for longer: they may have arrived unread."""
        self._answers.stalled(duration_s)

    def entries_of(self, ips: tuple[Ip, ...], new_mac: bytes = b"") -> list[tuple[int, Ip]]:
        """Return the entries of target addresses that hold a link-layer address other than `new_mac`, on any link."""
        return [
            (link.ifindex, ip)
            for ip in dict.fromkeys(ips)
            if self._view.follows(ip)
            for link in self._view.links.values()
            if (neighbor := link.neighbors.get(ip)) is not None
            and neighbor.state not in _UNRESOLVED
            and neighbor.mac not in (b"", new_mac)
        ]

    def outdated(self, entries: list[tuple[int, Ip]]) -> None:
        """Flush and resolve exactly these entries."""
        if not self._config.observe:
            self._flush.update(dict.fromkeys(entries))
            self._resolve.update(dict.fromkeys(entries))

    def family_back(self, ifindex: int) -> None:
        """Set the timers of a link again that had lost IPv4 or IPv6 (an MTU below 1280 removes IPv6)."""
        link = self._view.links.get(ifindex)
        if link is not None and self._tuned.get(ifindex) == link.key and link not in self._to_tune:
            self._to_tune.append(link)

    def arrived(self, link: Link, ip: Ip, now: float, *, before: LinkKey | None) -> None:
        """Act on a link that took over a path: resolve the neighbour at once, flush entries from before a loss.

        `before` is the link that the path had, None for a path that is new.
        """
        if self._config.observe:
            return
        entry = (link.ifindex, ip)
        if before is not None and self._config.affinity:
            self._settling.set((link.key, ip), now + SETTLES_S)
        # With parking, packets of a target that an earlier run held wait for the answer too.
        if self._config.parking or (before is not None and self._config.affinity):
            self._awaited.set((link.key, ip), now + ANSWER_AWAITED_S)
        if before == link.key and ip in link.neighbors and link.neighbors[ip].mac:
            self._flush[entry] = None
        self._resolve[entry] = None
        if self._config.solicit_neighbors:
            self._solicitation.begin(link.key, ip, now)
        if self._tuned.get(link.ifindex) != link.key:
            self._tuned[link.ifindex] = link.key
            if link not in self._to_tune:
                self._to_tune.append(link)

    def unanswered(self, link: Link, ip: Ip) -> bool:
        """Return whether an address may not answer on a link that arrived, or did not when it was resolved last."""
        return self._settling.get((link.key, ip)) is not None or self.unresolved(link, ip)

    def unresolved(self, link: Link, ip: Ip) -> bool:
        """Return whether an address has not answered on a link that arrived, or did not when it was resolved last."""
        awaited = self._awaited.get((link.key, ip)) is not None
        return self._view.neighbor_unanswered(link, ip, awaited=awaited)

    def expire(self, now: float) -> dict[Ip, None]:
        """Return the addresses on a link that arrived for which a time to wait is over.

        Addresses whose answer became overdue are solicited from now on.
        """
        for key, ip in self._answers.take_overdue(now):
            self._view.set_overdue(self._view.links[key.ifindex], ip)
            if self._config.solicit_neighbors:
                self._solicitation.begin_silent(key, ip, now)
        return dict.fromkeys(ip for due in (self._settling, self._awaited) for _, ip in due.pop_due(now))

    def next(self, now: float) -> float | None:
        """Return when neighbour work is due next."""
        moments = (
            self._wheel.next(now),
            self._solicitation.next(),
            self._settling.next(),
            self._awaited.next(),
            self._answers.next(),
        )
        return min((moment for moment in moments if moment is not None), default=None)

    def take_flushes(self) -> list[Effect]:
        """Return the effects that precede the routes: flushes of outdated entries."""
        entries = self._ours(self._flush)
        self._flush.clear()
        return [FlushNeighbors(entries=entries)] if entries else []

    def take_rest(self, now: float) -> list[Effect]:
        """Return the effects that follow the routes."""
        tuned = self._to_tune if self._config.tune_neighbors else ()
        effects: list[Effect] = [TuneLink(link=link.key, ifname=link.name) for link in tuned]
        probe = self._probe_due(now)
        resolve = self._ours(self._resolve)
        if resolve:
            effects.append(ResolveNeighbors(entries=resolve))
        effects += self._solicit_due(now)
        if probe:
            effects.append(ProbeNeighbors(entries=tuple(probe)))
        self._resolve.clear()
        self._to_tune.clear()
        return effects

    def _ours(self, entries: Iterable[tuple[int, Ip]]) -> tuple[tuple[int, Ip], ...]:
        """Return the entries that the kernel learned itself."""
        return tuple(entry for entry in entries if not self._view.foreign_neighbor(*entry))

    def _probe_due(self, now: float) -> list[tuple[int, Ip]]:
        """Return the entries to verify now; entries that the kernel does not have are resolved instead."""
        probe = []
        locate, foreign = self._view.locate, self._view.foreign_neighbor
        for ip in self._wheel.due(now):
            link = locate(ip)[0]
            if link is None:
                continue
            entry = (link.ifindex, ip)
            if foreign(*entry):
                continue
            neighbor = link.neighbors.get(ip)
            if neighbor is None or neighbor.state in _UNKNOWN:
                self._resolve[entry] = None
            elif neighbor.state != NeighborState.INCOMPLETE:
                probe.append(entry)
                if self._config.parking:
                    self._answers.asking(link.key, ip, now)
        return probe

    def _solicit_due(self, now: float) -> list[Effect]:
        """Return the solicitations that are due, one effect per link; resolved or moved addresses are left out."""
        pairs: dict[LinkKey, list[tuple[Ip, Ip]]] = {}
        for key, ip in self._solicitation.take_due(now):
            link, subnet, _ = self._view.locate(ip) if self._view.follows(ip) else (None, None, None)
            neighbor = link.neighbors.get(ip) if link else None
            resolved = neighbor is not None and neighbor.state not in _UNRESOLVED and not neighbor.overdue
            if link is None or link.key != key or resolved or self._view.foreign_neighbor(link.ifindex, ip):
                self._solicitation.end(key, ip)
                continue
            source = our_address(link, subnet)
            if source:
                pairs.setdefault(key, []).append((source, ip))
        links = self._view.links
        return [
            SolicitNeighbors(link=key, mac=links[key.ifindex].mac, pairs=tuple(found)) for key, found in pairs.items()
        ]
