"""Routes of other programs: default routes in the targets' tables, and VIPs in the kernel's table `local`.

The core uses our own routes only. The load balancer's routes show its targets: a target's addresses are the gateways of
the default routes in the table of its mark.

A VIP on one of its links (as LVS has it on `lo`) is in the kernel's table `local`, which comes before any mark: its own
stack answers with a reset, and no target gets a packet. No other check shows it, since routes and tables are correct.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from lbguard.core.addr import Ip, Prefix, overlapping, why_not_unicast
from lbguard.core.events import Event, KernelSnapshot, RouteGone, RouteSeen
from lbguard.core.model import ROUTE_PROTOCOL, Route, RouteKind, StreamSpec
from lbguard.core.status import GuardStatus
from lbguard.kernel.requests import local_prefixes
from lbguard.telemetry.log import fields

_Key = tuple[int, bool, int]


class TargetRoutes:
    """Default routes of foreign protocols, by table.

    IPv4 routes are removed with their link without a message from the kernel, so a route that is kept here may be gone;
    a route that is added again causes an event. A full view corrects everything.
    """

    def __init__(self, *, follow: bool = False) -> None:
        """Start without any route. With `follow`, `take_changed` is called again and again."""
        self.known = False
        """True after the first full view."""
        self._follow = follow
        self._tables: dict[int, dict[_Key, Route]] = {}
        self._changed: set[int] = set()

    def observe(self, events: Iterable[Event]) -> None:
        """Record the routes among some events."""
        for event in events:
            kind = type(event)
            if kind is RouteSeen:
                self._put(event.route)  # type: ignore[union-attr]
            elif kind is RouteGone:
                self._drop(event.route)  # type: ignore[union-attr]
            elif isinstance(event, KernelSnapshot):
                before, self._tables = self._tables, {}
                for route in event.routes:
                    self._put(route)
                for table in before.keys() | self._tables.keys():
                    if before.get(table) != self._tables.get(table):
                        self._note(table)
                self.known = True

    def take_changed(self) -> set[int]:
        """Return the tables whose routes have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

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
            self._note(route.table)

    def _note(self, table: int) -> None:
        if self._follow:
            self._changed.add(table)

    def _drop(self, route: Route) -> None:
        table = self._tables.get(route.table)
        key = (route.table, route.ipv4, route.metric)
        if table is not None and table.get(key) == route:
            del table[key]
            self._note(route.table)
            if not table:
                del self._tables[route.table]


_log = logging.getLogger("lbguard.service.local_vips")

_LOOK_S = 2.0


class LocalVips:
    """Check for local VIPs; reports them in the log and in the status.

    Args:
        streams: returns the streams that are served.
        read: returns the prefixes that the kernel delivers locally; it may block for seconds.
    """

    def __init__(
        self, streams: Callable[[], Iterable[StreamSpec]], read: Callable[[], Iterable[Prefix]] = local_prefixes
    ) -> None:
        self._streams = streams
        self._read = read
        self._found: dict[Prefix, Prefix] = {}

    def add_to(self, status: GuardStatus) -> GuardStatus:
        """Return a status with the local VIPs of each stream."""
        if not self._found:
            return status
        vips = {spec.name: spec.vips for spec in self._streams()}
        streams = (
            replace(stream, local_vips=tuple(str(vip) for vip in vips.get(stream.name, ()) if vip in self._found))
            for stream in status.streams
        )
        return replace(status, streams=tuple(streams))

    async def run(self) -> None:
        """Check periodically until cancelled."""
        while True:
            if any(stream.vips for stream in self._streams()):
                try:
                    self.compare(await asyncio.to_thread(self._read))
                except OSError as error:
                    _log.debug("local addresses not read", extra=fields(reason=str(error)))
            await asyncio.sleep(_LOOK_S)

    def compare(self, local: Iterable[Prefix]) -> None:
        """Compare the VIPs with the locally delivered prefixes, and log new findings."""
        vips = [vip for stream in self._streams() for vip in stream.vips]
        found = overlapping(vips, (prefix for prefix in local if not why_not_unicast(prefix.network)))
        for vip in found.keys() - self._found.keys():
            _log.warning(
                "VIP is local: its packets reach no target",
                extra=fields(
                    vip=str(vip),
                    local=str(found[vip]),
                    remedy="remove the address from this machine; a VIP stands on no link of a load balancer",
                ),
            )
        for vip in self._found.keys() - found.keys():
            _log.info("VIP is local no more", extra=fields(vip=str(vip)))
        self._found = found
