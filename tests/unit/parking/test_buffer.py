"""The buffer of parked packets: bounds, order, fairness, and to whom packets are given back."""

import tracemalloc
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.model import ParkingLane, ParkingMode
from lbguard.parking.buffer import Bounds, ParkingBuffer, Waiting
from lbguard.parking.frames import ParkedPacket, read_frame
from tests.effort import examples
from tests.unit.parking.packets import ACK, FIN, TCP, UDP, datagram, frame, ipv4, ipv6, segment

KEEP, GIVE_BACK, DROP = ParkingMode.KEEP, ParkingMode.GIVE_BACK, ParkingMode.DROP
ALL = 10_000
SCTP = 132


def lane(
    mark: int = 5001, mode: ParkingMode = KEEP, *, ipv4: bool = True, term: int = 1, reason: str = ""
) -> ParkingLane:
    return ParkingLane(mark=mark, ipv4=ipv4, mode=mode, term=term, reason=reason)


def parked(packet: bytes, mark: int = 5001) -> ParkedPacket:
    found = read_frame(frame(packet, mark))
    assert found is not None
    return found


def udp(number: int, mark: int = 5001, size: int = 8) -> ParkedPacket:
    return parked(ipv4(UDP, datagram(number.to_bytes(4, "big") + bytes(size - 4))), mark)


def number_of(waiting: Waiting) -> int:
    return int.from_bytes(waiting.parked.packet[28:32], "big")


def buffer(*, packets: int = 1000, memory: int = 2**24, max_age_s: float = 15.0, lanes: int = 1) -> ParkingBuffer:
    made = ParkingBuffer(Bounds(packets=packets, memory_bytes=memory, max_age_s=max_age_s))
    for n in range(lanes):
        made.set_lane(lane(5001 + n))
    return made


def test_packets_wait_and_are_given_back_in_order_once() -> None:
    made = buffer()
    for number in range(100):
        made.put(udp(number), 1.0)
    assert (made.take(2.0, ALL, ALL), made.next_at()) == ([], None)
    made.set_lane(lane(mode=GIVE_BACK))
    assert made.next_at() is not None
    first = made.take(2.0, 30, 30)
    rest = made.take(2.0, ALL, ALL)
    assert [number_of(each) for each in first + rest] == list(range(100))
    assert {each.since for each in first} == {1.0}
    assert (made.take(2.0, ALL, ALL), made.packets, made.memory_bytes, made.next_at()) == ([], 0, 0, None)
    assert (made.parked, made.dropped) == (100, Counter())


def test_the_families_of_a_target_are_two_lanes() -> None:
    made = buffer()
    made.put(parked(ipv6(UDP, datagram())), 1.0)
    assert made.dropped == {"not_a_target": 1}
    made.set_lane(lane(ipv4=False, mode=GIVE_BACK))
    made.put(parked(ipv6(UDP, datagram())), 1.0)
    made.put(udp(1), 1.0)
    assert [each.parked.ipv4 for each in made.take(2.0, ALL, ALL)] == [False]


def test_a_packet_for_nobody_is_dropped() -> None:
    made = buffer()
    made.put(udp(1, mark=5009), 1.0)
    assert (made.packets, made.dropped) == (0, {"not_a_target": 1})


def test_of_a_segment_the_newest_copy_is_kept_at_the_place_of_the_first() -> None:
    made = buffer()
    for sequence in (1, 11, 21):
        made.put(parked(ipv4(TCP, segment(sequence, b"0123456789"))), 1.0)
    made.put(parked(ipv4(TCP, segment(1, b"9876543210", ack=5))), 2.0)
    made.set_lane(lane(mode=GIVE_BACK))
    taken = made.take(3.0, ALL, ALL)
    assert [each.parked.packet[24:28] for each in taken] == [n.to_bytes(4, "big") for n in (1, 11, 21)]
    assert taken[0].parked.packet.endswith(b"9876543210")
    assert [each.since for each in taken] == [2.0, 1.0, 1.0]
    assert (made.dropped, made.memory_bytes) == ({"newer_copy": 1}, 0)


def test_of_pure_acknowledgements_the_newest_is_kept() -> None:
    made = buffer()
    for ack in range(50):
        made.put(parked(ipv4(TCP, segment(1, ack=ack))), 1.0)
    made.put(parked(ipv4(TCP, segment(1, flags=ACK | FIN))), 1.0)
    made.set_lane(lane(mode=GIVE_BACK))
    acks = [int.from_bytes(each.parked.packet[28:32], "big") for each in made.take(2.0, ALL, ALL)]
    assert acks == [49, 0]


def test_old_packets_are_dropped() -> None:
    made = buffer(max_age_s=10.0)
    made.put(udp(1), 1.0)
    made.put(udp(2), 5.0)
    made.expire(12.0)
    assert (made.packets, made.dropped) == (1, {"too_old": 1})
    made.set_lane(lane(mode=GIVE_BACK))
    assert made.take(20.0, ALL, ALL) == []
    assert (made.packets, made.dropped) == (0, {"too_old": 2})


def test_a_new_term_and_a_dropped_lane_end_what_was_kept() -> None:
    made = buffer()
    made.put(udp(1), 1.0)
    made.set_lane(lane(mode=GIVE_BACK, term=2, reason="address_changed"))
    assert made.take(2.0, ALL, ALL) == []
    made.put(udp(2), 2.0)
    made.set_lane(lane(mode=DROP, term=2, reason="withdrawn"))
    made.put(udp(3), 2.0)
    made.set_lane(lane(mode=GIVE_BACK, term=3))
    assert (made.take(3.0, ALL, ALL), made.packets) == ([], 0)
    assert made.dropped == {"address_changed": 1, "withdrawn": 1, "not_a_target": 1}


def test_a_packet_that_comes_back_waits_and_is_dropped_after_a_few_tries() -> None:
    made = buffer()
    made.set_lane(lane(mode=GIVE_BACK))
    made.put(udp(1), 1.0)
    tries, now = 0, 1.0
    while made.packets and tries < 100:
        assert made.take(now + 0.005, ALL, ALL) == [], "given back at once, it would loop"
        (waiting,) = made.take(now + 0.01, ALL, ALL)
        tries, now = tries + 1, now + 0.01
        made.put(waiting.parked, now)
    assert (tries, made.dropped) == (3, {"came_back": 1})
    # The same bytes, sent much later, are another packet.
    made.put(udp(1), now + 60)
    assert len(made.take(now + 61, ALL, ALL)) == 1


def test_a_packet_that_could_not_be_sent_is_first_again() -> None:
    made = buffer()
    for number in range(4):
        made.put(udp(number), 1.0)
    made.set_lane(lane(mode=GIVE_BACK))
    taken = made.take(2.0, 2, 2)
    for waiting in reversed(taken):
        made.put_back(waiting)
    assert [number_of(each) for each in made.take(2.0, ALL, ALL)] == [0, 1, 2, 3]
    made.set_lane(lane(mode=DROP))
    made.put_back(taken[0])
    assert made.packets == 0


def test_a_full_buffer_makes_room_with_the_oldest_of_the_largest_lane() -> None:
    made = buffer(packets=100, lanes=3)
    for number in range(150):
        made.put(udp(number), 1.0)
    assert made.dropped == {"share_used": 50}
    for number in range(10):
        made.put(udp(number, mark=5002), 1.0)
    assert made.dropped == {"share_used": 50, "full": 10}
    for mark in (5001, 5002):
        made.set_lane(lane(mark, GIVE_BACK))
    taken = made.take(2.0, ALL, ALL)
    assert [number_of(each) for each in taken if each.parked.mark == 5001] == list(range(60, 150))
    assert [number_of(each) for each in taken if each.parked.mark == 5002] == list(range(10))


def test_segments_come_first_and_others_are_paced() -> None:
    made = buffer()
    for number in range(20):
        made.put(udp(number), 1.0)
        made.put(parked(ipv4(TCP, segment(number, b"x"))), 1.0)
    made.set_lane(lane(mode=GIVE_BACK))
    passes = [made.take(2.0, 16, 4) for _ in range(7)]
    kinds = ["".join("t" if each.parked.segment else "u" for each in taken) for taken in passes]
    assert kinds == ["t" * 16, "ttttuuuu", "uuuu", "uuuu", "uuuu", "uuuu", ""]
    assert [number_of(each) for taken in passes for each in taken if not each.parked.segment] == list(range(20))


def test_a_flood_of_datagrams_takes_no_room_of_the_targets_own_segments() -> None:
    made = buffer(packets=100)
    for number in range(10):
        made.put(parked(ipv4(TCP, segment(number, b"x"))), 1.0)
    for number in range(1000):
        made.put(udp(number), 1.0)
    made.set_lane(lane(mode=GIVE_BACK))
    assert sum(bool(each.parked.segment) for each in made.take(2.0, ALL, ALL)) == 10


def test_crowds_are_told_apart_by_kind() -> None:
    made = buffer(packets=100)
    for number in range(150):
        made.put(udp(number), 1.0)
    assert made.crowded == {(5001, False): 50}
    for number in range(20):
        made.put(parked(ipv4(SCTP, number.to_bytes(12, "big"))), 1.0)
    assert made.crowded == {(5001, False): 50}, "SCTP has a share of its own"
    for number in range(150):
        made.put(parked(ipv4(TCP, segment(number, b"x"))), 1.0)
    assert made.crowded[5001, True] > 0
    made.set_lane(lane(mode=GIVE_BACK))
    taken = made.take(2.0, ALL, ALL)
    assert [each.parked.responsive for each in taken] == [True] * 50 + [False] * 50


def test_lanes_take_turns() -> None:
    made = buffer(lanes=2)
    for mark in (5001, 5002):
        for number in range(30):
            made.put(udp(number, mark), 1.0)
        made.set_lane(lane(mark, GIVE_BACK))
    marks = [waiting.parked.mark for _ in range(6) for waiting in made.take(2.0, 10, 10)]
    assert marks[:10] != marks[10:20]
    assert Counter(marks) == {5001: 30, 5002: 30}


@examples(60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(8, 400), st.integers(1, 30)), max_size=60),
    st.integers(16, 60),
    st.integers(5_000, 60_000),
)
def test_bounds_hold_order_holds_and_every_packet_is_accounted_for(
    bursts: list[tuple[int, int, int]], packets: int, memory: int
) -> None:
    made = buffer(packets=packets, memory=memory, lanes=4)
    put = 0
    for target, size, count in bursts:
        for _ in range(count):
            made.put(udp(put, 5001 + target, size), 1.0)
            put += 1
            assert made.packets <= packets
            assert made.memory_bytes <= memory
    dropped = sum(made.dropped.values())
    for target in range(4):
        made.set_lane(lane(5001 + target, GIVE_BACK))
    taken = made.take(2.0, ALL, ALL)
    for target in range(4):
        numbers = [number_of(each) for each in taken if each.parked.mark == 5001 + target]
        assert numbers == sorted(numbers)
    assert len(taken) + dropped == put == made.parked
    assert (made.packets, made.memory_bytes) == (0, 0)


@examples(30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=400), st.integers(1, 12))
def test_a_flood_takes_no_room_of_a_target_below_its_share(order: list[int], few: int) -> None:
    """Target 4 gets few packets, among floods to the others: each of its packets stays."""
    made = buffer(packets=64, lanes=5)
    numbers = list(range(few))
    for n, target in enumerate([0, 1, 2, 3] * 16 + order):
        if numbers:
            made.put(udp(numbers.pop(), 5005), 1.0)
        made.put(udp(n, 5001 + target), 1.0)
    made.set_lane(lane(5005, GIVE_BACK))
    assert len(made.take(2.0, ALL, ALL)) == few


def test_the_memory_that_is_counted_is_no_less_than_what_is_used() -> None:
    made = buffer(packets=100_000, memory=2**22)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            made.put(parked(ipv4(TCP, segment(number, b"x" * 40))), 1.0)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert made.dropped["share_used"] > 0
    assert used < 2**22


def test_what_is_kept_is_told_by_target_and_family() -> None:
    made = buffer(lanes=2)
    made.put(udp(1), 1.0)
    made.put(parked(ipv4(TCP, segment(7, b"x"))), 2.0)
    made.put(parked(ipv4(TCP, segment(7, b"x"))), 3.0)
    assert [(used.mark, used.ipv4, used.packets, used.since) for used in made.usage()] == [(5001, True, 2, 1.0)]
    assert made.usage()[0].memory_bytes == made.memory_bytes
    made.set_lane(lane(mode=GIVE_BACK))
    assert made.usage()[0].mode is GIVE_BACK
    [segments] = made.take(4.0, 1, 0)
    assert (segments.since, segments.first_copy_at) == (3.0, 2.0)
    made.take(4.0, 1, 1)
    assert made.usage() == []


def test_lower_bounds_count_with_the_next_packet() -> None:
    kept = buffer(packets=10)
    for number in range(5):
        kept.put(udp(number), 100.0)
    kept.bounds = Bounds(packets=2, memory_bytes=2**24, max_age_s=15.0)
    kept.put(udp(9), 100.0)
    assert kept.packets == 2
