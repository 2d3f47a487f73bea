import random

from hypothesis import given
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
)
from lbguard.kernel.codec.constants import IgnoredReason
from lbguard.kernel.codec.decode import Decoded, decode
from tests.effort import examples
from tests.unit.kernel import frames
from tests.unit.kernel.reading import LOWER_UP, MAC, UP, V4, V6, of_streams, read, reasons


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
@examples(300)
def test_random_bytes_never_raise(data: bytes) -> None:
    assert_well_typed(read(data))


@given(
    kind=st.integers(0, 70),
    body=st.binary(max_size=120),
    flags=st.integers(0, 0xFFFF),
)
@examples(300)
def test_random_bodies_never_raise(kind: int, body: bytes, flags: int) -> None:
    assert_well_typed(read(frames.message(kind, body, flags=flags)))


@given(st.integers(0, 2**32))
@examples(400)
def test_mutated_messages_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(b"".join(rng.sample(REAL, 3)))
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 4, 0x7F, 0xFF, rng.randrange(256)))
    length = rng.randint(0, len(data))
    decoded = decode(data, length, of_streams)
    assert_well_typed(decoded)
