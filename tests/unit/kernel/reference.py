"""Reads with pyroute2 what the lean decoder reads: its full decoder on the same bytes, and the rules of the events."""

from collections.abc import Callable, Container
from ipaddress import ip_address
from typing import Any

from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from lbguard.core import events as ev
from lbguard.core.addr import Prefix
from lbguard.core.events import KernelChange
from lbguard.core.model import ROUTE_PROTOCOL, NeighborState, Route, RouteKind, Rule

TARGET_TABLES = range(5000, 6000)
_SELECTORS = ("dst", "src", "iifname", "oifname", "tun_id", "uid_range", "ip_proto", "sport_range", "dport_range")


def read(datagram: bytes, tables: Container[int] = TARGET_TABLES) -> list[KernelChange]:
    """Return the changes in a datagram."""
    messages = [message for message in MarshalRtnl().parse(datagram) if message["header"]["type"] != 3]
    found = [READERS[message["header"]["type"]](message, tables) for message in messages]
    return [change for change in found if change is not None]


def packed(text: str | None) -> bytes:
    return ip_address(text).packed if text else b""


def link(message: Any, _tables: Container[int]) -> KernelChange | None:
    up = bool(message["flags"] & 1)
    mac = bytes.fromhex((message.get("address") or "").replace(":", ""))
    running = up and bool(message["flags"] & 0x10000)
    return ev.LinkSeen(ifindex=message["index"], name=message.get("ifname"), up=running, mac=mac, admin_up=up)


def address(message: Any, _tables: Container[int]) -> KernelChange | None:
    local, other = packed(message.get("local")), packed(message.get("address"))
    flags = message.get("flags")
    return ev.AddressSeen(
        ifindex=message["index"],
        ip=local or other,
        prefix_length=message["prefixlen"],
        usable=not flags & 0x08 and (not flags & 0x40 or bool(flags & 0x04)),
        peer=other if local and local != other else b"",
    )


def neighbor(message: Any, _tables: Container[int]) -> KernelChange | None:
    if message["flags"] & 0x08:
        return None
    state = NeighborState(message["state"])
    made = state in (NeighborState.PERMANENT, NeighborState.NOARP) or message["flags"] & 0x10
    made = made or message.get("protocol") or (message.get("flags_ext") or 0) & 1
    mac = bytes.fromhex((message.get("lladdr") or "").replace(":", ""))
    ip = packed(message.get("dst"))
    return ev.NeighborSeen(ifindex=message["ifindex"], ip=ip, state=state, mac=mac, foreign=bool(made))


def route(message: Any, tables: Container[int]) -> KernelChange | None:
    ipv4, table, metric = message["family"] == 2, message.get("table"), message.get("priority") or 0
    gateway, oif, ours = packed(message.get("gateway")), message.get("oif") or 0, message["proto"] == ROUTE_PROTOCOL
    shaped = any(message.get(name) is not None for name in ("multipath", "nh_id", "via"))
    if message["src_len"] or message["tos"]:
        return None
    if message["dst_len"]:
        made_by_kernel = message["proto"] in (2, 9)
        if message["table"] != 254 or message["type"] != RouteKind.UNICAST or made_by_kernel or gateway or shaped:
            return None
        prefix = Prefix(packed(message.get("dst")), message["dst_len"])
        return ev.LinkRouteSeen(ifindex=oif, prefix=prefix, metric=metric)
    if message["flags"] & 0x200 or (not ours and table not in tables):
        return None
    if shaped or message["type"] not in list(RouteKind):
        # Of a kind that ours never has, in the place of one of ours.
        other = Route(table, ipv4, RouteKind.UNICAST, metric, b"", 0, message["proto"])
        return ev.RouteSeen(route=other) if not ours and table in tables else None
    kind = RouteKind(message["type"])
    if kind is RouteKind.BLACKHOLE:
        gateway, oif = b"", 0
    return ev.RouteSeen(route=Route(table, ipv4, kind, metric, gateway, oif, message["proto"]))


def rule(message: Any, tables: Container[int]) -> KernelChange | None:
    mark, table, protocol = message.get("fwmark"), message.get("table"), message.get("protocol") or 0
    lengths = message["src_len"] or message["dst_len"] or message["tos"]
    selects = lengths or any(message.get(name) is not None for name in _SELECTORS)
    mask = message.get("fwmask")
    if not mark or selects or message["action"] != 1 or message["flags"] & 2 or mask not in (None, 0xFFFFFFFF):
        return None
    if protocol != ROUTE_PROTOCOL and table not in tables:
        return None
    return ev.RuleSeen(rule=Rule(mark, message["family"] == 2, table, message.get("priority") or 0, protocol))


READERS: dict[int, Callable[[Any, Container[int]], KernelChange | None]] = {
    16: link,
    20: address,
    24: route,
    28: neighbor,
    32: rule,
}
"""By the type of the message: RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH, RTM_NEWRULE."""
