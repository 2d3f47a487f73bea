"""A small working model of the kernel's network state, with the habits that matter to the guard.

IPv4 routes vanish with their link without a word; IPv6 routes are told one by one. Setting a link down removes its
IPv6 addresses and keeps the IPv4 ones. An IPv6 address is tentative at first. An ifindex may be used again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from lbguard.core.addr import Ip, is_ipv4, prefix_of
from lbguard.core.events import (
    AddressGone,
    AddressSeen,
    KernelChange,
    KernelSnapshot,
    LinkGone,
    LinkSeen,
    NeighborGone,
    NeighborSeen,
    RouteGone,
    RouteSeen,
    RuleGone,
    RuleSeen,
)
from lbguard.core.model import ROUTE_PROTOCOL, NeighborState, Route, RouteKind, Rule

RouteSlot = tuple[int, bool, int]


@dataclass(slots=True)
class SimLink:
    """One link. `addresses`: (address, prefix length) to whether it is usable; `lost`: those that setting down took."""

    ifindex: int
    name: str
    mac: bytes
    admin_up: bool = True
    carrier: bool = True
    addresses: dict[tuple[Ip, int], bool] = field(default_factory=dict)
    neighbors: dict[Ip, tuple[NeighborState, bytes]] = field(default_factory=dict)
    lost: list[tuple[Ip, int]] = field(default_factory=list)

    @property
    def up(self) -> bool:
        return self.admin_up and self.carrier

    def seen(self) -> LinkSeen:
        return LinkSeen(ifindex=self.ifindex, name=self.name, up=self.up, mac=self.mac, admin_up=self.admin_up)

    def covers(self, ip: Ip, *, usable: bool = False) -> bool:
        """Tell whether an address of the link (a usable one) shares a subnet with `ip`."""
        return any(
            len(own) == len(ip) and prefix_of(own, length) == prefix_of(ip, length) and (ok or not usable)
            for (own, length), ok in self.addresses.items()
        )


class SimKernel:
    """Links, addresses, default routes, rules and neighbours; every told change goes to `tell`.

    `others`: routes and rules of others as they or the kernel itself left them; `fresh`: such routes of a moment ago.
    """

    def __init__(self, tell: Callable[[KernelChange], None]) -> None:
        self.links: dict[int, SimLink] = {}
        self.routes: dict[RouteSlot, Route] = {}
        self.rules: dict[Rule, None] = {}
        self.refusing: set[int] = set()
        self.others: tuple[frozenset[Route], frozenset[Rule]] = (frozenset(), frozenset())
        self.fresh: set[Route] = set()
        self._tell = tell

    def snapshot(self) -> KernelSnapshot:
        links = self.links.values()
        return KernelSnapshot(
            links=tuple(link.seen() for link in links),
            addresses=tuple(
                AddressSeen(ifindex=link.ifindex, ip=ip, prefix_length=length, usable=usable)
                for link in links
                for (ip, length), usable in link.addresses.items()
            ),
            neighbors=tuple(
                NeighborSeen(
                    ifindex=link.ifindex, ip=ip, state=state, mac=mac, foreign=state is NeighborState.PERMANENT
                )
                for link in links
                for ip, (state, mac) in link.neighbors.items()
            ),
            routes=tuple(self.routes.values()),
            rules=tuple(self.rules),
        )

    def ready_link(self, ip: Ip) -> SimLink | None:
        """Return a link over which an address can be reached now: up, with a usable address in its subnet."""
        return next((link for link in self.links.values() if link.up and link.covers(ip, usable=True)), None)

    # Links

    def add_link(self, link: SimLink) -> None:
        assert link.ifindex not in self.links
        self.links[link.ifindex] = link
        self._tell(link.seen())

    def delete_link(self, ifindex: int) -> None:
        link = self.links[ifindex]
        self._drop_routes(ifindex)
        for ip, length in list(link.addresses):
            del link.addresses[ip, length]
            self._tell(AddressGone(ifindex=ifindex, ip=ip, prefix_length=length))
        self._drop_neighbors(link)
        del self.links[ifindex]
        self._tell(LinkGone(ifindex=ifindex))

    def set_admin(self, ifindex: int, *, up: bool) -> None:
        link = self.links[ifindex]
        if link.admin_up == up:
            return
        link.admin_up = up
        if not up:
            self._drop_routes(ifindex)
            for ip, length in [key for key in link.addresses if not is_ipv4(key[0])]:
                del link.addresses[ip, length]
                self._tell(AddressGone(ifindex=ifindex, ip=ip, prefix_length=length))
            self._drop_neighbors(link)
        self._tell(link.seen())

    def set_carrier(self, ifindex: int, *, up: bool) -> None:
        link = self.links[ifindex]
        link.carrier = up
        if not up:
            self._drop_neighbors(link)
        self._tell(link.seen())

    def set_mac(self, ifindex: int, mac: bytes) -> None:
        link = self.links[ifindex]
        link.mac = mac
        self._drop_neighbors(link)
        self._tell(link.seen())

    # Addresses and neighbours

    def set_address(self, ifindex: int, ip: Ip, length: int, *, usable: bool) -> None:
        self.links[ifindex].addresses[ip, length] = usable
        self._tell(AddressSeen(ifindex=ifindex, ip=ip, prefix_length=length, usable=usable))

    def delete_address(self, ifindex: int, ip: Ip, length: int) -> None:
        link = self.links[ifindex]
        if link.addresses.pop((ip, length), None) is None:
            return
        self._tell(AddressGone(ifindex=ifindex, ip=ip, prefix_length=length))
        if is_ipv4(ip) and not any(is_ipv4(other) for other, _ in link.addresses):
            # The mirror works this out; see lbguard/kernel/view.py.
            for slot, route in [(s, r) for s, r in self.routes.items() if r.oif == ifindex and r.ipv4]:
                del self.routes[slot]
                self._tell(RouteGone(route=route))
            self.others = self.foreign()

    def begin_to_resolve(self, ifindex: int, ip: Ip) -> None:
        """Mark an entry as INCOMPLETE, of which the kernel notifies nobody."""
        link = self.links.get(ifindex)
        if link is not None and link.admin_up:
            link.neighbors[ip] = (NeighborState.INCOMPLETE, b"")

    def set_neighbor(self, ifindex: int, ip: Ip, state: NeighborState, mac: bytes) -> None:
        link = self.links.get(ifindex)
        if link is not None and link.admin_up:
            link.neighbors[ip] = (state, mac)
            foreign = state is NeighborState.PERMANENT
            self._tell(NeighborSeen(ifindex=ifindex, ip=ip, state=state, mac=mac, foreign=foreign))

    def delete_neighbor(self, ifindex: int, ip: Ip) -> None:
        link = self.links.get(ifindex)
        if link is not None and link.neighbors.pop(ip, None) is not None:
            self._tell(NeighborGone(ifindex=ifindex, ip=ip))

    # Routes and rules

    def add_route(self, route: Route) -> str:
        """Add a route where none stands, whoever made it; returns why the kernel refuses, or an empty string."""
        if (route.table, route.ipv4, route.metric) in self.routes:
            return "EEXIST: file exists"
        return self.replace_route(route)

    def put_foreign_route(self, route: Route) -> None:
        """Somebody puts a route in place of whatever stands there."""
        slot = (route.table, route.ipv4, route.metric)
        old = self.routes.get(slot)
        self.routes[slot] = route
        self.fresh.add(route)
        self.others = self.foreign()
        if old is not None:
            self._tell(RouteGone(route=old))
        self._tell(RouteSeen(route=route))

    def take_foreign_route(self, route: Route) -> None:
        slot = (route.table, route.ipv4, route.metric)
        if self.routes.get(slot) == route:
            del self.routes[slot]
            self.others = self.foreign()
            self._tell(RouteGone(route=route))

    def replace_route(self, route: Route) -> str:
        """Add or replace a route; returns why the kernel refuses, or an empty string."""
        if route.table in self.refusing:
            return "no buffer space"
        if route.kind is RouteKind.UNICAST:
            link = self.links.get(route.oif)
            if link is None:
                return "no such device"
            if not link.admin_up:
                return "network is down"
            if not link.covers(route.gateway):
                return "invalid gateway"
        slot = (route.table, route.ipv4, route.metric)
        old = self.routes.get(slot)
        assert old is None or old.protocol == route.protocol or old in self.fresh, (
            f"a foreign route was replaced: {old}"
        )
        self.routes[slot] = route
        self.others = self.foreign()
        if old is not None and old != route:
            self._tell(RouteGone(route=old))
        self._tell(RouteSeen(route=route))
        return ""

    def delete_route(self, route: Route) -> None:
        slot = (route.table, route.ipv4, route.metric)
        old = self.routes.get(slot)
        assert old is None or old.protocol == route.protocol, f"a foreign route was deleted: {old}"
        if old == route:
            del self.routes[slot]
            self._tell(RouteGone(route=route))

    def add_rule(self, rule: Rule) -> None:
        if rule not in self.rules:
            self.rules[rule] = None
            self._tell(RuleSeen(rule=rule))

    def delete_rule(self, rule: Rule) -> None:
        if rule in self.rules:
            del self.rules[rule]
            self._tell(RuleGone(rule=rule))

    def ours(self) -> tuple[frozenset[Route], frozenset[Rule]]:
        """Return the routes and rules that carry our protocol number."""
        return (
            frozenset(route for route in self.routes.values() if route.protocol == ROUTE_PROTOCOL),
            frozenset(rule for rule in self.rules if rule.protocol == ROUTE_PROTOCOL),
        )

    def foreign(self) -> tuple[frozenset[Route], frozenset[Rule]]:
        """Return the routes and rules of others."""
        routes, rules = self.ours()
        return frozenset(self.routes.values()) - routes, frozenset(self.rules) - rules

    def _drop_routes(self, ifindex: int) -> None:
        for slot, route in [(s, r) for s, r in self.routes.items() if r.oif == ifindex]:
            del self.routes[slot]
            if not route.ipv4:
                self._tell(RouteGone(route=route))
        self.others = self.foreign()

    def _drop_neighbors(self, link: SimLink) -> None:
        for ip in list(link.neighbors):
            self.delete_neighbor(link.ifindex, ip)
