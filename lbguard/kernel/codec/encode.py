"""Encoders of the netlink requests that lbguard makes. Pure: the sender fills in sequence numbers.

Every request is exact: it names our protocol number, metric or priority, so that the kernel itself refuses to change
another program's objects. Layouts as in rtnetlink.py; neighbour tables: include/uapi/linux/neighbour.h.
"""

from enum import Enum
from functools import lru_cache
from struct import Struct
from typing import Final

from lbguard.core.addr import IPV4_LEN, Ip
from lbguard.core.model import NeighborState, Route, RouteKind, Rule
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.framing import attribute, message

_U32_ATTRIBUTE: Final = Struct("=HHI")
_RTMSG: Final = Struct("=BBBBBBBBI")
_NDMSG: Final = Struct("=BxxxiHBB")
_IFINFO: Final = Struct("=BxHiII")

_REQUESTS_KEPT: Final = 16_384
"""Number of cached requests of a kind: the same entries are verified every second, and a heal restores the routes that
the loss took."""


class DumpKind(Enum):
    """The five dumps of a snapshot, in the order of the requests; the value is the request's message type."""

    LINKS = c.RTM_GETLINK
    ADDRESSES = c.RTM_GETADDR
    RULES = c.RTM_GETRULE
    ROUTES = c.RTM_GETROUTE
    NEIGHBORS = c.RTM_GETNEIGH


_DUMP_BODIES: Final = {
    # Statistics are a third of a link message and are not used.
    DumpKind.LINKS: _IFINFO.pack(c.AF_UNSPEC, 0, 0, 0, 0)
    + _U32_ATTRIBUTE.pack(8, c.IFLA_EXT_MASK, c.RTEXT_FILTER_SKIP_STATS),
    DumpKind.ADDRESSES: bytes(8),
    DumpKind.RULES: bytes(12),
    DumpKind.ROUTES: bytes(12),
    DumpKind.NEIGHBORS: bytes(12),
}


def _u32(kind: int, value: int) -> bytes:
    return _U32_ATTRIBUTE.pack(8, kind, value)


def _family(ipv4: bool) -> int:
    return c.AF_INET if ipv4 else c.AF_INET6


def dump(kind: DumpKind, sequence: int) -> bytes:
    """Request all objects of a kind, in all families (in the form that strict checking requires)."""
    return message(kind.value, c.NLM_F_DUMP, _DUMP_BODIES[kind], sequence)


def _route_body(route: Route, scope: int, flags: int = 0) -> bytes:
    header = _RTMSG.pack(_family(route.ipv4), 0, 0, 0, c.RT_TABLE_UNSPEC, route.protocol, scope, route.kind, flags)
    body = header + _u32(c.RTA_TABLE, route.table) + _u32(c.RTA_PRIORITY, route.metric)
    if route.kind is RouteKind.BLACKHOLE:
        return body
    return body + attribute(c.RTA_GATEWAY, route.gateway) + _u32(c.RTA_OIF, route.oif)


@lru_cache(maxsize=_REQUESTS_KEPT)
def add_route(route: Route, *, on_link: bool = False) -> bytes:
    """Add a default route; refused with EEXIST if any program has one of the same table and metric.

    `on_link`: treat the gateway as on the link where the kernel has no route for it (an address with `noprefixroute`
    whose prefix route is not there yet).
    """
    body = _route_body(route, c.RT_SCOPE_UNIVERSE, c.RTNH_F_ONLINK if on_link else 0)
    return message(c.RTM_NEWROUTE, c.NLM_F_CREATE | c.NLM_F_EXCL, body)


@lru_cache(maxsize=_REQUESTS_KEPT)
def replace_route(route: Route, *, on_link: bool = False) -> bytes:
    """Add a default route, or change the one of the same table and metric, in one atomic step; see `add_route`."""
    body = _route_body(route, c.RT_SCOPE_UNIVERSE, c.RTNH_F_ONLINK if on_link else 0)
    return message(c.RTM_NEWROUTE, c.NLM_F_CREATE | c.NLM_F_REPLACE, body)


def delete_route(route: Route) -> bytes:
    """Delete exactly this route: table, metric, type, gateway, device and protocol must all match."""
    return message(c.RTM_DELROUTE, 0, _route_body(route, c.RT_SCOPE_NOWHERE))


def _rule_body(rule: Rule) -> bytes:
    return (
        _RTMSG.pack(_family(rule.ipv4), 0, 0, 0, c.RT_TABLE_UNSPEC, 0, 0, c.FR_ACT_TO_TBL, 0)
        + _u32(c.FRA_PRIORITY, rule.priority)
        + _u32(c.FRA_FWMARK, rule.mark)
        + _u32(c.FRA_FWMASK, 0xFFFFFFFF)
        + _u32(c.FRA_TABLE, rule.table)
        + attribute(c.FRA_PROTOCOL, bytes([rule.protocol]))
    )


def add_rule(rule: Rule) -> bytes:
    """Add a fwmark rule; one that exists is refused with EEXIST (without NLM_F_EXCL the kernel makes duplicates)."""
    return message(c.RTM_NEWRULE, c.NLM_F_CREATE | c.NLM_F_EXCL, _rule_body(rule))


def delete_rule(rule: Rule) -> bytes:
    """Delete exactly this rule: priority, mark, table and protocol must all match."""
    return message(c.RTM_DELRULE, 0, _rule_body(rule))


def _neighbor(kind: int, flags: int, ifindex: int, ip: Ip, state: int, entry_flags: int) -> bytes:
    body = _NDMSG.pack(_family(len(ip) == IPV4_LEN), ifindex, state, entry_flags, 0)
    return message(kind, flags, body + attribute(c.NDA_DST, ip))


def delete_neighbor(ifindex: int, ip: Ip) -> bytes:
    """Delete a neighbour entry in any state."""
    return _neighbor(c.RTM_DELNEIGH, 0, ifindex, ip, NeighborState.NONE, 0)


def resolve_neighbor(ifindex: int, ip: Ip) -> bytes:
    """Make the kernel resolve an address as if a packet had to be sent to it."""
    return _neighbor(c.RTM_NEWNEIGH, c.NLM_F_CREATE, ifindex, ip, NeighborState.NONE, c.NTF_USE)


@lru_cache(maxsize=_REQUESTS_KEPT)
def probe_neighbor(ifindex: int, ip: Ip) -> bytes:
    """Make the kernel verify a resolved entry now; ENOENT: there is none, EINVAL: it has no address yet."""
    return _neighbor(c.RTM_NEWNEIGH, c.NLM_F_REPLACE, ifindex, ip, NeighborState.PROBE, 0)
