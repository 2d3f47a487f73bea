"""An oracle: what anyone who was told the same events has to believe, computed the slow and obvious way.

It shares no code with the core: every question is answered by a scan over all that was told.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lbguard.core import events as ev
from lbguard.core.addr import Ip, Prefix, is_ipv4, is_link_local, prefix_of
from lbguard.core.model import (
    ROUTE_METRIC,
    ROUTE_PROTOCOL,
    SOFT,
    Condition,
    NeighborState,
    Route,
    RouteKind,
    Rule,
)
from lbguard.core.observation import LOOK_S

_SILENT = (NeighborState.NONE, NeighborState.INCOMPLETE, NeighborState.FAILED)
_ORDER = list(Condition)


@dataclass(slots=True)
class BelievedLink:
    """A link as told; `order` says how new it is: a new MAC does not make it newer. The first view has no order."""

    seen: ev.LinkSeen
    order: int
    from_start: bool = False
    addresses: dict[tuple[Ip, int], bool] = field(default_factory=dict)
    failures: dict[Ip, int] = field(default_factory=dict)
    states: dict[Ip, NeighborState] = field(default_factory=dict)
    macs: dict[Ip, bytes] = field(default_factory=dict)
    confirmed_at: dict[Ip, float] = field(default_factory=dict)
    received: int | None = None
    received_at: float = float("-inf")

    def ready_in(self, subnet: Prefix) -> bool:
        return self.seen.up and any(
            usable and len(ip) == len(subnet.network) and prefix_of(ip, length) == subnet
            for (ip, length), usable in self.addresses.items()
        )


class Belief:
    """Believes what it is told. `failures_needed`: failed resolutions in a row that count as evidence."""

    def __init__(self, failures_needed: int, followed: Callable[[], set[Ip]]) -> None:
        self.links: dict[int, BelievedLink] = {}
        self.routes: dict[tuple[int, bool, int], Route] = {}
        self.foreign: dict[tuple[int, bool, int], Route] = {}
        self.rules: set[Rule] = set()
        self.in_sync = False
        # How often sync was gained: what came back unseen gets some time to be repaired.
        self.regained = 0
        self.failures_needed = failures_needed
        self._followed = followed
        self._order = 0
        self._viewed = False
        self._somebodys: set[tuple[int, Ip]] = set()
        self._owners: dict[Ip, BelievedLink | None] = {}
        self._now = 0.0

    def told(self, event: ev.Event, now: float) -> None:
        self._now = now
        self._owners.clear()
        handler: Any = getattr(self, f"_{type(event).__name__}", None)
        if handler is not None:
            handler(event)

    # Questions

    def owner(self, ip: Ip) -> BelievedLink | None:
        """Return the newest ready link of the longest subnet that holds an address and has such a link."""
        if ip not in self._owners:
            self._owners[ip] = self._find_owner(ip)
        return self._owners[ip]

    def _find_owner(self, ip: Ip) -> BelievedLink | None:
        lengths = {length for link in self.links.values() for own, length in link.addresses if len(own) == len(ip)}
        for length in sorted(lengths, reverse=True):
            subnet = prefix_of(ip, length)
            ready = [link for link in self.links.values() if link.ready_in(subnet)]
            if ready and not is_link_local(ip):
                return max(ready, key=lambda link: link.order)
        return None

    def holds(self, ifindex: int, mac: bytes, ip: Ip) -> bool:
        link = self.links.get(ifindex)
        if link is None or not link.seen.up or link.seen.mac != mac:
            return False
        return any(own == ip and usable for (own, _), usable in link.addresses.items())

    def path(self, mark: int, ip: Ip) -> Condition:
        """Return the condition of a path; every way of not having a link is NO_LINK here."""
        link = self.owner(ip)
        if link is None:
            return Condition.NO_LINK
        ipv4 = is_ipv4(ip)
        wanted = Route(mark, ipv4, RouteKind.UNICAST, ROUTE_METRIC, ip, link.seen.ifindex)
        foreign = self.foreign.get((mark, ipv4, ROUTE_METRIC))
        route = self.routes.get((mark, ipv4, ROUTE_METRIC))
        if foreign is not None:
            # What somebody else put in place of our route serves as well if it leads the same way.
            route = wanted if (foreign.gateway, foreign.oif) == (ip, link.seen.ifindex) else None
        if Rule(mark, ipv4, mark) not in self.rules or (route != wanted and not self._moving(route, ip)):
            return Condition.ROUTE_MISSING
        if link.failures.get(ip, 0) >= self.failures_needed:
            return Condition.NEIGHBOR_FAILED
        return Condition.OK

    def _moving(self, route: Route | None, ip: Ip) -> bool:
        """Tell whether a route that has to move to another link still forwards by the one that it leads through."""
        link = self.links.get(route.oif) if route else None
        if route is None or link is None or route.gateway != ip:
            return False
        return any(link.ready_in(prefix_of(ip, length)) for own, length in link.addresses if len(own) == len(ip))

    def target(self, mark: int, ips: tuple[Ip, ...], said_down: frozenset[Ip] = frozenset()) -> Condition:
        """Return the condition of a target: hard evidence of any path, or soft evidence of all of them.

        What reporters say is not weighed here: `said_down` are the addresses that they are taken to have down.
        """
        conditions = self._conditions(mark, ips, said_down)
        hard = [c for c in conditions if c is not Condition.OK and c not in SOFT]
        if hard or not conditions:
            return min(hard, key=_ORDER.index, default=Condition.NO_LINK)
        return min(conditions, key=_ORDER.index) if all(c in SOFT for c in conditions) else Condition.OK

    def one_family_lost(self, mark: int, ips: tuple[Ip, ...], said_down: frozenset[Ip], *, pardoned: bool) -> bool:
        """Tell whether a target is broken and one of its paths forwards; `pardoned`: soft evidence is disbelieved."""
        conditions = self._conditions(mark, ips, said_down)
        forwards = any(c is Condition.OK or (pardoned and c in SOFT) for c in conditions)
        return forwards and any(c is not Condition.OK and c not in SOFT for c in conditions)

    def _conditions(self, mark: int, ips: tuple[Ip, ...], said_down: frozenset[Ip]) -> list[Condition]:
        return [
            Condition.VERDICT_DOWN if ip in said_down and c in (Condition.OK, Condition.NEIGHBOR_FAILED) else c
            for ip, c in zip(ips, (self.path(mark, ip) for ip in ips), strict=True)
        ]

    def proof_at(self, ip: Ip, *, packets: bool) -> float:
        """Return when an address last proved that it can be reached; `packets`: any that its link received count."""
        link = self.owner(ip)
        assert link is not None
        proof = link.confirmed_at.get(ip, float("-inf"))
        return max(proof, link.received_at) if packets and not link.failures.get(ip) else proof

    def our_end(self, ip: Ip) -> Ip | None:
        """Return our address on the link to an address, in its subnet."""
        link = self.owner(ip)
        ends = (
            []
            if link is None
            else [
                own
                for (own, length), usable in link.addresses.items()
                if usable and len(own) == len(ip) and prefix_of(own, length) == prefix_of(ip, length)
            ]
        )
        return ends[0] if ends else None

    def superseded(self, ifindex: int) -> bool:
        link = self.links[ifindex]
        subnets = self._subnets(link)
        return bool(subnets) and all(self._newer(link, subnet) for subnet in subnets)

    def answered(self, ifindex: int) -> bool:
        """Tell whether, in every subnet of a link with targets in it, one of them answered a newer link."""
        link = self.links[ifindex]
        for subnet in self._subnets(link):
            ips = [
                ip
                for ip in self._followed()
                if len(ip) == len(subnet.network) and prefix_of(ip, subnet.length) == subnet
            ]
            if ips and not any(ip in other.confirmed_at for other in self._newer(link, subnet) for ip in ips):
                return False
        return True

    def _newer(self, link: BelievedLink, subnet: Prefix) -> list[BelievedLink]:
        others = self.links.values()
        return [o for o in others if o.order > link.order and not o.from_start and o.ready_in(subnet)]

    @staticmethod
    def _subnets(link: BelievedLink) -> set[Prefix]:
        return {prefix_of(ip, length) for ip, length in link.addresses if not is_link_local(ip)}

    def made_by_somebody(self, ifindex: int, ip: Ip) -> bool:
        return (ifindex, ip) in self._somebodys

    # What is told

    def _LinkSeen(self, event: ev.LinkSeen) -> None:  # noqa: N802
        if event.name == "lo":
            return
        link = self.links.get(event.ifindex)
        if link is None:
            self._order += 1
            self.links[event.ifindex] = BelievedLink(event, self._order, from_start=not self._viewed)
            return
        if link.seen.admin_up and not event.admin_up:
            self._lose_routes(event.ifindex)
            self._forget_neighbors(link)
        if link.seen.mac != event.mac:
            link.received, link.received_at = None, float("-inf")
            self._forget_neighbors(link)
        link.seen = event

    def _LinkGone(self, event: ev.LinkGone) -> None:  # noqa: N802
        self._somebodys = {entry for entry in self._somebodys if entry[0] != event.ifindex}
        if self.links.pop(event.ifindex, None) is not None:
            self._lose_routes(event.ifindex)

    def _AddressSeen(self, event: ev.AddressSeen) -> None:  # noqa: N802
        if event.ifindex in self.links:
            self.links[event.ifindex].addresses[event.ip, event.prefix_length] = event.usable

    def _AddressGone(self, event: ev.AddressGone) -> None:  # noqa: N802
        if event.ifindex in self.links:
            self.links[event.ifindex].addresses.pop((event.ip, event.prefix_length), None)

    def _NeighborSeen(self, event: ev.NeighborSeen) -> None:  # noqa: N802
        self._neighbor_told(event, failed=event.state in (NeighborState.FAILED, NeighborState.INCOMPLETE))

    def _neighbor_told(self, event: ev.NeighborSeen, *, failed: bool) -> None:
        (self._somebodys.add if event.foreign else self._somebodys.discard)((event.ifindex, event.ip))
        link = self.links.get(event.ifindex)
        if link is None or event.ip not in self._followed():
            return
        link.states[event.ip] = event.state
        if failed:
            link.failures[event.ip] = link.failures.get(event.ip, 0) + 1
        elif event.state not in _SILENT:
            link.failures[event.ip] = 0
            link.macs[event.ip] = event.mac or link.macs.get(event.ip, b"")
            if event.state is NeighborState.REACHABLE:
                link.confirmed_at[event.ip] = self._now

    def _NeighborGone(self, event: ev.NeighborGone) -> None:  # noqa: N802
        self._somebodys.discard((event.ifindex, event.ip))
        link = self.links.get(event.ifindex)
        if link is not None and event.ip in link.states:
            link.states[event.ip] = NeighborState.NONE

    def _TrafficSeen(self, event: ev.TrafficSeen) -> None:  # noqa: N802
        link = self.links.get(event.ifindex)
        if link is not None:
            if link.received is not None and event.rx_packets > link.received:
                link.received_at = self._now
            link.received = event.rx_packets

    def _RouteSeen(self, event: ev.RouteSeen) -> None:  # noqa: N802
        route = event.route
        slot = (route.table, route.ipv4, route.metric)
        if route.protocol == ROUTE_PROTOCOL:
            self.routes[slot] = route
            self.foreign.pop(slot, None)
        else:
            self.foreign[slot] = route

    def _RouteGone(self, event: ev.RouteGone) -> None:  # noqa: N802
        slot = (event.route.table, event.route.ipv4, event.route.metric)
        for kept in (self.routes, self.foreign):
            if kept.get(slot) == event.route:
                del kept[slot]

    def _RuleSeen(self, event: ev.RuleSeen) -> None:  # noqa: N802
        self.rules.add(event.rule)

    def _RuleGone(self, event: ev.RuleGone) -> None:  # noqa: N802
        self.rules.discard(event.rule)

    def _RoutesProgrammed(self, event: ev.RoutesProgrammed) -> None:  # noqa: N802
        for route in event.deleted:
            self._RouteGone(ev.RouteGone(route=route))
        for route in event.added:
            self._RouteSeen(ev.RouteSeen(route=route))

    def _Stalled(self, event: ev.Stalled) -> None:  # noqa: N802
        for link in self.links.values():
            link.received_at += event.duration_s - LOOK_S
            link.confirmed_at = {ip: at + event.duration_s - LOOK_S for ip, at in link.confirmed_at.items()}
        self.regained += self.in_sync

    def _KernelOutOfSync(self, event: ev.KernelOutOfSync) -> None:  # noqa: N802
        self.in_sync = False

    def _KernelSnapshot(self, event: ev.KernelSnapshot) -> None:  # noqa: N802
        if not self.in_sync:
            self.regained += 1
        self.in_sync = True
        before, self.links = self.links, {}
        for seen in sorted(event.links, key=lambda link: link.ifindex):
            if seen.ifindex in before:
                self.links[seen.ifindex] = before[seen.ifindex]
            self._LinkSeen(seen)
        self._viewed = True
        self._somebodys.clear()
        for link in self.links.values():
            link.addresses.clear()
        for address in event.addresses:
            self._AddressSeen(address)
        dumped = {(n.ifindex, n.ip) for n in event.neighbors}
        for link in self.links.values():
            for ip in link.states:
                if (link.seen.ifindex, ip) not in dumped:
                    link.states[ip] = NeighborState.NONE
        for neighbor in event.neighbors:
            known = self.links.get(neighbor.ifindex)
            if known is None:
                continue
            moved = neighbor.mac not in (b"", known.macs.get(neighbor.ip, b""))
            if neighbor.foreign or known.states.get(neighbor.ip) is not neighbor.state or moved:
                self._neighbor_told(neighbor, failed=neighbor.state is NeighborState.FAILED)
        self.foreign = {(r.table, r.ipv4, r.metric): r for r in event.routes if r.protocol != ROUTE_PROTOCOL}
        self.routes = {(r.table, r.ipv4, r.metric): r for r in event.routes if r.protocol == ROUTE_PROTOCOL}
        self.rules = {rule for rule in event.rules if rule.protocol == ROUTE_PROTOCOL}

    def _SourceSnapshot(self, event: ev.SourceSnapshot) -> None:  # noqa: N802
        self.forget_others()

    def forget_others(self) -> None:
        """Forget the neighbours that are not targets any more."""
        followed = self._followed()
        for link in self.links.values():
            for kept in (link.states, link.failures, link.macs, link.confirmed_at):
                for ip in kept.keys() - followed:
                    kept.pop(ip)

    def _forget_neighbors(self, link: BelievedLink) -> None:
        for kept in (link.failures, link.states, link.macs, link.confirmed_at):
            kept.clear()

    def _lose_routes(self, ifindex: int) -> None:
        self.routes = {slot: route for slot, route in self.routes.items() if route.oif != ifindex}
