"""Kernel objects of parking: the routes to the parking link, and a neighbour entry for each target.

The routes are not compared with the kernel's, since the mirror ignores them. They are added again from time to time:
the kernel refuses those that exist, without a notification.
"""

import errno
from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from lbguard.core.model import DIVERTING_METRIC, PARKING_METRIC, ROUTE_PROTOCOL, NeighborState, RouteKind
from lbguard.kernel.batches import NetlinkChannel
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.framing import attribute, message
from lbguard.parking.frames import gateway_of, mac_of

_RTMSG: Final = Struct("=BBBBBBBBI")
_NDMSG: Final = Struct("=BxxxiHBB")
_U32: Final = Struct("=I")
_VIA: Final = Struct("=H")

_DONE: Final = frozenset({0, errno.EEXIST})
_GONE: Final = frozenset({0, errno.ESRCH, errno.ENODEV, errno.ENOENT})


class ParkingRoute(NamedTuple):
    """A default route to the parking link in the table of a mark. `divert`: it precedes the target's own route."""

    mark: int
    ipv4: bool
    divert: bool = False


def add_parking_route(route: ParkingRoute, ifindex: int) -> bytes:
    """Request to add a route, which the kernel refuses if it has one of this table and metric."""
    return message(
        c.RTM_NEWROUTE, c.NLM_F_CREATE | c.NLM_F_EXCL, _route(route, ifindex, c.RT_SCOPE_UNIVERSE, c.RTNH_F_ONLINK)
    )


def delete_parking_route(route: ParkingRoute, ifindex: int) -> bytes:
    """Request to delete exactly this route."""
    return message(c.RTM_DELROUTE, 0, _route(route, ifindex, c.RT_SCOPE_NOWHERE, 0))


def set_parking_neighbor(mark: int, ifindex: int) -> bytes:
    """Request to make the neighbour entry of a target, for both families."""
    body = _NDMSG.pack(c.AF_INET6, ifindex, NeighborState.PERMANENT, 0, 0)
    body += attribute(c.NDA_DST, gateway_of(mark)) + attribute(c.NDA_LLADDR, mac_of(mark))
    return message(c.RTM_NEWNEIGH, c.NLM_F_CREATE | c.NLM_F_REPLACE, body)


def _route(route: ParkingRoute, ifindex: int, scope: int, flags: int) -> bytes:
    family, gateway = (c.AF_INET if route.ipv4 else c.AF_INET6), gateway_of(route.mark)
    metric = DIVERTING_METRIC if route.divert else PARKING_METRIC
    header = _RTMSG.pack(family, 0, 0, 0, c.RT_TABLE_UNSPEC, ROUTE_PROTOCOL, scope, RouteKind.UNICAST, flags)
    return (
        header
        + attribute(c.RTA_TABLE, _U32.pack(route.mark))
        + attribute(c.RTA_PRIORITY, _U32.pack(metric))
        + attribute(c.RTA_OIF, _U32.pack(ifindex))
        + (attribute(c.RTA_VIA, _VIA.pack(c.AF_INET6) + gateway) if route.ipv4 else attribute(c.RTA_GATEWAY, gateway))
    )


class ParkingRoutes:
    """Programs routes and neighbour entries through the parking link of this index."""

    def __init__(self, channel: NetlinkChannel, ifindex: int) -> None:
        self._channel = channel
        self._ifindex = ifindex
        self._programmed: set[ParkingRoute] = set()
        self._neighbors: set[int] = set()

    async def program(self, wanted: Iterable[ParkingRoute], *, again: bool = False) -> str:
        """Have exactly these routes in the kernel; return why a request was refused, or empty text.

        `again`: also request those that were programmed before, since another program may have removed them.
        """
        desired = set(wanted)
        known = set() if again else self._programmed & desired
        gone = sorted(self._programmed - desired)
        added = sorted(desired - known)
        marks = sorted({route.mark for route in added} - (set() if again else self._neighbors))
        messages = [delete_parking_route(route, self._ifindex) for route in gone]
        messages += [set_parking_neighbor(mark, self._ifindex) for mark in marks]
        messages += [add_parking_route(route, self._ifindex) for route in added]
        acks = await self._channel.submit(messages)
        refused = ""
        for n, ack in enumerate(acks):
            accepted = _GONE if n < len(gone) else _DONE
            if ack.error not in accepted:
                refused = refused or ack.reason
        # A failed one is requested again by the next round.
        self._programmed = desired
        self._neighbors.update(marks)
        return refused
