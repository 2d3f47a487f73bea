"""The lean decoder and encoder agree with pyroute2 on the same messages."""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lbguard.core.model import ROUTE_PROTOCOL, NeighborState, Route, RouteKind, Rule
from lbguard.kernel.codec import encode
from lbguard.kernel.codec.decode import decode
from tests.unit.kernel.reference import TARGET_TABLES, packed, read

U32 = st.integers(1, 0xFFFFFFFF)
IFINDEX = st.integers(1, 0x7FFFFFFF)
MAC = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
TABLE = st.sampled_from([0, 254, 4999, 5000, 5999, 6000])
NAME = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.@é", min_size=1, max_size=7)
FAMILY = st.sampled_from([2, 10])


def ips(family: int) -> st.SearchStrategy[str]:
    if family == 2:
        return st.integers(1, 0xFFFFFFFF).map(lambda n: str(IPv4Address(n)))
    return st.integers(1, (1 << 128) - 1).map(lambda n: str(IPv6Address(n)))


def encoded(kind: int, message: nlmsg) -> bytes:
    """Return a message as pyroute2 encodes it, padded as in a datagram."""
    message["header"]["type"] = kind
    message.encode()
    return bytes(message.data) + bytes(-len(message.data) % 4)


def filled(message: nlmsg, attributes: Sequence[tuple[str, Any]], **fields: int) -> nlmsg:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = [(name, value) for name, value in attributes if value is not None]
    return message


@st.composite
def links(draw: st.DrawFn) -> bytes:
    attributes = draw(st.permutations([("IFLA_IFNAME", draw(NAME)), ("IFLA_ADDRESS", draw(MAC)), ("IFLA_MTU", 1500)]))
    flags = draw(st.sampled_from([0, 1, 0x10000, 0x10001, 0x11043]))
    return encoded(16, filled(ifinfmsg(), attributes, index=draw(IFINDEX), flags=flags))


@st.composite
def addresses(draw: st.DrawFn) -> bytes:
    family = draw(FAMILY)
    attributes = [
        ("IFA_ADDRESS", draw(ips(family))),
        ("IFA_LOCAL", draw(st.none() | ips(family))),
        ("IFA_FLAGS", draw(st.sampled_from([0, 0x80, 0x48, 0x40, 0x44, 0x08]))),
    ]
    length = draw(st.integers(0, 32 if family == 2 else 128))
    fields = {"family": family, "prefixlen": length, "index": draw(IFINDEX), "flags": 0x80}
    return encoded(20, filled(ifaddrmsg(), draw(st.permutations(attributes)), **fields))


@st.composite
def neighbors(draw: st.DrawFn) -> bytes:
    family = draw(FAMILY)
    attributes = [
        ("NDA_DST", draw(ips(family))),
        ("NDA_LLADDR", draw(st.none() | MAC)),
        ("NDA_PROBES", draw(U32)),
        ("NDA_PROTOCOL", draw(st.none() | st.integers(0, 255))),
    ]
    fields = {
        "family": family,
        "ifindex": draw(IFINDEX),
        "state": draw(st.sampled_from([state.value for state in NeighborState])),
        "flags": draw(st.sampled_from([0, 0x01, 0x08, 0x10, 0x80])),
    }
    return encoded(28, filled(ndmsg(), draw(st.permutations(attributes)), **fields))


@st.composite
def routes(draw: st.DrawFn) -> bytes:
    family, table = draw(FAMILY), draw(TABLE)
    length = draw(st.sampled_from([0, 0, 0, 8, 24, 32]))
    attributes = [
        ("RTA_TABLE", table),
        ("RTA_DST", draw(ips(family)) if length else None),
        ("RTA_GATEWAY", draw(st.none() | ips(family))),
        ("RTA_OIF", draw(IFINDEX)),
        ("RTA_PRIORITY", draw(st.none() | U32)),
        ("RTA_PREFSRC", draw(st.none() | ips(family))),
        ("RTA_NH_ID", draw(st.sampled_from([None, None, None, 7]))),
    ]
    fields = {
        "family": family,
        "dst_len": length,
        "src_len": draw(st.sampled_from([0, 0, 0, 16])),
        "tos": draw(st.sampled_from([0, 0, 0, 4])),
        "table": min(table, 252) if table != 254 else 254,
        "proto": draw(st.sampled_from([2, 3, 4, 9, 188, ROUTE_PROTOCOL])),
        "type": draw(st.sampled_from([1, 1, 1, 6, 7, 8])),
        "flags": draw(st.sampled_from([0, 0, 4, 0x200])),
    }
    return encoded(24, filled(rtmsg(), draw(st.permutations(attributes)), **fields))


@st.composite
def rules(draw: st.DrawFn) -> bytes:
    table = draw(TABLE)
    attributes = [
        ("FRA_TABLE", table),
        ("FRA_FWMARK", draw(st.none() | U32)),
        ("FRA_FWMASK", draw(st.sampled_from([None, 0xFFFFFFFF, 0xFFFFFFFF, 0xFF]))),
        ("FRA_PRIORITY", draw(st.none() | U32)),
        ("FRA_PROTOCOL", draw(st.sampled_from([None, 0, 3, ROUTE_PROTOCOL]))),
        ("FRA_SUPPRESS_PREFIXLEN", 0xFFFFFFFF),
        ("FRA_IIFNAME", draw(st.sampled_from([None, None, None, "eth0"]))),
        ("FRA_IP_PROTO", draw(st.sampled_from([None, None, None, 6]))),
    ]
    fields = {
        "family": draw(FAMILY),
        "src_len": draw(st.sampled_from([0, 0, 0, 8])),
        "table": min(table, 252),
        "action": draw(st.sampled_from([1, 1, 1, 6])),
        "flags": draw(st.sampled_from([0, 0, 0, 2])),
    }
    return encoded(32, filled(fibmsg(), draw(st.permutations(attributes)), **fields))


@pytest.mark.parametrize("messages", [links, addresses, neighbors, routes, rules])
def test_both_decoders_read_the_same(messages: Callable[[], st.SearchStrategy[bytes]]) -> None:
    @given(st.lists(messages(), min_size=1, max_size=3))
    def check(datagram: list[bytes]) -> None:
        data = b"".join(datagram)
        decoded = decode(data, len(data), TARGET_TABLES.__contains__)
        assert [change.event for change in decoded.changes] == read(data)

    check()


IPV4, IPV6 = st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)
TARGET_ROUTES = st.builds(
    lambda ip, table, metric, oif, blackhole: (
        Route(table, len(ip) == 4, RouteKind.BLACKHOLE, metric, b"", 0, ROUTE_PROTOCOL)
        if blackhole
        else Route(table, len(ip) == 4, RouteKind.UNICAST, metric, ip, oif, ROUTE_PROTOCOL)
    ),
    IPV4 | IPV6,
    U32,
    U32,
    IFINDEX,
    st.booleans(),
)
TARGET_RULES = st.builds(
    lambda mark, ipv4, table, priority: Rule(mark, ipv4, table, priority, ROUTE_PROTOCOL), U32, st.booleans(), U32, U32
)


def decoded(message: bytes) -> Any:
    [found] = MarshalRtnl().parse(message)
    return found


@given(TARGET_ROUTES, st.booleans())
def test_pyroute2_reads_the_routes_of_a_repair(route: Route, on_link: bool) -> None:
    for encoder, kind, flags in (
        (encode.add_route, 24, 0x400 | 0x200 | 1),
        (encode.replace_route, 24, 0x400 | 0x100 | 1),
    ):
        found = decoded(encoder(route, on_link=on_link))
        assert (found["header"]["type"], found["header"]["flags"]) == (kind, flags)
        assert (found["family"], found["proto"]) == (2 if route.ipv4 else 10, ROUTE_PROTOCOL)
        assert (found.get("table"), found.get("priority"), found["type"]) == (route.table, route.metric, route.kind)
        assert (packed(found.get("gateway")), found.get("oif") or 0) == (route.gateway, route.oif)
        assert bool(found["flags"] & 4) == on_link
    gone = decoded(encode.delete_route(route))
    assert (gone["header"]["type"], gone.get("table"), gone.get("priority")) == (25, route.table, route.metric)
    assert (gone["type"], packed(gone.get("gateway")), gone.get("oif") or 0) == (route.kind, route.gateway, route.oif)


@given(TARGET_RULES)
def test_pyroute2_reads_the_rules(rule: Rule) -> None:
    for message, kind in ((encode.add_rule(rule), 32), (encode.delete_rule(rule), 33)):
        found = decoded(message)
        assert (found["header"]["type"], found["action"], found["family"]) == (kind, 1, 2 if rule.ipv4 else 10)
        assert (found.get("fwmark"), found.get("fwmask"), found.get("table")) == (rule.mark, 0xFFFFFFFF, rule.table)
        assert (found.get("priority"), found.get("protocol")) == (rule.priority, ROUTE_PROTOCOL)


@given(IFINDEX, IPV4 | IPV6)
def test_pyroute2_reads_the_requests_for_neighbours(ifindex: int, ip: bytes) -> None:
    for message, kind, flags, state, use in (
        (encode.delete_neighbor(ifindex, ip), 29, 0x1, 0, 0),
        (encode.resolve_neighbor(ifindex, ip), 28, 0x401, 0, 1),
        (encode.probe_neighbor(ifindex, ip), 28, 0x101, NeighborState.PROBE, 0),
    ):
        found = decoded(message)
        assert (found["header"]["type"], found["header"]["flags"]) == (kind, flags)
        assert (found["ifindex"], found["state"], found["flags"]) == (ifindex, state, use)
        assert packed(found.get("dst")) == ip
