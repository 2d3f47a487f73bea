import pytest

from lbguard.core.addr import Prefix, prefix_of
from lbguard.core.events import (
    AddressGone,
    AddressSeen,
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
from lbguard.core.model import NeighborState, Route, RouteKind, Rule
from lbguard.kernel.codec.decode import decode
from tests.unit.kernel import frames
from tests.unit.kernel.reading import LOWER_UP, MAC, UP, V4, V6, events, reasons


@pytest.mark.parametrize(
    ("flags", "up", "admin_up"),
    [(UP | LOWER_UP, True, True), (UP, False, True), (LOWER_UP, False, False), (0, False, False)],
)
def test_link_seen(flags: int, up: bool, admin_up: bool) -> None:
    data = frames.message(16, frames.link_body(7, "nse-a", flags, MAC))
    assert events(data) == [LinkSeen(ifindex=7, name="nse-a", up=up, mac=MAC, admin_up=admin_up)]


def test_link_without_link_layer_address() -> None:
    body = frames.link_body(7, "tun0", UP | LOWER_UP, MAC)[: 16 + 12]
    assert events(frames.message(16, body)) == [LinkSeen(ifindex=7, name="tun0", up=True, mac=b"")]


def test_link_without_name_is_malformed() -> None:
    assert reasons(frames.message(16, frames.link_body(7, "", UP, MAC))) == ["malformed"]


def test_link_gone() -> None:
    assert events(frames.message(17, frames.link_body(7, "nse-a", 0, MAC))) == [LinkGone(ifindex=7)]


@pytest.mark.parametrize("kind", [16, 17])
def test_bridge_port_messages_are_not_link_messages(kind: int) -> None:
    assert reasons(frames.message(kind, frames.link_body(7, "port", UP, MAC, family=7))) == ["other_family"]


def test_addresses() -> None:
    assert events(frames.message(20, frames.address_body(3, V4, 24))) == [
        AddressSeen(ifindex=3, ip=V4, prefix_length=24)
    ]
    assert events(frames.message(20, frames.address_body(3, V6, 64))) == [
        AddressSeen(ifindex=3, ip=V6, prefix_length=64)
    ]
    assert events(frames.message(21, frames.address_body(3, V6, 64))) == [
        AddressGone(ifindex=3, ip=V6, prefix_length=64)
    ]


@pytest.mark.parametrize("ours", [V4, V6])
def test_the_prefix_of_an_address_with_a_peer_is_the_peers(ours: bytes) -> None:
    peer = b"\x09" * len(ours)
    [seen] = events(frames.message(20, frames.address_body(3, ours, 24, peer=peer)))
    assert seen == AddressSeen(ifindex=3, ip=ours, prefix_length=24, peer=peer)
    assert isinstance(seen, AddressSeen)
    assert seen.subnet == prefix_of(peer, 24)
    [gone] = events(frames.message(21, frames.address_body(3, ours, 24, peer=peer)))
    assert gone == AddressGone(ifindex=3, ip=ours, prefix_length=24, peer=peer)


@pytest.mark.parametrize(
    ("flags", "usable"),
    [
        (0x80, True),
        (0x40, False),  # tentative
        (0x44, True),  # tentative, but optimistic (RFC 4429)
        (0x08, False),  # duplicate detection failed
        (0x4C, False),
        (0x240, False),  # a flag that only IFA_FLAGS can hold goes with it
    ],
)
def test_usable_address(flags: int, usable: bool) -> None:
    data = frames.message(20, frames.address_body(3, V6, 64, flags=flags))
    assert events(data) == [AddressSeen(ifindex=3, ip=V6, prefix_length=64, usable=usable)]


def test_address_with_impossible_prefix_or_size() -> None:
    assert reasons(frames.message(20, frames.address_body(3, V4, 33))) == ["malformed"]
    body = frames.address_body(3, V4, 24)[:8] + frames.attribute(2, V6)
    assert reasons(frames.message(20, body)) == ["malformed"]


@pytest.mark.parametrize("ip", [V4, V6])
@pytest.mark.parametrize("state", [NeighborState.REACHABLE, NeighborState.PROBE, NeighborState.PERMANENT])
def test_neighbors(ip: bytes, state: NeighborState) -> None:
    seen = frames.message(28, frames.neighbor_body(3, ip, state.value, MAC))
    foreign = state is NeighborState.PERMANENT
    assert events(seen) == [NeighborSeen(ifindex=3, ip=ip, state=state, mac=MAC, foreign=foreign)]
    assert events(frames.message(29, frames.neighbor_body(3, ip, state.value))) == [NeighborGone(ifindex=3, ip=ip)]


@pytest.mark.parametrize(
    "body",
    [
        frames.neighbor_body(3, V4, 0x80, MAC),
        frames.neighbor_body(3, V4, 0x40, MAC),  # NOARP
        frames.neighbor_body(3, V4, 0x02, MAC, flags=0x10),  # learned by a control plane
        frames.neighbor_body(3, V4, 0x02, MAC, extra=frames.attribute(12, b"\x04")),  # protocol static
        frames.neighbor_body(3, V4, 0x01, extra=frames.u32(15, 1)),  # managed
    ],
)
def test_entries_that_somebody_made_are_told_as_such(body: bytes) -> None:
    [seen] = events(frames.message(28, body))
    assert isinstance(seen, NeighborSeen)
    assert seen.foreign


def link_route(prefix: bytes, length: int, *, extra: bytes = b"", protocol: int = 4, table: int = 254) -> bytes:
    return frames.route_body(
        table, oif=9, metric=7, ipv4=len(prefix) == 4, protocol=protocol, dst_len=length,
        extra=frames.attribute(1, prefix) + extra,
    )  # fmt: skip


@pytest.mark.parametrize(("prefix", "length"), [(bytes([172, 16, 0, 0]), 24), (V6, 128)])
def test_a_route_without_a_gateway_puts_its_prefix_on_the_link(prefix: bytes, length: int) -> None:
    told = Prefix(prefix, length)
    body = link_route(prefix, length)
    assert events(frames.message(24, body)) == [LinkRouteSeen(ifindex=9, prefix=told, metric=7)]
    assert events(frames.message(25, body)) == [LinkRouteGone(ifindex=9, prefix=told, metric=7)]


@pytest.mark.parametrize(
    "body",
    [
        link_route(V4, 32, extra=frames.attribute(5, V4)),
        link_route(V4, 32, extra=frames.u32(30, 1)),
        link_route(V4, 32, protocol=2),
        link_route(V4, 32, table=100),
    ],
    ids=["gateway", "next-hop object", "made by the kernel", "another table"],
)
def test_other_routes_to_prefixes_are_of_no_interest(body: bytes) -> None:
    assert reasons(frames.message(24, body)) == ["not_default_route"]


def test_unresolved_neighbor_has_no_mac() -> None:
    data = frames.message(28, frames.neighbor_body(3, V4, 0x20))
    assert events(data) == [NeighborSeen(ifindex=3, ip=V4, state=NeighborState.FAILED)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (frames.neighbor_body(3, MAC, 0x02, MAC, family=7), "other_family"),
        (frames.neighbor_body(3, V4, 0x02, MAC, flags=0x08), "neighbor_proxy"),
        (frames.neighbor_body(3, V4, 0x03, MAC), "malformed"),
    ],
)
def test_ignored_neighbors(body: bytes, reason: str) -> None:
    assert reasons(frames.message(28, body)) == [reason]


@pytest.mark.parametrize("gateway", [V4, V6])
def test_target_route(gateway: bytes) -> None:
    ipv4 = len(gateway) == 4
    body = frames.route_body(5007, gateway=gateway, oif=9, metric=2048, ipv4=ipv4)
    route = Route(table=5007, ipv4=ipv4, kind=RouteKind.UNICAST, metric=2048, gateway=gateway, oif=9, protocol=152)
    assert events(frames.message(24, body)) == [RouteSeen(route=route)]
    assert events(frames.message(25, body)) == [RouteGone(route=route)]


def test_blackhole_has_no_device() -> None:
    body = frames.route_body(5007, oif=1, metric=0xFFFFFFFF, ipv4=False, kind=6)
    route = Route(table=5007, ipv4=False, kind=RouteKind.BLACKHOLE, metric=0xFFFFFFFF, gateway=b"", oif=0)
    assert events(frames.message(24, body)) == [RouteSeen(route=route)]


def test_small_table_number_from_the_header() -> None:
    body = frames.route_body(5007, oif=9)[:12]
    data = frames.message(24, body)
    seen = decode(data, len(data), lambda table: table == 252).changes
    assert [change.event for change in seen] == [
        RouteSeen(route=Route(table=252, ipv4=True, kind=RouteKind.UNICAST, metric=0))
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (frames.route_body(5007, gateway=V4, oif=9, dst_len=24), "not_default_route"),
        (frames.route_body(5007, kind=7), "other_route_type"),
        (frames.route_body(5007, gateway=V4, oif=9, flags=0x200), "route_cached"),
        (frames.route_body(5007, extra=frames.attribute(9, b"\0" * 16)), "route_multipath"),
        (frames.route_body(5007, oif=9, extra=frames.u32(30, 4)), "route_nexthop_object"),
        (frames.route_body(5007, oif=9, extra=frames.attribute(18, b"\x0a\0" + V6)), "route_via_other_family"),
        (frames.route_body(254, gateway=V4, oif=9, protocol=3), "other_table"),
        (frames.route_body(5007, gateway=V6, oif=9), "malformed"),
    ],
)
def test_ignored_routes(body: bytes, reason: str) -> None:
    assert reasons(frames.message(24, body)) == [reason]


@pytest.mark.parametrize("kind", [2, 7, 8, 9])
@pytest.mark.parametrize("extra", [b"", frames.attribute(9, b"\0" * 16), frames.u32(30, 4) + frames.u32(4, 9)])
def test_a_route_of_somebody_else_takes_its_place_whatever_it_is(kind: int, extra: bytes) -> None:
    body = frames.route_body(5007, metric=2048, kind=kind if not extra else 1, protocol=4, extra=extra)
    route = Route(table=5007, ipv4=True, kind=RouteKind.UNICAST, metric=2048, gateway=b"", oif=0, protocol=4)
    assert events(frames.message(24, body)) == [RouteSeen(route=route)]
    assert events(frames.message(25, body)) == [RouteGone(route=route)]


def test_our_own_leftovers_pass_in_any_table() -> None:
    assert len(events(frames.message(24, frames.route_body(9999, gateway=V4, oif=9)))) == 1
    assert len(events(frames.message(32, frames.rule_body(9999, 9999)))) == 1


@pytest.mark.parametrize("family", [2, 10])
def test_fwmark_rule(family: int) -> None:
    body = frames.rule_body(5007, 5007, family=family)
    rule = Rule(mark=5007, ipv4=family == 2, table=5007, priority=3000, protocol=152)
    assert events(frames.message(32, body)) == [RuleSeen(rule=rule)]
    assert events(frames.message(33, body)) == [RuleGone(rule=rule)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (frames.rule_body(0, 5007), "not_fwmark_rule"),
        (frames.rule_body(5007, 5007, mask=0xFF), "not_fwmark_rule"),
        (frames.rule_body(5007, 5007, action=6), "not_fwmark_rule"),
        (frames.rule_body(5007, 5007, flags=2), "not_fwmark_rule"),
        (frames.rule_body(5007, 5007, extra=frames.attribute(3, b"eth0\0")), "not_fwmark_rule"),
        (frames.rule_body(5007, 254, protocol=3), "other_table"),
        (frames.rule_body(5007, 5007, family=128), "other_family"),
    ],
)
def test_ignored_rules(body: bytes, reason: str) -> None:
    assert reasons(frames.message(32, body)) == [reason]
