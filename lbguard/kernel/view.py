"""View of the kernel's state, built from dumps and notifications, with the changes that the kernel does not notify.

The kernel makes two kinds of changes without a message, so they are derived here:

- A replaced route is notified as RTM_NEWROUTE with NLM_F_REPLACE; the removal of the old one follows from it.
- IPv4 routes through a link are removed without a message when the link is set down or deleted, or loses its last IPv4
  address (net/ipv4/fib_frontend.c, fib_disable_ip). IPv6 sends a message for each.

While a dump runs, a notification overrides the dump record of its object: the record may have been read before the
notified change, but every later change has its own notification.
"""

from collections.abc import Callable, Hashable

from lbguard.core.addr import IPV4_LEN, Ip, Prefix
from lbguard.core.events import (
    AddressGone,
    AddressSeen,
    Event,
    KernelChange,
    KernelSnapshot,
    LinkGone,
    LinkRouteGone,
    LinkRouteSeen,
    LinkSeen,
    NeighborGone,
    NeighborSeen,
    RouteGone,
    RouteSeen,
    RuleGone,
    RuleSeen,
)
from lbguard.core.model import Route, RouteKind, Rule
from lbguard.kernel.codec.encode import DumpKind

_AddressKey = tuple[int, Ip, int, Ip]
_LinkRouteKey = tuple[Prefix, int]


class View:
    """The state of the kernel from its messages. A new one is `building` until its dumps are complete."""

    def __init__(self) -> None:
        self.building = True
        self._links: dict[int, LinkSeen] = {}
        self._addresses: dict[_AddressKey, AddressSeen] = {}
        self._neighbors: dict[tuple[int, Ip], NeighborSeen] = {}
        self._rules: dict[Rule, Rule] = {}
        self._routes: dict[Route, Route] = {}
        self._route_slots: dict[tuple[int, bool, int], list[Route]] = {}
        self._ipv4_routes_by_link: dict[int, set[Route]] = {}
        self._ipv4_addresses_by_link: dict[int, set[_AddressKey]] = {}
        self._link_routes: dict[_LinkRouteKey, dict[int, LinkRouteSeen]] = {}
        self._touched: set[Hashable] = set()

    def notify(self, event: KernelChange, *, replaces: bool, out: list[Event]) -> None:
        """Apply a notification and append it to `out`, with the changes that follow from it."""
        if self.building:
            self._touched.add(_key(event))
        _APPLY[event.__class__](self, event, replaces, out)

    def record(self, event: KernelChange) -> None:
        """Apply a record of a dump, unless a notification on that object came since."""
        if _key(event) not in self._touched:
            _APPLY[event.__class__](self, event, False, [])

    def restart(self, kind: DumpKind) -> None:
        """Forget the records of a dump that has to be repeated; notified objects stay."""
        if kind is DumpKind.ROUTES:
            for route in [route for route in self._routes if route not in self._touched]:
                self._remove_route(route)
            for slot in self._link_routes.values():
                for ifindex in [i for i, known in slot.items() if _key(known) not in self._touched]:
                    del slot[ifindex]
        elif kind is DumpKind.ADDRESSES:
            for address in [key for key in self._addresses if key not in self._touched]:
                self._remove_address(address)
        elif kind is DumpKind.LINKS:
            self._links = {key: link for key, link in self._links.items() if key in self._touched}
        elif kind is DumpKind.NEIGHBORS:
            self._neighbors = {key: entry for key, entry in self._neighbors.items() if key in self._touched}
        else:
            self._rules = {key: rule for key, rule in self._rules.items() if key in self._touched}

    def finish(self) -> KernelSnapshot:
        """End the building and return the full view."""
        self.building = False
        self._touched.clear()
        return KernelSnapshot(
            links=tuple(self._links.values()),
            addresses=tuple(self._addresses.values()),
            neighbors=tuple(self._neighbors.values()),
            routes=tuple(self._routes),
            rules=tuple(self._rules),
            link_routes=tuple(route for slot in self._link_routes.values() for route in slot.values()),
        )

    def _link_seen(self, event: LinkSeen, _: bool, out: list[Event]) -> None:
        self._links[event.ifindex] = event
        out.append(event)
        if not event.admin_up:
            self._lose_ipv4_routes(event.ifindex, out)

    def _link_gone(self, event: LinkGone, _: bool, out: list[Event]) -> None:
        self._links.pop(event.ifindex, None)
        out.append(event)
        self._lose_ipv4_routes(event.ifindex, out)

    def _address_seen(self, event: AddressSeen, _: bool, out: list[Event]) -> None:
        key = (event.ifindex, event.ip, event.prefix_length, event.peer)
        self._addresses[key] = event
        if len(event.ip) == IPV4_LEN:
            self._ipv4_addresses_by_link.setdefault(event.ifindex, set()).add(key)
        out.append(event)

    def _address_gone(self, event: AddressGone, _: bool, out: list[Event]) -> None:
        self._remove_address((event.ifindex, event.ip, event.prefix_length, event.peer))
        out.append(event)
        if len(event.ip) == IPV4_LEN and event.ifindex not in self._ipv4_addresses_by_link:
            self._lose_ipv4_routes(event.ifindex, out)

    def _remove_address(self, key: _AddressKey) -> None:
        self._addresses.pop(key, None)
        of_link = self._ipv4_addresses_by_link.get(key[0])
        if of_link is not None:
            of_link.discard(key)
            if not of_link:
                del self._ipv4_addresses_by_link[key[0]]

    def _link_route_seen(self, event: LinkRouteSeen, replaces: bool, out: list[Event]) -> None:
        slot = self._link_routes.setdefault((event.prefix, event.metric), {})
        if replaces:
            for old in [old for ifindex, old in slot.items() if ifindex != event.ifindex]:
                self._forget_link_route(old, out)
        if event.ifindex not in slot:
            slot[event.ifindex] = event
            out.append(event)

    def _link_route_gone(self, event: LinkRouteGone, _: bool, out: list[Event]) -> None:
        if self._link_routes.get((event.prefix, event.metric), {}).pop(event.ifindex, None) is not None:
            out.append(event)

    def _forget_link_route(self, route: LinkRouteSeen, out: list[Event]) -> None:
        if self.building:
            self._touched.add(_key(route))
        del self._link_routes[route.prefix, route.metric][route.ifindex]
        out.append(LinkRouteGone(ifindex=route.ifindex, prefix=route.prefix, metric=route.metric))

    def _neighbor_seen(self, event: NeighborSeen, _: bool, out: list[Event]) -> None:
        self._neighbors[event.ifindex, event.ip] = event
        out.append(event)

    def _neighbor_gone(self, event: NeighborGone, _: bool, out: list[Event]) -> None:
        self._neighbors.pop((event.ifindex, event.ip), None)
        out.append(event)

    def _rule_seen(self, event: RuleSeen, _: bool, out: list[Event]) -> None:
        self._rules[event.rule] = event.rule
        out.append(event)

    def _rule_gone(self, event: RuleGone, _: bool, out: list[Event]) -> None:
        self._rules.pop(event.rule, None)
        out.append(event)

    def _route_seen(self, event: RouteSeen, replaces: bool, out: list[Event]) -> None:
        route = event.route
        slot = self._route_slots.setdefault((route.table, route.ipv4, route.metric), [])
        if replaces:
            for old in [old for old in slot if old != route]:
                self._forget_route(old, out)
        # Forgetting the last route of a slot drops the slot, so it is looked up again.
        slot = self._route_slots.setdefault((route.table, route.ipv4, route.metric), [])
        if route not in slot:
            slot.append(route)
        self._routes[route] = route
        if route.ipv4 and route.kind is RouteKind.UNICAST:
            self._ipv4_routes_by_link.setdefault(route.oif, set()).add(route)
        out.append(event)

    def _route_gone(self, event: RouteGone, _: bool, out: list[Event]) -> None:
        self._remove_route(event.route)
        out.append(event)

    def _lose_ipv4_routes(self, ifindex: int, out: list[Event]) -> None:
        # The links of the routes under 0 were not read. A wrong assumption that one is gone costs at most a refused
        # request.
        for through in (ifindex, 0):
            for route in tuple(self._ipv4_routes_by_link.get(through, ())):
                self._forget_route(route, out)
        for slot in self._link_routes.values():
            known = slot.get(ifindex)
            if known is not None and len(known.prefix.network) == IPV4_LEN:
                self._forget_link_route(known, out)

    def _forget_route(self, route: Route, out: list[Event]) -> None:
        if self.building:
            self._touched.add(route)
        self._remove_route(route)
        out.append(RouteGone(route=route))

    def _remove_route(self, route: Route) -> None:
        if self._routes.pop(route, None) is None:
            return
        key = (route.table, route.ipv4, route.metric)
        slot = self._route_slots[key]
        slot.remove(route)
        if not slot:
            del self._route_slots[key]
        if route.ipv4 and route.kind is RouteKind.UNICAST:
            of_link = self._ipv4_routes_by_link[route.oif]
            of_link.discard(route)
            if not of_link:
                del self._ipv4_routes_by_link[route.oif]


def _key(event: KernelChange) -> Hashable:
    """Return the key of an event's object: keys of different kinds have different shapes."""
    if isinstance(event, NeighborSeen | NeighborGone):
        return event.ifindex, event.ip
    if isinstance(event, RouteSeen | RouteGone):
        return event.route
    if isinstance(event, RuleSeen | RuleGone):
        return event.rule
    if isinstance(event, AddressSeen | AddressGone):
        return event.ifindex, event.ip, event.prefix_length, event.peer
    if isinstance(event, LinkRouteSeen | LinkRouteGone):
        return event.ifindex, event.prefix, event.metric
    return event.ifindex


_APPLY: dict[type, Callable[..., None]] = {
    LinkSeen: View._link_seen,
    LinkGone: View._link_gone,
    AddressSeen: View._address_seen,
    AddressGone: View._address_gone,
    LinkRouteSeen: View._link_route_seen,
    LinkRouteGone: View._link_route_gone,
    NeighborSeen: View._neighbor_seen,
    NeighborGone: View._neighbor_gone,
    RouteSeen: View._route_seen,
    RouteGone: View._route_gone,
    RuleSeen: View._rule_seen,
    RuleGone: View._rule_gone,
}
