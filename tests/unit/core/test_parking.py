"""Parking in the core: which targets' packets are kept, given back and dropped."""

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import NeighborState, ParkingLane, ParkingMode, StreamSpec, TargetSpec, TargetState
from tests.unit.core.harness import STREAM, Guard, ip, ipv4_of, ipv6_of, mac

KEEP, GIVE_BACK, DROP = ParkingMode.KEEP, ParkingMode.GIVE_BACK, ParkingMode.DROP


class ParkingGuard(Guard):
    """A guard that keeps what was last said of each lane, and every lane that was named."""

    def __init__(self, *, ipv6: bool = False, parking: bool = True, affinity: bool = False) -> None:
        self.lanes: dict[tuple[int, bool], ParkingLane] = {}
        self.named: list[ParkingLane] = []
        config = EngineConfig(
            neighbor_probe_interval_s=0.0,
            solicit_neighbors=False,
            parking=parking,
            affinity=affinity,
            grace=GraceConfig(window_s=3.0),
            freeze=FreezeConfig(threshold=1.0),
        )
        super().__init__(config, start=False)
        self.tell(ev.KernelSnapshot())
        self.link(1, ipv6=ipv6)
        self.register(1, 2, ipv6=ipv6)
        for target in (1, 2):
            self.answer(target)

    def tell(self, *events: ev.Event) -> list[fx.Effect]:
        effects = super().tell(*events)
        for effect in effects:
            if isinstance(effect, fx.ParkPackets):
                assert effect.lanes
                self.named += effect.lanes
                self.lanes.update({(lane.mark, lane.ipv4): lane for lane in effect.lanes})
        return effects

    def answer(self, target: int, *, link: int = 1) -> None:
        for address in (ipv4_of(target), ipv6_of(target)):
            self.neighbor(address, NeighborState.REACHABLE, link=link)

    def answer_one(self, target: int, *, link: int) -> None:
        self.neighbor(ipv4_of(target), NeighborState.REACHABLE, link=link)

    def mode(self, target: int, *, ipv4: bool = True) -> ParkingMode:
        return self.lanes[5000 + target, ipv4].mode


def test_packets_are_kept_while_a_target_is_held_and_given_back_when_it_answers_again() -> None:
    guard = ParkingGuard()
    assert (guard.mode(1), guard.mode(2)) == (GIVE_BACK, GIVE_BACK)
    term = guard.lanes[5001, True].term
    guard.unlink(1)
    assert guard.state(1) is TargetState.HELD
    assert guard.mode(1) is KEEP
    assert not guard.lanes[5001, True].divert, "the route is gone: its absence leads the packets to us"
    guard.link(5)
    assert guard.state(1) is TargetState.ACTIVE
    assert guard.mode(1) is KEEP, "no answer on the new link yet"
    guard.answer(1, link=5)
    assert guard.mode(1) is GIVE_BACK
    assert guard.mode(2) is KEEP
    assert guard.lanes[5001, True].term == term


def test_an_old_entry_of_the_link_that_was_lost_is_no_answer() -> None:
    guard = ParkingGuard()
    guard.set_down(1)
    assert guard.mode(1) is KEEP
    guard.tell(guard.link_seen(1))
    assert guard.mode(1) is KEEP
    guard.neighbor(ipv4_of(1), NeighborState.INCOMPLETE)
    assert guard.mode(1) is KEEP
    guard.neighbor(ipv4_of(1), NeighborState.STALE)
    assert guard.mode(1) is GIVE_BACK


def test_a_withdrawal_ends_the_term() -> None:
    guard = ParkingGuard()
    term = guard.lanes[5001, True].term
    guard.unlink(1)
    guard.wait(4.0)
    assert guard.state(1) is TargetState.WITHDRAWN
    assert (guard.mode(1), guard.lanes[5001, True].reason) == (DROP, "withdrawn")
    guard.link(5)
    guard.answer(1, link=5)
    assert guard.state(1) is TargetState.ACTIVE
    assert guard.mode(1) is GIVE_BACK
    assert guard.lanes[5001, True].term != term


def test_another_address_ends_the_term_at_once() -> None:
    guard = ParkingGuard()
    guard.unlink(1)
    term = guard.lanes[5001, True].term
    guard.source(StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ip("172.16.0.99"),)), target_spec(2))))
    lane = guard.lanes[5001, True]
    assert lane.term != term
    assert lane.reason == "address_changed"
    assert guard.lanes[5002, True].term != lane.term


def test_the_loss_of_an_address_ends_the_lane() -> None:
    guard = ParkingGuard(ipv6=True)
    guard.register(1, 2)
    assert (guard.mode(1, ipv4=False), guard.lanes[5001, False].reason) == (DROP, "address_changed")
    assert guard.mode(1) is GIVE_BACK


def test_a_removed_target_is_dropped_and_a_new_one_with_its_identifier_is_another() -> None:
    guard = ParkingGuard()
    term = guard.lanes[5001, True].term
    guard.register(2)
    assert (guard.mode(1), guard.lanes[5001, True].reason) == (DROP, "removed")
    guard.register(1, 2)
    assert guard.lanes[5001, True].term != term
    assert guard.mode(1) is KEEP
    guard.answer(1)
    assert guard.mode(1) is GIVE_BACK


def test_an_identifier_that_leaves_and_comes_back_within_one_decision_is_another_target() -> None:
    guard = ParkingGuard()
    guard.unlink(1)
    before = guard.lanes[5001, True]
    one, two = (ev.SourceSnapshot(streams=(spec(*numbers),)) for numbers in ((2,), (1, 2)))
    guard.named.clear()
    guard.tell(one, two)
    assert [lane.term for lane in guard.named if lane.mark == 5001 and lane.mode is not DROP] != [before.term]
    assert guard.lanes[5001, True] != before


def test_a_neighbour_that_does_not_answer_diverts_its_packets_until_it_does() -> None:
    guard = ParkingGuard()
    guard.fail_neighbor(ipv4_of(1), 1)
    lane = guard.lanes[5001, True]
    assert guard.state(1) is TargetState.ACTIVE, "one failure is no reason to hold"
    assert (lane.mode, lane.divert) == (KEEP, True)
    guard.fail_neighbor(ipv4_of(1), 1)
    assert guard.state(1) is TargetState.HELD
    guard.neighbor(ipv4_of(1), NeighborState.INCOMPLETE)
    assert guard.lanes[5001, True] == lane
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    assert (guard.mode(1), guard.lanes[5001, True].divert) == (GIVE_BACK, False)
    assert not guard.lanes[5002, True].divert


def test_a_link_without_carrier_keeps_its_routes_so_packets_are_diverted() -> None:
    guard = ParkingGuard()
    guard.cut(1)
    assert (guard.mode(1), guard.lanes[5001, True].divert) == (KEEP, True)


def test_families_are_kept_each_by_itself() -> None:
    guard = ParkingGuard(ipv6=True)
    guard.fail_neighbor(ipv6_of(1))
    assert guard.mode(1) is GIVE_BACK
    assert guard.mode(1, ipv4=False) is KEEP


def test_a_family_that_is_withdrawn_alone_is_dropped_alone() -> None:
    guard = ParkingGuard(ipv6=True, affinity=True)
    guard.tell(guard.address_gone(1, "fd00:0::1/64"))
    guard.wait(4.0)
    assert guard.target(1).paths[ipv6_of(1)].withdrawn
    assert guard.mode(1, ipv4=False) is DROP
    assert guard.mode(1) is GIVE_BACK


def test_the_parking_link_is_no_link() -> None:
    guard = ParkingGuard()
    guard.tell(ev.LinkSeen(ifindex=9, name="lbguard-park", up=True, mac=mac(9)), guard.address(9, "172.16.0.9/24"))
    assert [link.name for link in guard.engine.links()] == ["nse-1"]


def test_without_parking_nothing_is_said() -> None:
    guard = ParkingGuard(parking=False)
    guard.unlink(1)
    assert not guard.named


def target_spec(number: int) -> TargetSpec:
    return TargetSpec(identifier=number, ips=(ipv4_of(number),))


def spec(*numbers: int) -> StreamSpec:
    return StreamSpec(name=STREAM, targets=tuple(target_spec(number) for number in numbers))


def test_our_addresses_are_announced_again_when_the_first_target_answers_on_a_new_link() -> None:
    guard = ParkingGuard()
    guard.unlink(1)
    guard.link(5)
    assert len(guard.of(fx.Announce)) == 1
    guard.answer_one(1, link=5)
    effects = [effect for effect in guard.effects if isinstance(effect, fx.Announce | fx.ParkPackets)]
    announced, given_back = effects
    assert isinstance(announced, fx.Announce)
    assert isinstance(given_back, fx.ParkPackets)
    assert (announced.link.ifindex, announced.addresses) == (5, (ip("172.16.0.5"),))
    guard.answer_one(2, link=5)
    assert not guard.of(fx.Announce), "one answer shows that the link forwards"


def test_links_that_are_gone_are_not_kept() -> None:
    """Each heal may bring a link with a new ifindex."""
    guard = ParkingGuard()
    guard.unlink(1)
    for number in range(5, 25):
        guard.link(number)
        guard.answer_one(1, link=number)
        assert guard.of(fx.Announce)
        guard.unlink(number)
    assert len(guard.engine.paths._answered) == 1
