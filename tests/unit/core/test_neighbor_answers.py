"""Neighbours whose answer is overdue: with parking, packets are kept from them before the kernel gives them up."""

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import NeighborState, ParkingLane, ParkingMode, TargetState
from lbguard.core.neighbor_answers import ANSWER_S
from lbguard.core.neighbor_work import ProbeWheel
from tests.unit.core.harness import Guard, ipv4_of

KEEP, GIVE_BACK = ParkingMode.KEEP, ParkingMode.GIVE_BACK
PROBED_WITHIN_S = 0.25


class AnsweringGuard(Guard):
    """A guard whose neighbours answer when they are verified, except for the `silent` ones."""

    def __init__(self, *, parking: bool = True, probes_arrive: bool = True) -> None:
        self.silent: set[int] = set()
        self.probes_arrive = probes_arrive
        self.lanes: dict[int, ParkingLane] = {}
        self.probes = 0
        config = EngineConfig(parking=parking, grace=GraceConfig(window_s=3.0), freeze=FreezeConfig(threshold=1.0))
        super().__init__(config, start=False)
        self.tell(ev.KernelSnapshot())
        self.link(1)
        self.register(1, 2)
        for target in (1, 2):
            self.neighbor(ipv4_of(target), NeighborState.REACHABLE)
        self.wait(1.0)

    def _carry_out(self, effect: fx.Effect) -> list[ev.Event]:
        if isinstance(effect, fx.ParkPackets):
            self.lanes.update({lane.mark - 5000: lane for lane in effect.lanes})
        if not isinstance(effect, fx.ProbeNeighbors):
            return super()._carry_out(effect)
        self.probes += len(effect.entries)
        if not self.probes_arrive:
            return []
        answers = [
            ev.NeighborSeen(ifindex=ifindex, ip=ip, state=NeighborState.REACHABLE, mac=b"\2\0\0\0\0\1")
            for ifindex, ip in effect.entries
            if ip not in {ipv4_of(target) for target in self.silent}
        ]
        return [*answers, ev.NeighborsProbed(entries=effect.entries)]

    def kept(self, target: int) -> bool:
        lane = self.lanes[target]
        assert lane.divert is (lane.mode is KEEP), "the route to the neighbour is still there"
        return lane.mode is KEEP


def test_packets_are_kept_from_a_neighbour_that_does_not_answer_in_time() -> None:
    guard = AnsweringGuard()
    guard.silent.add(1)
    guard.wait(PROBED_WITHIN_S)
    assert (guard.kept(1), guard.kept(2)) == (True, False)
    assert guard.state(1) is TargetState.ACTIVE, "it decides nothing about the target"


def test_they_are_given_back_when_it_answers() -> None:
    guard = AnsweringGuard()
    guard.silent.add(1)
    guard.wait(PROBED_WITHIN_S)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    assert not guard.kept(1)


def test_a_new_link_layer_address_is_an_answer_too() -> None:
    guard = AnsweringGuard()
    guard.silent.add(1)
    guard.wait(PROBED_WITHIN_S)
    guard.neighbor(ipv4_of(1), NeighborState.STALE, number=77)
    assert not guard.kept(1)


def test_a_living_neighbour_is_never_overdue() -> None:
    guard = AnsweringGuard()
    guard.wait(30.0)
    assert not guard.kept(1)
    assert guard.probes > 100


def test_a_request_that_did_not_reach_the_kernel_is_not_awaited() -> None:
    guard = AnsweringGuard()
    guard.probes_arrive = False
    guard.wait(10.0)
    assert guard.probes > 10
    assert not guard.kept(1)


def test_without_parking_nothing_is_kept_and_the_interval_is_the_configured_one() -> None:
    guard = AnsweringGuard(parking=False)
    guard.silent.add(1)
    before = guard.probes
    guard.wait(10.0)
    assert guard.lanes == {}
    assert guard.probes - before == 20


def test_the_address_is_solicited_often_until_it_answers() -> None:
    guard = AnsweringGuard()
    guard.silent.add(1)
    effects = guard.wait(3.0)
    solicited = [effect for effect in effects if isinstance(effect, fx.SolicitNeighbors)]
    assert 20 <= len(solicited) <= 60
    assert {pair[1] for effect in solicited for pair in effect.pairs} == {ipv4_of(1)}
    guard.silent.clear()
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    assert not any(isinstance(effect, fx.SolicitNeighbors) for effect in guard.wait(3.0))


def test_a_late_observer_reads_what_arrived_before_it_calls_an_answer_overdue() -> None:
    guard = AnsweringGuard()
    guard.silent.add(1)
    at = guard.engine.next_deadline(guard.now)
    while not any(isinstance(effect, fx.ProbeNeighbors) for effect in guard.effects):
        at = guard.engine.next_deadline(guard.now)
        assert at is not None
        guard.now = max(guard.now, at)
        guard.tell()
    guard.now += 5 * ANSWER_S
    guard.tell()
    assert not guard.kept(1)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    guard.silent.clear()
    guard.wait(1.0)
    assert not guard.kept(1)


def test_the_kernels_own_failure_keeps_the_packets_too() -> None:
    guard = AnsweringGuard()
    guard.silent.add(1)
    guard.wait(PROBED_WITHIN_S)
    guard.neighbor(ipv4_of(1), NeighborState.FAILED, number=0)
    assert guard.kept(1)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    assert not guard.kept(1)


@pytest.mark.parametrize(("addresses", "interval_s"), [(1, 0.2), (80, 0.2), (200, 0.5), (400, 1.0), (4000, 1.0)])
def test_many_addresses_are_verified_less_often(addresses: int, interval_s: float) -> None:
    wheel = ProbeWheel(1.0, 0.2)
    for number in range(addresses):
        wheel.add(number.to_bytes(4))
    count, now = 0, 0.0
    while now < 10.0:
        at = wheel.next(now)
        assert at is not None
        now = at
        count += len(wheel.due(now))
    assert count / addresses == pytest.approx(10.0 / interval_s, rel=0.1)
