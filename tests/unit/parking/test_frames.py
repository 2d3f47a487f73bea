"""What a frame of the parking link says: its target, and which TCP segment it carries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.parking.frames import ParkedPacket, gateway_of, mac_of, read_frame
from tests.unit.parking.packets import ACK, FIN, RST, SYN, TCP, UDP, datagram, frame, ipv4, ipv6, segment


def read(packet: bytes, mark: int = 5001) -> ParkedPacket:
    parked = read_frame(frame(packet, mark))
    assert parked is not None
    return parked


@pytest.mark.parametrize("mark", [1, 5001, 2**32 - 1])
def test_a_frame_names_its_target(mark: int) -> None:
    parked = read(ipv4(UDP, datagram()), mark)
    assert (parked.mark, parked.ipv4, parked.packet) == (mark, True, ipv4(UDP, datagram()))
    assert parked.destination == bytes((20, 0, 0, 1))
    six = read(ipv6(UDP, datagram()), mark)
    assert (six.mark, six.ipv4) == (mark, False)
    assert six.destination == ipv6(UDP, b"")[24:40]
    assert mac_of(mark) == bytes((2, 0x6C)) + mark.to_bytes(4, "big")
    assert gateway_of(mark) == b"\xfe\x80" + bytes(10) + mark.to_bytes(4, "big")


@pytest.mark.parametrize("make", [ipv4, ipv6])
def test_a_repeated_segment_is_the_same_whatever_its_options_and_acknowledgement(make) -> None:  # type: ignore[no-untyped-def]
    first = read(make(TCP, segment(100, b"data", ack=1)))
    assert first.segment
    assert read(make(TCP, segment(100, b"DATA", ack=9, options=bytes(12)))).segment == first.segment
    others = [
        segment(101, b"data"),
        segment(100, b"dat"),
        segment(100, b"data", port=1001),
        segment(100, b"data", flags=ACK | FIN),
    ]
    assert first.segment not in {read(make(TCP, other)).segment for other in others}
    assert read(make(TCP, segment(100, b"data"), source="10.0.0.3" if make is ipv4 else "2000::3")) != first


@pytest.mark.parametrize("make", [ipv4, ipv6])
def test_all_pure_acknowledgements_of_a_flow_are_one(make) -> None:  # type: ignore[no-untyped-def]
    acks = {read(make(TCP, segment(100, ack=ack))).segment for ack in range(5)}
    assert len(acks) == 1
    assert read(make(TCP, segment(100, port=1001))).segment not in acks
    for flags in (SYN, FIN | ACK, RST):
        assert read(make(TCP, segment(100, flags=flags))).segment not in acks


def test_other_packets_are_each_their_own() -> None:
    packets = [
        ipv4(UDP, datagram()),
        ipv4(TCP, segment(1), fragment=0x2000),
        ipv4(TCP, segment(1), fragment=0x0001),
        ipv4(TCP, segment(1), options=bytes(4)),
        ipv4(TCP, segment(1)[:19]),
        ipv6(44, datagram()),
        ipv6(TCP, segment(1)[:19]),
    ]
    assert [read(packet).segment for packet in packets] == [b""] * len(packets)
    assert read(ipv4(TCP, segment(1), fragment=0x4000)).segment, "do not fragment is no fragment"


def test_frames_of_others_are_no_packets() -> None:
    good = frame(ipv4(UDP, datagram()))
    assert read_frame(b"\x33\x33" + good[2:]) is None
    assert read_frame(good[:12] + b"\x08\x06" + good[14:]) is None
    assert read_frame(frame(ipv6(UDP, b""))[:50]) is None


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b""]))
def test_no_bytes_are_too_strange(rest: bytes, kind: bytes) -> None:
    read_frame(rest)
    parked = read_frame(b"\x02\x6c\0\0\x13\x89source" + kind + rest)
    assert parked is None or len(parked.destination) == (4 if parked.ipv4 else 16)
