"""Neighbours of targets: each verified once an interval, new ones asked for in our own name until they answer."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig
from lbguard.core.model import LinkKey, NeighborState
from lbguard.core.neighbor_work import PAUSES_S, NeighborSolicitation, ProbeWheel
from tests.unit.core.harness import Guard, ip, ipv4_of, mac


def address(number: int) -> bytes:
    return number.to_bytes(4)


def run(wheel: ProbeWheel, start: float, end: float) -> list[tuple[float, bytes]]:
    """Wake the wheel whenever it asks for it; returns what was due when."""
    seen: list[tuple[float, bytes]] = []
    now = start
    while True:
        at = wheel.next(now)
        if at is None or at > end:
            return seen
        now = max(now, at)
        seen += [(now, ip) for ip in wheel.due(now)]


@given(st.sets(st.integers(1, 500), min_size=1, max_size=60))
def test_every_address_is_due_about_once_an_interval(numbers: set[int]) -> None:
    wheel = ProbeWheel(1.0)
    for number in sorted(numbers):
        wheel.add(address(number))
    counts = Counter(ip for _, ip in run(wheel, 100.0, 110.0))
    assert counts.keys() == {address(number) for number in numbers}
    assert set(counts.values()) <= {9, 10, 11}


def test_few_addresses_are_spread_over_the_interval() -> None:
    wheel = ProbeWheel(1.0)
    for number in range(4):
        wheel.add(address(number))
    moments = [at for at, _ in run(wheel, 0.0, 1.0)]
    assert len(moments) == 4
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in itertools.pairwise(moments))


def test_many_addresses_make_even_slices() -> None:
    wheel = ProbeWheel(1.0)
    for number in range(1000):
        wheel.add(address(number))
    sizes = Counter(round(at, 6) for at, _ in run(wheel, 0.0, 1.0 + 1e-6))
    assert set(sizes.values()) == {100}


def test_after_a_stall_nothing_is_made_up_for() -> None:
    wheel = ProbeWheel(1.0)
    for number in range(10):
        wheel.add(address(number))
    wheel.next(0.0)
    assert len(run(wheel, 60.0, 60.0)) <= 2


def test_removed_addresses_are_due_no_more_and_an_empty_wheel_asks_for_nothing() -> None:
    wheel = ProbeWheel(1.0)
    wheel.add(address(1))
    wheel.add(address(2))
    wheel.add(address(2))
    wheel.remove(address(1))
    wheel.remove(address(7))
    assert {ip for _, ip in run(wheel, 0.0, 3.0)} == {address(2)}
    wheel.remove(address(2))
    assert wheel.next(4.0) is None


def test_probing_can_be_off() -> None:
    wheel = ProbeWheel(0.0)
    wheel.add(address(1))
    assert wheel.next(0.0) is None
    assert wheel.due(100.0) == []


LINK = LinkKey(3, 1)
IP = bytes((172, 16, 0, 11))


def test_the_pauses_grow_and_the_chase_ends() -> None:
    chase = NeighborSolicitation()
    chase.begin(LINK, IP, 100.0)
    moments = []
    while (at := chase.next()) is not None:
        assert chase.take_due(at) == [(LINK, IP)]
        moments.append(at)
    assert moments == pytest.approx([100.0 + sum(PAUSES_S[: n + 1]) for n in range(len(PAUSES_S))])


def test_an_address_that_answered_is_asked_for_no_more() -> None:
    chase = NeighborSolicitation()
    chase.begin(LINK, IP, 100.0)
    chase.end(LINK, IP)
    chase.end(LINK, IP)
    assert chase.next() is None
    assert chase.take_due(200.0) == []


def answering(guard: Guard, target: int) -> None:
    """The kernel knows the neighbour of a target on link 1."""
    guard.tell(ev.NeighborSeen(ifindex=1, ip=ipv4_of(target), state=NeighborState.REACHABLE, mac=mac(90)))


def test_the_engine_asks_for_the_silent_ones_only_and_from_its_own_address() -> None:
    guard = Guard(EngineConfig(neighbor_probe_interval_s=0.0), targets=2)
    answering(guard, 1)
    guard.wait(0.05)
    asked = guard.of(fx.SolicitNeighbors)
    assert [effect.pairs for effect in asked] == [((ip("172.16.0.1"), ipv4_of(2)),)] * 2
    assert {(effect.link.ifindex, effect.mac) for effect in asked} == {(1, mac(1))}


def test_nobody_is_asked_through_a_link_that_is_gone() -> None:
    guard = Guard(EngineConfig(neighbor_probe_interval_s=0.0), targets=1)
    guard.unlink(1)
    guard.wait(2.0)
    assert guard.of(fx.SolicitNeighbors) == []


def test_observing_asks_nobody() -> None:
    guard = Guard(EngineConfig(observe=True), targets=1)
    guard.wait(2.0)
    assert guard.of(fx.SolicitNeighbors) == []
