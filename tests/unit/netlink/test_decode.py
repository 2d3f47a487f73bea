import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbguard.core.events import (
    AddressGone,
    AddressSeen,
    LinkGone,
    LinkSeen,
    NeighborGone,
    NeighborSeen,
    RouteGone,
    RouteSeen,
    RuleGone,
    RuleSeen,
)
from lbguard.core.model import NeighborState, Route, RouteKind, Rule
from lbguard.netlink.decode import Decoded, IgnoredReason, decode
from tests.unit.netlink import frames

MAC = bytes.fromhex("0200000000aa")
V4 = bytes([172, 16, 0, 10])
V6 = bytes.fromhex("fd000000000000000000000000000010")
UP, LOWER_UP = 0x1, 0x10000


def of_streams(table: int) -> bool:
    return 5000 < table <= 5100


def read(data: bytes) -> Decoded:
    return decode(data, len(data), of_streams)


def events(data: bytes) -> list[object]:
    decoded = read(data)
    assert not decoded.ignored
    return [change.event for change in decoded.changes]


def reasons(data: bytes) -> list[str]:
    decoded = read(data)
    assert not decoded.changes
    return [reason.value for reason in decoded.ignored]


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
def test_local_address_not_the_peer(ours: bytes) -> None:
    peer = b"\x09" * len(ours)
    data = frames.message(20, frames.address_body(3, ours, 24, peer=peer))
    assert events(data) == [AddressSeen(ifindex=3, ip=ours, prefix_length=24)]


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
    assert events(seen) == [NeighborSeen(ifindex=3, ip=ip, state=state, mac=MAC)]
    assert events(frames.message(29, frames.neighbor_body(3, ip, state.value))) == [NeighborGone(ifindex=3, ip=ip)]


def test_unresolved_neighbor_has_no_mac() -> None:
    data = frames.message(28, frames.neighbor_body(3, V4, 0x20))
    assert events(data) == [NeighborSeen(ifindex=3, ip=V4, state=NeighborState.FAILED)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (frames.neighbor_body(3, V4, 0x40, MAC), "neighbor_without_arp"),
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


def test_many_messages_in_order_with_flags() -> None:
    first = frames.message(28, frames.neighbor_body(3, V4, 2, MAC), flags=frames.MULTI, sequence=8)
    second = frames.message(17, frames.link_body(7, "a", 0, MAC), flags=frames.MULTI | frames.INTERRUPTED, sequence=8)
    decoded = read(first + second + frames.done(8))
    assert [type(change.event) for change in decoded.changes] == [NeighborSeen, LinkGone]
    assert [change.sequence for change in decoded.changes] == [8, 8]
    assert decoded.interrupted == [8]
    assert [(control.done, control.sequence, control.error) for control in decoded.controls] == [(True, 8, 0)]


def test_flag_bit_of_interruption_means_nothing_outside_a_dump() -> None:
    assert read(frames.message(17, frames.link_body(7, "a", 0, MAC), flags=frames.INTERRUPTED)).interrupted == []


def test_error_with_text() -> None:
    [control] = read(frames.error(4, 101, "Nexthop has invalid gateway")).controls
    assert (control.done, control.sequence, control.error) == (False, 4, 101)
    assert control.text == "Nexthop has invalid gateway"


def test_failed_dump() -> None:
    [control] = read(frames.done(4, error=22)).controls
    assert (control.done, control.error) == (True, 22)


def test_unknown_type() -> None:
    assert reasons(frames.message(99, b"\0" * 8)) == ["unknown_type"]


def test_cut_messages() -> None:
    whole = frames.message(28, frames.neighbor_body(3, V4, 2, MAC))
    assert reasons(whole[:-4]) == ["truncated"]
    assert reasons(whole[:10]) == ["truncated"]
    assert reasons(frames.message(28, b"\x02\0\0\0")) == ["malformed"]


def test_bytes_after_the_datagram_are_not_read() -> None:
    stale = bytearray(frames.message(28, frames.neighbor_body(3, V4, 2, MAC)))
    short = frames.message(28, frames.neighbor_body(3, V4, 2, MAC)[:12])
    stale[: len(short)] = short
    decoded = decode(stale, len(short), of_streams)
    assert (decoded.changes, decoded.ignored) == ([], [IgnoredReason.MALFORMED])


def test_attribute_longer_than_its_message() -> None:
    body = frames.neighbor_body(3, V4, 2, MAC)[:12] + b"\xff\x00\x01\x00" + V4
    assert reasons(frames.message(28, body)) == ["malformed"]


def test_attribute_of_no_length_does_not_hang() -> None:
    body = frames.neighbor_body(3, V4, 2, MAC)[:12] + b"\0" * 16
    assert reasons(frames.message(28, body)) == ["malformed"]


REAL = [
    frames.message(16, frames.link_body(7, "nse-a", UP | LOWER_UP, MAC)),
    frames.message(17, frames.link_body(7, "nse-a", 0, MAC)),
    frames.message(20, frames.address_body(3, V4, 24)),
    frames.message(20, frames.address_body(3, V6, 64, flags=0x40)),
    frames.message(28, frames.neighbor_body(3, V6, 2, MAC)),
    frames.message(29, frames.neighbor_body(3, V4, 0x20)),
    frames.message(24, frames.route_body(5007, gateway=V6, oif=9, metric=2048, ipv4=False)),
    frames.message(32, frames.rule_body(5007, 5007)),
    frames.error(4, 101, "text"),
    frames.done(4),
]


def assert_well_typed(decoded: Decoded) -> None:
    for change in decoded.changes:
        event = change.event
        if isinstance(event, AddressSeen | AddressGone | NeighborSeen | NeighborGone):
            assert type(event.ip) is bytes
            assert len(event.ip) in (4, 16)
        elif isinstance(event, RouteSeen | RouteGone):
            assert type(event.route.gateway) is bytes
        elif isinstance(event, LinkSeen):
            assert event.name
            assert event.ifindex > 0
        hash(event)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_raise(data: bytes) -> None:
    assert_well_typed(read(data))


@given(
    kind=st.integers(0, 70),
    body=st.binary(max_size=120),
    flags=st.integers(0, 0xFFFF),
)
@settings(max_examples=300, deadline=None)
def test_random_bodies_never_raise(kind: int, body: bytes, flags: int) -> None:
    assert_well_typed(read(frames.message(kind, body, flags=flags)))


@given(st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_mutated_messages_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(b"".join(rng.sample(REAL, 3)))
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 4, 0x7F, 0xFF, rng.randrange(256)))
    length = rng.randint(0, len(data))
    decoded = decode(data, length, of_streams)
    assert_well_typed(decoded)
