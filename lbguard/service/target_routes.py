"""Default routes of other programs in the targets' tables, followed by the kernel's events.

The core uses our own routes only. The load balancer's routes show its targets: a target's addresses are the gateways of
the default routes in the table of its mark.
"""

from collections.abc import Iterable

from lbguard.core.addr import Ip
from lbguard.core.events import Event, KernelSnapshot, RouteGone, RouteSeen
from lbguard.core.model import ROUTE_PROTOCOL, Route, RouteKind

_Key = tuple[int, bool, int]


class TargetRoutes:
    """Default routes of foreign protocols, by table.

    IPv4 routes are removed with their link without a message from the kernel, so a route that is kept here may be gone;
    a route that is added again causes an event. A full view corrects everything.
    """

    def __init__(self) -> None:
        self.known = False
        """True after the first full view."""
        self._tables: dict[int, dict[_Key, Route]] = {}

    def observe(self, events: Iterable[Event]) -> None:
        """Record the routes among some events."""
        for event in events:
            kind = type(event)
            if kind is RouteSeen:
                self._put(event.route)  # type: ignore[union-attr]
            elif kind is RouteGone:
                self._drop(event.route)  # type: ignore[union-attr]
            elif isinstance(event, KernelSnapshot):
                self._tables.clear()
                for route in event.routes:
                    self._put(route)
                self.known = True

    def gateways(self, table: int) -> tuple[Ip, ...]:
        """Return the gateways in a table, IPv4 first, at most one per family: that of the best metric."""
        best: dict[bool, Route] = {}
        for route in self._tables.get(table, {}).values():
            known = best.get(route.ipv4)
            if known is None or route.metric < known.metric:
                best[route.ipv4] = route
        return tuple(best[ipv4].gateway for ipv4 in (True, False) if ipv4 in best)

    def routes(self) -> list[Route] | None:
        """Return all routes; None before the first full view."""
        return [route for table in self._tables.values() for route in table.values()] if self.known else None

    def _put(self, route: Route) -> None:
        if route.protocol != ROUTE_PROTOCOL and route.kind is RouteKind.UNICAST and route.gateway:
            self._tables.setdefault(route.table, {})[route.table, route.ipv4, route.metric] = route

    def _drop(self, route: Route) -> None:
        table = self._tables.get(route.table)
        key = (route.table, route.ipv4, route.metric)
        if table is not None and table.get(key) == route:
            del table[key]
            if not table:
                del self._tables[route.table]
