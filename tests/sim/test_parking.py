"""Runs with parking, the same every time: no packet reaches a target for which it was not meant."""

from collections import Counter

import pytest

from lbguard.core.model import ParkingLane, ParkingMode
from lbguard.parking.buffer import ParkingBuffer
from tests.sim.campaign import play, report
from tests.sim.parking import ParkingWorld

RUNS, CHUNK = 30, 10


@pytest.mark.parametrize("first", range(1, RUNS + 1, CHUNK))
def test_no_packet_reaches_a_target_for_which_it_was_not_meant(first: int) -> None:
    for seed in range(first, first + CHUNK):
        failure = report(seed, ParkingWorld)
        assert not failure, failure


def test_runs_see_all_that_can_happen_to_packets() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1, 13):
        world = ParkingWorld(seed)
        play(world)
        seen.update(world.counts)
        seen.update(world.buffer.dropped)
    assert min(seen[what] for what in ("sent", "given back", "withdrawn")) > 0, seen


class Careless(ParkingBuffer):
    """A buffer that keeps packets when the term of their lane ends."""

    def set_lane(self, lane: ParkingLane) -> None:
        if lane.mode is not ParkingMode.DROP:
            super().set_lane(ParkingLane(mark=lane.mark, ipv4=lane.ipv4, mode=lane.mode, term=1, divert=lane.divert))


class CarelessWorld(ParkingWorld):
    def start_guard(self) -> None:
        super().start_guard()
        self.buffer = Careless(self.buffer.bounds)


def test_a_buffer_that_forgets_nothing_is_found_out() -> None:
    assert any(report(seed, CarelessWorld) for seed in range(1, 13))
