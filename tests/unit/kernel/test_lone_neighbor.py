import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.events import NeighborSeen
from lbguard.core.model import NeighborState
from lbguard.kernel.codec.decode import decode, lone_neighbor
from tests.effort import examples
from tests.unit.kernel import frames

MAC = bytes.fromhex("020000000a01")
V4 = bytes([172, 16, 0, 10])
V6 = bytes.fromhex("fd00000000000000000000000000000a")


def verified(ip: bytes, *, mac: bytes = MAC, state: int = 2, age: int = 0, flags: int = 0, extra: bytes = b"") -> bytes:
    """The kernel's word on an entry, with an age (NDA_CACHEINFO) that differs from one to the next."""
    return frames.message(28, frames.neighbor_body(3, ip, state, mac, age=age, extra=extra), flags=flags)


@pytest.mark.parametrize("ip", [V4, V6])
def test_event_of_a_verified_entry(ip: bytes) -> None:
    data = verified(ip)
    expected = NeighborSeen(ifindex=3, ip=ip, state=NeighborState.REACHABLE, mac=MAC)
    assert lone_neighbor(data, len(data)) == expected


@pytest.mark.parametrize("ip", [V4, V6])
def test_it_is_decoded_once_and_a_moved_one_anew(ip: bytes) -> None:
    first, again, moved = verified(ip), verified(ip, age=77), verified(ip, mac=bytes.fromhex("020000000b02"))
    assert first != again
    known = lone_neighbor(first, len(first))
    assert known is not None
    assert lone_neighbor(again, len(again)) is known
    event = lone_neighbor(moved, len(moved))
    assert event is not None
    assert event.mac == bytes.fromhex("020000000b02")


@pytest.mark.parametrize(
    "data",
    [
        verified(V4, state=0x20),
        verified(V4, flags=frames.MULTI),
        verified(V4, flags=frames.REPLACE),
        verified(V4, mac=b""),
        verified(V4, mac=bytes(20)),
        verified(V4, extra=frames.attribute(12, b"\x04")),  # made by somebody: protocol static
        verified(V4) + verified(V6),
        frames.message(29, frames.neighbor_body(3, V4, 2, MAC)),
        frames.message(20, frames.address_body(3, V4, 24)),
        verified(V4)[:-4],
        verified(V4)[:20],
        b"",
    ],
    ids=str,
)
def test_anything_else_is_left_to_the_decoder(data: bytes) -> None:
    assert lone_neighbor(data, len(data)) is None


def test_bytes_after_the_datagram_are_not_read() -> None:
    stale = bytearray(verified(V4))
    assert lone_neighbor(stale, 28) is None


@given(st.integers(0, 2**32))
@examples(500)
def test_whatever_the_bytes_it_agrees_with_the_decoder(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(verified(rng.choice((V4, V6)), age=rng.randrange(2**64)) + verified(V6))
    length = rng.choice((rng.randint(0, len(data)), int.from_bytes(data[:4], "little")))
    for _ in range(rng.randint(0, 3)):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 4, 0xFF, rng.randrange(256)))
    event = lone_neighbor(data, length)
    if event is not None:
        decoded = decode(data, length, lambda _: False)
        assert [(change.event, change.flags) for change in decoded.changes] == [(event, 0)]
        assert (decoded.controls, decoded.ignored) == ([], [])
