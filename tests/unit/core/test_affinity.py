"""Flow affinity as the engine wants it: which targets keep their flows, and which ones new flows may be given to."""

from dataclasses import replace

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.affinity import Affinity, steering_of
from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import (
    Condition,
    FamilySteering,
    NeighborState,
    StreamSpec,
    StreamSteering,
    TargetSpec,
    TargetState,
)
from lbguard.core.state import Stream
from tests.unit.core.harness import STREAM, Guard, ipv4_of, ipv6_of

CONFIG = EngineConfig(
    grace=GraceConfig(window_s=3.0, max_s=30.0),
    freeze=FreezeConfig(threshold=0.9),
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
    affinity=True,
)
EVERY_STATE = tuple(TargetState)
ADMITTED = {TargetState.ACTIVE, TargetState.HELD, TargetState.FROZEN, TargetState.DRAINING}
ALL = (5001, 5002, 5003)


class Followed(Guard):
    """A guard and what its kernel was told of flows."""

    def __init__(self, *, config: EngineConfig = CONFIG) -> None:
        self.steered: dict[str, StreamSteering] = {}
        super().__init__(config, targets=0)

    def tell(self, *events: ev.Event) -> list[fx.Effect]:
        effects = super().tell(*events)
        for effect in self.of(fx.SteerFlows):
            for name in effect.gone:
                del self.steered[name]
            self.steered |= {each.stream: each for each in effect.streams}
        return effects

    def now_steered(self) -> StreamSteering:
        return self.steered[STREAM]


def two_links(*, ipv6: bool = False) -> Followed:
    """Target 1 behind link 1 (proxy 0), targets 2 and 3 behind link 2 (proxy 1), all active."""
    guard = Followed()
    guard.link(1, ipv6=ipv6)
    guard.link(2, proxy=1, ipv6=ipv6)
    guard.source(spec(ipv6=ipv6))
    assert set(guard.states().values()) == {"active"}
    return guard


def spec(*identifiers: int, ipv6: bool = False, name: str = STREAM) -> StreamSpec:
    def ips(identifier: int) -> tuple[bytes, ...]:
        proxy = 0 if identifier == 1 else 1
        return (ipv4_of(identifier, proxy), *((ipv6_of(identifier, proxy),) if ipv6 else ()))

    targets = tuple(TargetSpec(identifier=i, ips=ips(i)) for i in identifiers or (1, 2, 3))
    return StreamSpec(name=name, targets=targets)


def stream_of(*targets: tuple[TargetState, dict[bytes, Condition]], adopted: bool = True) -> Stream:
    """A stream whose targets 1, 2, ... are in these states, with paths in these conditions; its commit is confirmed."""
    specs = tuple(TargetSpec(identifier=i + 1, ips=tuple(paths)) for i, (_, paths) in enumerate(targets))
    stream = Stream(StreamSpec(name=STREAM, targets=specs), adopted=adopted)
    for target_spec, (state, paths) in zip(specs, targets, strict=True):
        target = stream.add(target_spec, 0.0)
        stream.move(target, state, 0.0)
        for ip, condition in paths.items():
            target.paths[ip].condition = condition
    stream.committed = stream.desired_pair()
    return stream


V4, V6 = ipv4_of(1), ipv6_of(1)
WELL = {V4: Condition.OK}


def test_a_stream_that_is_well_learns_nothing_and_avoids_nobody() -> None:
    steering = steering_of(stream_of((TargetState.ACTIVE, WELL), (TargetState.ACTIVE, WELL)))
    both = (5001, 5002)
    assert steering == StreamSteering(
        stream=STREAM,
        marks=both,
        ipv4=FamilySteering(healthy=both, served=both),
        ipv6=FamilySteering(served=both),
        learning=False,
    )


@pytest.mark.parametrize("state", EVERY_STATE)
def test_the_state_says_who_is_served_and_whether_flows_are_remembered(state: TargetState) -> None:
    steering = steering_of(stream_of((TargetState.ACTIVE, WELL), (state, WELL)))
    assert steering.marks == (5001, 5002)
    assert steering.ipv4.served == ((5001, 5002) if state in ADMITTED else (5001,))
    assert steering.ipv4.healthy == steering.ipv4.served
    assert steering.ipv4.avoid == ()
    assert steering.learning is (state is not TargetState.ACTIVE)


@pytest.mark.parametrize("condition", [c for c in Condition if c is not Condition.OK])
@pytest.mark.parametrize("state", EVERY_STATE)
def test_a_target_with_evidence_against_it_gets_no_new_flow(state: TargetState, condition: Condition) -> None:
    steering = steering_of(stream_of((TargetState.ACTIVE, WELL), (state, {V4: condition})))
    assert steering.ipv4.healthy == (5001,)
    assert steering.ipv4.avoid == ((5002,) if state in ADMITTED else ())


def test_the_families_are_looked_at_each_alone() -> None:
    both = {V4: Condition.OK, V6: Condition.OK}
    steering = steering_of(stream_of((TargetState.ACTIVE, both), (TargetState.HELD, both | {V6: Condition.NO_LINK})))
    assert steering.ipv4 == FamilySteering(healthy=(5001, 5002), served=(5001, 5002))
    assert steering.ipv6 == FamilySteering(healthy=(5001,), avoid=(5002,), served=(5001, 5002))


def test_a_target_without_an_address_of_a_family_gets_no_flow_of_it() -> None:
    steering = steering_of(stream_of((TargetState.ACTIVE, {V6: Condition.OK}), (TargetState.ACTIVE, WELL)))
    assert steering.ipv4 == FamilySteering(healthy=(5002,), avoid=(5001,), served=(5001, 5002))
    assert steering.ipv6 == FamilySteering(healthy=(5001,), avoid=(5002,), served=(5001, 5002))


def test_two_addresses_of_a_family_have_to_be_well_both() -> None:
    two = {V4: Condition.OK, ipv4_of(9): Condition.NEIGHBOR_FAILED}
    steering = steering_of(stream_of((TargetState.ACTIVE, WELL), (TargetState.ACTIVE, two)))
    assert steering.ipv4 == FamilySteering(healthy=(5001,), avoid=(5002,), served=(5001, 5002))


def test_with_nobody_healthy_nobody_is_avoided() -> None:
    lost = {V4: Condition.NO_LINK}
    steering = steering_of(stream_of((TargetState.HELD, lost), (TargetState.FROZEN, lost)))
    assert steering.ipv4 == FamilySteering(served=(5001, 5002))


def test_flows_are_remembered_until_the_commit_is_confirmed() -> None:
    stream = stream_of((TargetState.ACTIVE, WELL), (TargetState.ACTIVE, WELL))
    for committed in (None, (frozenset({1}), frozenset({1})), (frozenset({1, 2}), frozenset({1}))):
        stream.committed = committed
        assert steering_of(stream).learning
    stream.committed = stream.desired_pair()
    assert not steering_of(stream).learning


def test_before_a_stream_is_adopted_every_flow_keeps_its_target() -> None:
    stream = stream_of((TargetState.PENDING, WELL), (TargetState.PENDING, {V4: Condition.NO_LINK}), adopted=False)
    steering = steering_of(stream)
    assert steering.ipv4 == FamilySteering(healthy=(5001,), avoid=(5002,), served=(5001, 5002))
    assert steering.learning


def test_a_stream_without_targets_is_steered_nowhere() -> None:
    steering = steering_of(stream_of())
    assert steering == StreamSteering(
        stream=STREAM, marks=(), ipv4=FamilySteering(), ipv6=FamilySteering(), learning=False
    )


# What is told of it


def test_only_what_changed_is_told() -> None:
    affinity = Affinity()
    one, two = stream_of((TargetState.ACTIVE, WELL)), stream_of((TargetState.ACTIVE, WELL))
    two.spec = replace(two.spec, name="two")
    streams = {STREAM: one, "two": two}
    [first] = affinity.take(streams, streams)
    assert [each.stream for each in first.streams] == [STREAM, "two"]
    assert affinity.take(streams, streams) == []
    one.targets[1].paths[V4].condition = Condition.NO_LINK
    assert affinity.take(streams, ()) == [], "nobody said that anything changed"
    affinity.evaluated(one.targets[1])
    [changed] = affinity.take(streams, ())
    assert [each.stream for each in changed.streams] == [STREAM]
    affinity.evaluated(one.targets[1])
    assert affinity.take(streams, ()) == []


def test_a_stream_that_is_gone_is_told_once() -> None:
    affinity = Affinity()
    stream = stream_of((TargetState.ACTIVE, WELL))
    affinity.evaluated(stream.targets[1])
    affinity.take({STREAM: stream}, (STREAM,))
    assert affinity.take({}, (STREAM,)) == [fx.SteerFlows(streams=(), gone=(STREAM,))]
    assert affinity.take({}, (STREAM,)) == []
    [again] = affinity.take({STREAM: stream}, (STREAM,))
    assert [each.stream for each in again.streams] == [STREAM]


def test_without_the_setting_nothing_is_told() -> None:
    guard = Followed(config=replace(CONFIG, affinity=False))
    guard.link(2, proxy=1)
    guard.source(spec())
    guard.unlink(2)
    guard.wait(5.0)
    assert guard.steered == {}


# Through the engine


def test_a_held_target_gets_no_new_flow_and_keeps_its_own() -> None:
    guard = two_links()
    assert not guard.now_steered().learning
    guard.unlink(1)
    assert guard.now_steered().ipv4 == FamilySteering(healthy=(5002, 5003), avoid=(5001,), served=ALL)
    assert guard.now_steered().learning
    guard.link(5)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=5)
    guard.wait(1.0)
    assert guard.now_steered() == StreamSteering(
        stream=STREAM,
        marks=ALL,
        ipv4=FamilySteering(healthy=ALL, served=ALL),
        ipv6=FamilySteering(served=ALL),
        learning=False,
    )


def test_flows_of_a_withdrawn_target_fall_back_and_flows_are_remembered_until_it_is_back_for_sure() -> None:
    guard = two_links()
    guard.unlink(1)
    guard.wait(3.1)
    assert guard.state(1) is TargetState.WITHDRAWN
    assert guard.now_steered().ipv4 == FamilySteering(healthy=(5002, 5003), served=(5002, 5003))
    assert guard.now_steered().learning
    guard.refuse = (fx.CommitTables,)
    guard.link(5)
    assert guard.state(1) is TargetState.ACTIVE
    assert guard.now_steered().ipv4.served == (5001, 5002, 5003)
    assert guard.now_steered().learning, "the commit is not confirmed"
    guard.refuse = ()
    everyone = frozenset({1, 2, 3})
    guard.tell(ev.CommitDone(stream=STREAM, registered=everyone, active=everyone))
    assert not guard.now_steered().learning


def test_a_table_that_others_replaced_has_flows_remembered_until_it_is_whole() -> None:
    guard = two_links()
    guard.refuse = (fx.CommitTables,)
    guard.tables[STREAM] = (frozenset(), frozenset())
    guard.tell(ev.DistributorLost(stream=STREAM, reason="replaced"))
    assert guard.now_steered().learning
    everyone = frozenset({1, 2, 3})
    guard.tell(ev.CommitDone(stream=STREAM, registered=everyone, active=everyone))
    assert not guard.now_steered().learning


def test_soft_evidence_of_one_family_steers_that_family() -> None:
    guard = two_links(ipv6=True)
    guard.fail_neighbor(ipv6_of(1), 2)
    assert guard.state(1) is TargetState.ACTIVE
    assert guard.now_steered().ipv4 == FamilySteering(healthy=ALL, served=ALL)
    assert guard.now_steered().ipv6 == FamilySteering(healthy=(5002, 5003), avoid=(5001,), served=ALL)
    guard.neighbor(ipv6_of(1), NeighborState.REACHABLE)
    assert guard.now_steered().ipv6 == FamilySteering(healthy=ALL, served=ALL)


def test_a_removed_target_and_a_stream_that_ends() -> None:
    guard = two_links()
    assert guard.now_steered().ipv4.healthy == (5001, 5002, 5003)
    guard.source(spec(1, 2))
    assert guard.now_steered() == steering_of(guard.stream())
    assert guard.steered[STREAM].ipv4.healthy == (5001, 5002)
    guard.source()
    assert guard.steered == {}


def test_a_stream_that_cannot_be_adopted_is_steered_as_if_all_were_well() -> None:
    """After a start the flows of all streams are looked after, also of one whose table cannot be read yet."""
    guard = Followed()
    guard.link(1)
    guard.link(2, proxy=1)
    guard.refuse = (fx.AttachStream,)
    guard.source(spec(), replace(spec(4, 5, name="two"), identifier_offset=6000))
    assert guard.steered.keys() == {STREAM, "two"}
    assert guard.steered["two"].ipv4.served == (6004, 6005)
    assert guard.now_steered().ipv4.served == (5001, 5002, 5003)
    guard.tell(ev.DistributorSeen(stream=STREAM, active=frozenset({2, 3})))
    assert guard.steered["two"].ipv4.served == (6004, 6005)


def test_a_removed_target_gets_no_flow_while_the_table_still_has_slots_of_it() -> None:
    guard = two_links()
    guard.refuse = (fx.CommitTables,)
    guard.source(spec(1, 2))
    steering = guard.now_steered()
    assert steering.marks == ALL
    assert steering.ipv4 == FamilySteering(healthy=(5001, 5002), served=(5001, 5002))
    guard.tell(ev.CommitDone(stream=STREAM, registered=frozenset({1, 2, 3}), active=frozenset({1, 2})))
    assert guard.now_steered().marks == (5001, 5002)
