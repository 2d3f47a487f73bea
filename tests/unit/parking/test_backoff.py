"""Which targets are told to repeat lost replies, when, and the messages."""

import struct
from ipaddress import ip_address

import pytest

from lbguard.core.addr import Ip
from lbguard.kernel.codec.checksum import checksum
from lbguard.parking.backoff import BackoffReverts, Unreachable
from lbguard.parking.frames import ParkedPacket, read_frame
from tests.unit.parking import packets as p

CLIENT = {True: ip_address("10.0.0.2").packed, False: ip_address("2000::2").packed}
VIP = {True: ip_address("20.0.0.1").packed, False: ip_address("2000::1").packed}


def parked(body: bytes, *, ipv4: bool = True, mark: int = 5001, protocol: int = p.TCP) -> ParkedPacket:
    found = read_frame(p.frame((p.ipv4 if ipv4 else p.ipv6)(protocol, body), mark))
    assert found is not None
    return found


def noted(*packets: ParkedPacket, since: float = 0.0, now: float = 4.0) -> BackoffReverts:
    reverts = BackoffReverts(100)
    for packet in packets:
        reverts.note(packet, since, now)
    return reverts


def quoted(message: Unreachable) -> tuple[Ip, Ip, int, int, int]:
    """Return source, destination, ports and sequence number of the segment that a message is about."""
    packet = message.message[8:]
    header = 20 if message.ipv4 else 40
    source, destination = (packet[12:16], packet[16:20]) if message.ipv4 else (packet[8:24], packet[24:40])
    return source, destination, *struct.unpack("!HHI", packet[header : header + 8])


@pytest.mark.parametrize("ipv4", [True, False])
def test_the_message_is_about_the_first_segment_that_the_client_has_not_acknowledged(ipv4: bool) -> None:
    reverts = noted(parked(p.segment(7, b"request", port=1000, ack=4711), ipv4=ipv4))
    [message] = reverts.take(4.01, 10)
    assert (message.mark, message.ipv4, message.destination) == (5001, ipv4, VIP[ipv4])
    assert quoted(message) == (VIP[ipv4], CLIENT[ipv4], 443, 1000, 4711)


def test_an_ipv4_message_says_host_unreachable_with_valid_checksums() -> None:
    [message] = noted(parked(p.segment(7, b"request", ack=4711))).take(4.01, 10)
    assert message.message[:2] == bytes((3, 1))
    assert checksum(message.message) == 0
    assert checksum(message.message[8:28]) == 0
    assert int.from_bytes(message.message[10:12]) == len(message.message) - 8


def test_an_ipv6_message_says_no_route_and_leaves_the_checksum_to_the_kernel() -> None:
    [message] = noted(parked(p.segment(7, b"request", ack=4711), ipv4=False)).take(4.01, 10)
    assert message.message[:4] == bytes((1, 0, 0, 0))
    assert int.from_bytes(message.message[12:14]) == len(message.message) - 48


def test_the_newest_acknowledgement_of_a_connection_counts_also_across_the_wrap() -> None:
    acks = (2**32 - 2, 5, 2**32 - 1)
    [message] = noted(*(parked(p.segment(n, b"x", ack=ack)) for n, ack in enumerate(acks))).take(4.01, 10)
    assert quoted(message)[-1] == 5


def test_a_target_is_told_three_times_and_then_no_more() -> None:
    reverts = noted(parked(p.segment(7, b"request")))
    assert reverts.next_at() == pytest.approx(4.003)
    assert reverts.take(4.002, 10) == []
    assert len(reverts.take(4.003, 10)) == 1
    assert reverts.next_at() == pytest.approx(4.05)
    assert len(reverts.take(4.05, 10)) == 1
    assert len(reverts.take(4.3, 10)) == 1
    assert reverts.next_at() is None


@pytest.mark.parametrize(("kept_s", "times"), [(0.05, 1), (0.19, 1), (0.5, 2), (2.5, 4), (4.0, 5), (1e6, 10)])
def test_it_is_told_as_often_as_its_timer_was_doubled_at_most(kept_s: float, times: int) -> None:
    [message] = noted(parked(p.segment(7, b"request")), since=0.0, now=kept_s).take(kept_s + 0.003, 10)
    assert message.times == times


def test_the_longest_kept_segment_of_a_connection_tells_how_long_the_target_waits() -> None:
    reverts = BackoffReverts(100)
    reverts.note(parked(p.segment(7, b"first")), 3.9, 4.0)
    reverts.note(parked(p.segment(12, b"second")), 0.0, 4.0)
    [message] = reverts.take(4.003, 10)
    assert message.times == 5


@pytest.mark.parametrize(
    "body",
    [p.segment(7, flags=p.SYN), p.segment(7, flags=p.RST | p.ACK), p.segment(7, flags=p.SYN | p.ACK)],
    ids=["syn", "rst", "syn-ack"],
)
def test_segments_of_no_connection_are_left_out(body: bytes) -> None:
    assert noted(parked(body)).next_at() is None


def test_other_packets_are_left_out() -> None:
    assert noted(parked(p.datagram(), protocol=p.UDP)).next_at() is None


def test_a_pure_acknowledgement_is_enough() -> None:
    [message] = noted(parked(p.segment(7, ack=99))).take(4.01, 10)
    assert quoted(message)[-1] == 99


def test_each_connection_has_a_message_of_its_own_in_portions() -> None:
    reverts = noted(*(parked(p.segment(7, b"x", port=port)) for port in range(1000, 1010)))
    assert [quoted(message)[3] for message in reverts.take(4.01, 4)] == [1000, 1001, 1002, 1003]
    assert len(reverts.take(4.01, 100)) == 6


def test_nothing_is_sent_to_a_target_that_is_held_again() -> None:
    reverts = noted(parked(p.segment(7, b"x")), parked(p.segment(7, b"x", port=9)), parked(p.segment(7), ipv4=False))
    reverts.take(4.003, 1)
    reverts.discard(5001, ipv4=True)
    assert [message.ipv4 for message in reverts.take(5.0, 10)] == [False]


def test_the_number_of_connections_is_bounded() -> None:
    reverts = BackoffReverts(3)
    for port in range(1000, 1010):
        reverts.note(parked(p.segment(7, b"x", port=port)), 0.0, 4.0)
    assert len(reverts.take(4.01, 100)) == 3
