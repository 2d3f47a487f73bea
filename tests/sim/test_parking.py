"""Runs with parking, the same every time: no packet reaches a target for which it was not meant."""

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lbguard.core.config import GraceConfig
from lbguard.core.model import ADMITTED, ParkingLane, ParkingMode, StreamSpec
from lbguard.core.parking import ADDRESS_CHANGED
from lbguard.parking.buffer import ParkingBuffer
from tests.sim.campaign import play, report
from tests.sim.faults import Scenario
from tests.sim.parking import ParkingWorld
from tests.sim.world import Profile

RUNS, CHUNK = 30, 10
QUIET = Profile(lossy=False, soft=False, crashes=False, refusals=False, verdicts=False)
FIRST, SECOND = (ip_address(f"172.16.0.{host}").packed for host in (20, 21))


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


class PatientWorld(ParkingWorld):
    """A world whose targets are held for longer than a run of a few seconds takes."""

    def start_guard(self) -> None:
        self.config = replace(self.config, grace=GraceConfig(window_s=60.0, max_s=60.0))
        super().start_guard()


class PatientCarelessWorld(PatientWorld, CarelessWorld):
    pass


def change_address_while_held(world: ParkingWorld) -> None:
    """The only target gets another address while packets for the first one are kept; then its path is repaired."""
    scenario = Scenario(world)
    world.streams = {"one": StreamSpec(name="one", max_targets=8, identifier_offset=5000)}
    world.macs |= {FIRST: b"\x02first", SECOND: b"\x02secon"}
    world.list_targets("one", {1: (FIRST,)})
    world.run(4.0)
    for link in scenario.links_of(0):
        scenario.delete_link(link)
    world.run(3.0)
    assert world.buffer.packets > 0
    world.list_targets("one", {1: (SECOND,)})
    world.tell_source()
    world.run(3.0)
    assert [target.state in ADMITTED for target in world.engine.targets()] == [True]
    scenario.create_link(0)
    world.run(5.0)


@pytest.mark.parametrize("seed", range(1, 6))
def test_packets_for_an_earlier_address_are_not_given_back(seed: int) -> None:
    world = PatientWorld(seed, QUIET)
    change_address_while_held(world)
    assert world.buffer.dropped[ADDRESS_CHANGED] > 0
    assert world.counts["given back"] > 0, "those for the address of the moment are"


def test_a_buffer_that_forgets_no_address_is_found_out() -> None:
    with pytest.raises(AssertionError, match="was given back to another address"):
        change_address_while_held(PatientCarelessWorld(1, QUIET))
