"""Decoders of rtnetlink messages into events of the core: links, addresses, neighbours, routes and rules.

A decoder gets a buffer, where the message's fixed part begins in it, and where the message ends. Only the fields of the
events are read; the walk over the attributes stops when it has them. Layouts: include/uapi/linux/rtnetlink.h,
if_link.h, if_addr.h, neighbour.h, fib_rules.h; all integers are in host order.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from lbguard.core.addr import IPV4_LEN, IPV6_LEN, Prefix
from lbguard.core.events import (
    AddressGone,
    AddressSeen,
    KernelChange,
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
from lbguard.core.model import PARKING_METRICS, ROUTE_PROTOCOL, NeighborState, Route, RouteKind, Rule
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.constants import IgnoredReason

Buffer = bytes | bytearray
IsTargetTable = Callable[[int], bool]
Outcome = KernelChange | IgnoredReason

_ATTRIBUTE: Final = Struct("=HH").unpack_from
_U32: Final = Struct("=I").unpack_from
_IPV4: Final = Struct("=4s").unpack_from
_IPV6: Final = Struct("=16s").unpack_from
_IFINFO: Final = Struct("=BxxxiI").unpack_from
_IFADDR: Final = Struct("=BBBBi").unpack_from
_NDMSG: Final = Struct("=BxxxiHBB").unpack_from
_RTMSG: Final = Struct("=BBBBBBBBI").unpack_from

_MALFORMED: Final = IgnoredReason.MALFORMED

_NEIGHBOR_STATES: Final = {state.value: state for state in NeighborState}
_MADE_BY_SOMEBODY: Final = NeighborState.PERMANENT | NeighborState.NOARP
_ROUTE_KINDS: Final = {kind.value: kind for kind in RouteKind}
_RULE_SELECTORS: Final = frozenset(
    {
        c.FRA_DST,
        c.FRA_SRC,
        c.FRA_IIFNAME,
        c.FRA_OIFNAME,
        c.FRA_TUN_ID,
        c.FRA_UID_RANGE,
        c.FRA_IP_PROTO,
        c.FRA_SPORT_RANGE,
        c.FRA_DPORT_RANGE,
    }
)


def _link_seen(data: Buffer, offset: int, end: int, _: IsTargetTable) -> Outcome:
    family, index, flags = _IFINFO(data, offset)
    if family != c.AF_UNSPEC:
        return IgnoredReason.OTHER_FAMILY
    name: str | None = None
    mac: bytes | None = None
    offset += 16
    while offset < end:
        length, kind = _ATTRIBUTE(data, offset)
        if length < 4 or offset + length > end:
            return _MALFORMED
        if kind == c.IFLA_ADDRESS:
            mac = bytes(data[offset + 4 : offset + length])
            if name is not None:
                break
        elif kind == c.IFLA_IFNAME:
            name = bytes(data[offset + 4 : offset + length]).rstrip(b"\0").decode("utf-8", "backslashreplace")
            if mac is not None:
                break
        offset += (length + 3) & -4
    if not name or index <= 0:
        return _MALFORMED
    admin_up = bool(flags & c.IFF_UP)
    return LinkSeen(
        ifindex=index, name=name, up=admin_up and bool(flags & c.IFF_LOWER_UP), mac=mac or b"", admin_up=admin_up
    )


def _link_gone(data: Buffer, offset: int, end: int, _: IsTargetTable) -> Outcome:
    # The kernel reports a port that leaves a bridge as RTM_DELLINK of family AF_BRIDGE; the link itself stays.
    family, index, _flags = _IFINFO(data, offset)
    return LinkGone(ifindex=index) if family == c.AF_UNSPEC else IgnoredReason.OTHER_FAMILY


def _address(data: Buffer, offset: int, end: int) -> tuple[int, bytes, int, int, bytes] | IgnoredReason:
    """Return link, our address, prefix length, flags, and the peer's address where it has one."""
    family, prefix_length, flags, _scope, index = _IFADDR(data, offset)
    if family == c.AF_INET:
        size, unpack = 8, _IPV4
    elif family == c.AF_INET6:
        size, unpack = 20, _IPV6
    else:
        return IgnoredReason.OTHER_FAMILY
    ip = other = b""
    offset += 8
    while offset < end:
        length, kind = _ATTRIBUTE(data, offset)
        if length < 4 or offset + length > end:
            return _MALFORMED
        if kind == c.IFA_LOCAL or kind == c.IFA_ADDRESS:
            # With a peer address, IFA_ADDRESS is the peer and IFA_LOCAL is ours.
            if length != size:
                return _MALFORMED
            if kind == c.IFA_LOCAL:
                (ip,) = unpack(data, offset + 4)
            else:
                (other,) = unpack(data, offset + 4)
        elif kind == c.IFA_FLAGS:
            if length != 8:
                return _MALFORMED
            (flags,) = _U32(data, offset + 4)
        offset += (length + 3) & -4
    ip = ip or other
    if not ip or prefix_length > len(ip) * 8:
        return _MALFORMED
    return index, ip, prefix_length, flags, other if other != ip else b""


def _address_seen(data: Buffer, offset: int, end: int, _: IsTargetTable) -> Outcome:
    found = _address(data, offset, end)
    if isinstance(found, IgnoredReason):
        return found
    index, ip, prefix_length, flags, peer = found
    usable = not flags & c.IFA_F_DADFAILED and (not flags & c.IFA_F_TENTATIVE or bool(flags & c.IFA_F_OPTIMISTIC))
    return AddressSeen(ifindex=index, ip=ip, prefix_length=prefix_length, usable=usable, peer=peer)


def _address_gone(data: Buffer, offset: int, end: int, _: IsTargetTable) -> Outcome:
    found = _address(data, offset, end)
    if isinstance(found, IgnoredReason):
        return found
    index, ip, prefix_length, _flags, peer = found
    return AddressGone(ifindex=index, ip=ip, prefix_length=prefix_length, peer=peer)


def _neighbor_seen(data: Buffer, offset: int, end: int, _: IsTargetTable) -> Outcome:
    family, index, state_bits, flags, _type = _NDMSG(data, offset)
    if family == c.AF_INET:
        size, unpack = 8, _IPV4
    elif family == c.AF_INET6:
        size, unpack = 20, _IPV6
    else:
        return IgnoredReason.OTHER_FAMILY
    state = _NEIGHBOR_STATES.get(state_bits)
    if state is None:
        return _MALFORMED
    if flags & c.NTF_PROXY:
        return IgnoredReason.NEIGHBOR_PROXY
    foreign = bool(state_bits & _MADE_BY_SOMEBODY or flags & c.NTF_EXT_LEARNED)
    ip = mac = b""
    offset += 12
    while offset < end:
        length, kind = _ATTRIBUTE(data, offset)
        if length < 4 or offset + length > end:
            return _MALFORMED
        if kind == c.NDA_DST:
            if length != size:
                return _MALFORMED
            (ip,) = unpack(data, offset + 4)
        elif kind == c.NDA_LLADDR:
            mac = bytes(data[offset + 4 : offset + length])
        elif kind == c.NDA_PROTOCOL:
            foreign = foreign or (length > 4 and data[offset + 4] != 0)
        elif kind == c.NDA_FLAGS_EXT:
            foreign = foreign or (length == 8 and bool(_U32(data, offset + 4)[0] & c.NTF_EXT_MANAGED))
        offset += (length + 3) & -4
    return NeighborSeen(ifindex=index, ip=ip, state=state, mac=mac, foreign=foreign) if ip else _MALFORMED


def _neighbor_gone(data: Buffer, offset: int, end: int, is_target_table: IsTargetTable) -> Outcome:
    seen = _neighbor_seen(data, offset, end, is_target_table)
    return NeighborGone(ifindex=seen.ifindex, ip=seen.ip) if isinstance(seen, NeighborSeen) else seen


class _OnLink(NamedTuple):
    """A route of the main table that puts a prefix on a link."""

    ifindex: int
    prefix: Prefix
    metric: int


def _route(data: Buffer, offset: int, end: int, is_target_table: IsTargetTable) -> Route | _OnLink | IgnoredReason:
    family, dst_len, src_len, tos, table, protocol, _scope, kind_number, flags = _RTMSG(data, offset)
    if family == c.AF_INET:
        size, unpack = 8, _IPV4
    elif family == c.AF_INET6:
        size, unpack = 20, _IPV6
    else:
        return IgnoredReason.OTHER_FAMILY
    if dst_len or src_len or tos:
        made_by_kernel = protocol in (c.RTPROT_KERNEL, c.RTPROT_RA)
        if src_len or tos or table != c.RT_TABLE_MAIN or made_by_kernel or kind_number != RouteKind.UNICAST:
            return IgnoredReason.NOT_DEFAULT_ROUTE
        return _on_link(data, offset, end, dst_len)
    if flags & c.RTM_F_CLONED:
        return IgnoredReason.ROUTE_CACHED
    kind = _ROUTE_KINDS.get(kind_number, RouteKind.UNICAST)
    odd = None if kind_number in _ROUTE_KINDS else IgnoredReason.OTHER_ROUTE_TYPE
    gateway: bytes = b""
    oif = metric = 0
    offset += 12
    while offset < end:
        length, attribute = _ATTRIBUTE(data, offset)
        if length < 4 or offset + length > end:
            return _MALFORMED
        if attribute == c.RTA_GATEWAY:
            if length != size:
                return _MALFORMED
            (gateway,) = unpack(data, offset + 4)
        elif attribute in _ROUTE_NUMBERS:
            if length != 8:
                return _MALFORMED
            (number,) = _U32(data, offset + 4)
            if attribute == c.RTA_TABLE:
                table = number
            elif attribute == c.RTA_OIF:
                oif = number
            else:
                metric = number
        elif attribute in _ROUTE_SHAPES:
            odd = odd or _ROUTE_SHAPES[attribute]
        offset += (length + 3) & -4
    if protocol == ROUTE_PROTOCOL and metric in PARKING_METRICS:
        return IgnoredReason.ROUTE_TO_PARKING
    if odd and (protocol == ROUTE_PROTOCOL or not is_target_table(table)):
        return odd
    if protocol != ROUTE_PROTOCOL and not is_target_table(table):
        return IgnoredReason.OTHER_TABLE
    if odd:
        # Another program's, of a type that ours never have; but it blocks the table and metric of one of ours.
        return Route(table, family == c.AF_INET, RouteKind.UNICAST, metric, b"", 0, protocol)
    if kind is RouteKind.BLACKHOLE:
        # For IPv6 the kernel names the loopback as the device of a blackhole; it is left out.
        gateway, oif = b"", 0
    return Route(table, family == c.AF_INET, kind, metric, gateway, oif, protocol)


_ROUTE_NUMBERS: Final = frozenset({c.RTA_TABLE, c.RTA_OIF, c.RTA_PRIORITY})
_ROUTE_SHAPES: Final = {
    c.RTA_MULTIPATH: IgnoredReason.ROUTE_MULTIPATH,
    c.RTA_NH_ID: IgnoredReason.ROUTE_NEXTHOP_OBJECT,
    c.RTA_VIA: IgnoredReason.ROUTE_VIA_OTHER_FAMILY,
}


def _on_link(data: Buffer, offset: int, end: int, dst_len: int) -> _OnLink | IgnoredReason:
    """Read another program's route to a prefix; only one without a gateway is used."""
    network = b""
    oif = metric = 0
    offset += 12
    while offset < end:
        length, attribute = _ATTRIBUTE(data, offset)
        if length < 4 or offset + length > end:
            return _MALFORMED
        if attribute == c.RTA_DST:
            network = bytes(data[offset + 4 : offset + length])
        elif attribute == c.RTA_OIF or attribute == c.RTA_PRIORITY:
            if length != 8:
                return _MALFORMED
            (number,) = _U32(data, offset + 4)
            oif, metric = (number, metric) if attribute == c.RTA_OIF else (oif, number)
        elif attribute == c.RTA_GATEWAY or attribute in _ROUTE_SHAPES:
            return IgnoredReason.NOT_DEFAULT_ROUTE
        offset += (length + 3) & -4
    if len(network) not in (IPV4_LEN, IPV6_LEN) or dst_len > len(network) * 8 or not oif:
        return _MALFORMED
    return _OnLink(oif, Prefix(network, dst_len), metric)


def _route_seen(data: Buffer, offset: int, end: int, is_target_table: IsTargetTable) -> Outcome:
    route = _route(data, offset, end, is_target_table)
    if isinstance(route, _OnLink):
        return LinkRouteSeen(ifindex=route.ifindex, prefix=route.prefix, metric=route.metric)
    return RouteSeen(route=route) if isinstance(route, Route) else route


def _route_gone(data: Buffer, offset: int, end: int, is_target_table: IsTargetTable) -> Outcome:
    route = _route(data, offset, end, is_target_table)
    if isinstance(route, _OnLink):
        return LinkRouteGone(ifindex=route.ifindex, prefix=route.prefix, metric=route.metric)
    return RouteGone(route=route) if isinstance(route, Route) else route


def _rule(data: Buffer, offset: int, end: int, is_target_table: IsTargetTable) -> Rule | IgnoredReason:
    family, dst_len, src_len, tos, table, _res1, _res2, action, flags = _RTMSG(data, offset)
    if family not in (c.AF_INET, c.AF_INET6):
        return IgnoredReason.OTHER_FAMILY
    if action != c.FR_ACT_TO_TBL or flags & c.FIB_RULE_INVERT or dst_len or src_len or tos:
        return IgnoredReason.NOT_FWMARK_RULE
    mark = priority = protocol = 0
    mask = 0xFFFFFFFF
    offset += 12
    while offset < end:
        length, kind = _ATTRIBUTE(data, offset)
        if length < 4 or offset + length > end:
            return _MALFORMED
        if kind in _RULE_NUMBERS:
            if length != 8:
                return _MALFORMED
            (number,) = _U32(data, offset + 4)
            if kind == c.FRA_FWMARK:
                mark = number
            elif kind == c.FRA_TABLE:
                table = number
            elif kind == c.FRA_PRIORITY:
                priority = number
            else:
                mask = number
        elif kind == c.FRA_PROTOCOL:
            if length != 5:
                return _MALFORMED
            protocol = data[offset + 4]
        elif kind in _RULE_SELECTORS:
            return IgnoredReason.NOT_FWMARK_RULE
        offset += (length + 3) & -4
    if not mark or mask != 0xFFFFFFFF:
        return IgnoredReason.NOT_FWMARK_RULE
    if protocol != ROUTE_PROTOCOL and not is_target_table(table):
        return IgnoredReason.OTHER_TABLE
    return Rule(mark, family == c.AF_INET, table, priority, protocol)


_RULE_NUMBERS: Final = frozenset({c.FRA_FWMARK, c.FRA_TABLE, c.FRA_PRIORITY, c.FRA_FWMASK})


def _rule_seen(data: Buffer, offset: int, end: int, is_target_table: IsTargetTable) -> Outcome:
    rule = _rule(data, offset, end, is_target_table)
    return RuleSeen(rule=rule) if isinstance(rule, Rule) else rule


def _rule_gone(data: Buffer, offset: int, end: int, is_target_table: IsTargetTable) -> Outcome:
    rule = _rule(data, offset, end, is_target_table)
    return RuleGone(rule=rule) if isinstance(rule, Rule) else rule


Decoder = Callable[[Buffer, int, int, IsTargetTable], Outcome]

DECODERS: Final[dict[int, tuple[Decoder, int]]] = {
    c.RTM_NEWLINK: (_link_seen, 32),
    c.RTM_DELLINK: (_link_gone, 32),
    c.RTM_NEWADDR: (_address_seen, 24),
    c.RTM_DELADDR: (_address_gone, 24),
    c.RTM_NEWNEIGH: (_neighbor_seen, 28),
    c.RTM_DELNEIGH: (_neighbor_gone, 28),
    c.RTM_NEWROUTE: (_route_seen, 28),
    c.RTM_DELROUTE: (_route_gone, 28),
    c.RTM_NEWRULE: (_rule_seen, 28),
    c.RTM_DELRULE: (_rule_gone, 28),
}
"""The decoder of each message type, and the minimum length of the message with its fixed part."""
