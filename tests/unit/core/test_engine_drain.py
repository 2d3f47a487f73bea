"""Targets that drain, changes of the list that wait for flows, and families that are withdrawn alone."""

from dataclasses import replace

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import (
    ROUTE_METRIC,
    Action,
    NeighborState,
    Route,
    RouteKind,
    StreamSpec,
    StreamSteering,
    TargetKey,
    TargetSpec,
)
from tests.unit.core.harness import STREAM, Guard, ipv4_of, ipv6_of

WINDOW_S, LEARN_S, DRAIN_S, LIMIT_S = 3.0, 5.0, 20.0, 60.0
CONFIG = EngineConfig(
    grace=GraceConfig(window_s=WINDOW_S, max_s=30.0),
    freeze=FreezeConfig(threshold=0.5, limit_s=LIMIT_S),
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
    affinity=True,
    learn_s=LEARN_S,
    drain_window_s=DRAIN_S,
)


def listed(*identifiers: int, draining: tuple[int, ...] = (), ipv6: bool = False, name: str = STREAM) -> StreamSpec:
    targets = tuple(
        TargetSpec(identifier=i, ips=(ipv4_of(i), ipv6_of(i)) if ipv6 else (ipv4_of(i),), draining=i in draining)
        for i in identifiers
    )
    return StreamSpec(name=name, targets=targets)


def three(config: EngineConfig = CONFIG) -> Guard:
    """Targets 1 to 3 behind link 1, IPv4 alone, all active."""
    guard = Guard(config, targets=3)
    assert guard.states() == {1: "active", 2: "active", 3: "active"}
    guard.wait(LEARN_S)
    return guard


def steering(guard: Guard) -> StreamSteering:
    return guard.engine.affinity._reported[STREAM]


def table(guard: Guard) -> tuple[set[int], set[int]]:
    registered, active = guard.tables[STREAM]
    return set(registered), set(active)


# A target that leaves the list


def test_a_removed_target_keeps_its_place_for_the_drain_window_and_gets_no_new_flow() -> None:
    guard = three()
    guard.source(listed(1, 2))
    assert guard.states() == {1: "active", 2: "active", 3: "draining"}
    assert guard.active() == {1, 2, 3}
    [decision] = guard.decisions()
    assert (decision.action, decision.cause) == (Action.DRAIN, "source")
    assert decision.deadline == guard.now + DRAIN_S
    assert steering(guard).ipv4.avoid == (5003,)
    assert steering(guard).ipv4.served == (5001, 5002, 5003)
    assert steering(guard).draining == (5003,)
    guard.wait(DRAIN_S - 0.01)
    assert guard.states()[3] == "draining"
    guard.wait(0.02)
    assert guard.states() == {1: "active", 2: "active"}
    [decision] = guard.decisions()
    assert (decision.action, decision.cause) == (Action.REMOVE, "drain_window")
    assert guard.active() == {1, 2}
    assert table(guard)[0] == {1, 2, 3}, "flows of the others are seen before the table changes"
    assert guard.route(3) is not None
    guard.wait(LEARN_S)
    assert table(guard) == ({1, 2}, {1, 2})
    assert guard.route(3) is None


@pytest.mark.parametrize("config", [replace(CONFIG, drain_window_s=0.0), replace(CONFIG, affinity=False)])
def test_without_a_window_or_without_affinity_a_removal_is_at_once(config: EngineConfig) -> None:
    guard = three(config)
    guard.source(listed(1, 2))
    assert guard.states() == {1: "active", 2: "active"}
    assert guard.active() == {1, 2}
    assert guard.decisions()[0].cause == "source"


def test_a_drain_ends_when_no_packet_comes_any_more() -> None:
    guard = three()
    guard.source(listed(1, 2))
    guard.wait(1.0)
    guard.tell(ev.TargetsIdle(marks=(5003, 5999)))
    assert guard.states() == {1: "active", 2: "active"}
    assert guard.decisions()[0].cause == "drain_idle"


def test_only_targets_that_are_not_listed_end_by_idleness() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, draining=(3,)))
    guard.tell(ev.TargetsIdle(marks=(5001, 5003)))
    assert guard.states() == {1: "active", 2: "active", 3: "draining"}


def test_a_lost_path_ends_the_drain_of_a_target_that_is_not_listed() -> None:
    guard = three()
    guard.source(listed(1, 2))
    guard.unlink(1)
    assert guard.states() == {1: "held", 2: "held"}
    assert (3, "remove") in guard.actions()
    assert (
        next(d for d in guard.decisions() if d.target.identifier == 3 and d.action is Action.REMOVE).cause == "no_link"
    )


def test_soft_evidence_holds_a_draining_target_first() -> None:
    guard = three()
    guard.source(listed(1, 2))
    guard.fail_neighbor(ipv4_of(3))
    assert guard.states()[3] == "held"
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "active", 2: "active"}
    assert guard.actions() == [(3, "withdraw"), (3, "forget")]


def test_a_target_that_is_broken_as_it_leaves_the_list_goes_at_once() -> None:
    guard = three()
    guard.unlink(1)
    guard.source(listed(1, 2))
    assert guard.states() == {1: "held", 2: "held"}


def test_a_target_listed_again_in_time_is_active_again() -> None:
    guard = three()
    guard.source(listed(1, 2))
    guard.wait(DRAIN_S / 2)
    guard.source(listed(1, 2, 3))
    assert guard.states()[3] == "active"
    assert guard.actions() == [(3, "resume")]
    assert not guard.of(fx.CommitTables)
    guard.wait(2 * DRAIN_S)
    assert guard.states()[3] == "active"


def test_an_identifier_used_again_with_another_address_ends_the_drain() -> None:
    guard = three()
    guard.source(listed(1, 2))
    other = TargetSpec(identifier=3, ips=(ipv4_of(9),))
    spec = listed(1, 2)
    guard.source(replace(spec, targets=(*spec.targets, other)))
    assert guard.actions() == [(3, "remove"), (3, "admit")]
    assert guard.decisions()[0].cause == "identifier_used_again"
    assert tuple(guard.target(3).paths) == (ipv4_of(9),)


@pytest.mark.parametrize("in_stream", [STREAM, "other"])
def test_an_address_used_again_ends_the_drain(in_stream: str) -> None:
    guard = three()
    guard.source(listed(1, 2))
    newcomer = TargetSpec(identifier=7, ips=(ipv4_of(3),))
    if in_stream == STREAM:
        spec = listed(1, 2)
        guard.source(replace(spec, targets=(*spec.targets, newcomer)))
    else:
        guard.source(listed(1, 2), StreamSpec(name="other", identifier_offset=6000, targets=(newcomer,)))
    assert 3 not in guard.states()
    assert next(d for d in guard.decisions() if d.action is Action.REMOVE).cause == "address_used_again"


def test_a_stream_that_leaves_the_list_does_not_drain() -> None:
    guard = three()
    guard.source(listed(1, 2))
    guard.source()
    assert STREAM not in guard.engine.stream_names()
    assert guard.tables == {}


def test_a_drain_is_predicted_with_its_end() -> None:
    guard = three()
    guard.source(listed(1, 2))
    prediction = guard.engine.predictions(guard.now)[TargetKey(STREAM, 3)]
    assert (prediction.action, prediction.at) == (Action.REMOVE, guard.now + DRAIN_S)


# A target that the source lists as draining


def test_a_target_listed_as_draining_keeps_its_flows_for_as_long_as_it_is() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, draining=(3,)))
    assert guard.states()[3] == "draining"
    assert guard.active() == {1, 2, 3}
    assert steering(guard).ipv4.avoid == (5003,)
    assert steering(guard).draining == ()
    guard.wait(10 * DRAIN_S)
    assert guard.states()[3] == "draining"
    guard.source(listed(1, 2, 3))
    assert guard.actions() == [(3, "resume")]
    assert guard.states()[3] == "active"


def test_a_draining_target_that_is_lost_is_held_and_drains_on() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, draining=(3,)))
    guard.unlink(1)
    assert guard.states()[3] == "held"
    guard.link(5)
    assert guard.states() == {1: "active", 2: "active", 3: "draining"}
    assert [action for number, action in guard.actions() if number == 3] == ["recover", "drain"]


def test_a_draining_target_that_was_withdrawn_stays_out() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, draining=(3,)))
    guard.fail_neighbor(ipv4_of(3))
    guard.wait(WINDOW_S + 0.1)
    assert guard.states()[3] == "withdrawn"
    guard.neighbor(ipv4_of(3), NeighborState.REACHABLE)
    guard.wait(40.0)
    assert guard.states()[3] == "withdrawn"
    guard.source(listed(1, 2, 3))
    assert guard.states()[3] == "active"


def test_a_target_that_was_never_admitted_is_not_admitted_to_drain() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, 4, draining=(4,)))
    assert guard.states()[4] == "pending"
    guard.source(listed(1, 2, 3, 4))
    assert guard.states()[4] == "active"


def test_a_target_found_in_the_table_at_the_start_drains_on() -> None:
    guard = Guard(CONFIG, start=False)
    guard.tables[STREAM] = (frozenset({1, 2, 3}), frozenset({1, 2, 3}))
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.source(listed(1, 2, 3, draining=(3,)))
    assert guard.states() == {1: "active", 2: "active", 3: "draining"}
    assert guard.active() == {1, 2, 3}


def test_with_every_target_draining_the_stream_is_not_available() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, draining=(1, 2, 3)))
    guard.wait(2.0)
    assert guard.engine.available(STREAM) is False
    assert guard.active() == {1, 2, 3}
    assert steering(guard).ipv4.avoid == (), "nobody else could take the new flows"


def test_without_affinity_a_target_listed_as_draining_stays_active_and_that_is_counted() -> None:
    guard = three(replace(CONFIG, affinity=False))
    guard.source(listed(1, 2, 3, draining=(3,)))
    assert guard.states()[3] == "active"
    assert [(e.reason, e.count) for e in guard.of(fx.Ignored)] == [("draining_without_affinity", 1)]


# A change of the list waits for the flows that it would move


def test_a_new_target_is_committed_after_the_flows_were_seen() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, 4))
    assert guard.states()[4] == "active"
    assert table(guard) == ({1, 2, 3}, {1, 2, 3})
    assert steering(guard).observing
    guard.wait(LEARN_S - 0.01)
    assert table(guard) == ({1, 2, 3}, {1, 2, 3})
    guard.wait(0.02)
    assert table(guard) == ({1, 2, 3, 4}, {1, 2, 3, 4})
    assert not steering(guard).observing


def test_changes_that_follow_each_other_wait_once() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, 4))
    guard.wait(LEARN_S - 1.0)
    guard.source(listed(1, 2, 3, 4, 5))
    guard.wait(1.1)
    assert table(guard) == ({1, 2, 3, 4, 5}, {1, 2, 3, 4, 5})


def test_a_change_taken_back_in_time_changes_no_table() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, 4))
    guard.source(listed(1, 2, 3))
    effects = guard.wait(2 * LEARN_S)
    assert not [e for e in effects if isinstance(e, fx.CommitTables)]
    assert not steering(guard).observing


def test_a_loss_is_committed_while_flows_are_seen() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, 4))
    guard.fail_neighbor(ipv4_of(2))
    guard.wait(WINDOW_S + 0.1)
    assert table(guard) == ({1, 2, 3}, {1, 3})
    guard.wait(LEARN_S)
    assert table(guard) == ({1, 2, 3, 4}, {1, 3, 4})


def test_the_first_targets_of_a_stream_wait_for_nothing() -> None:
    guard = Guard(CONFIG, targets=0)
    guard.source(listed())
    guard.source(listed(1, 2))
    assert table(guard) == ({1, 2}, {1, 2})
    guard.wait(0.99)
    guard.source(listed(1, 2, 3))
    assert table(guard) == ({1, 2, 3}, {1, 2, 3}), "they come one after another"
    guard.wait(0.02)
    guard.source(listed(1, 2, 3, 4))
    assert table(guard) == ({1, 2, 3}, {1, 2, 3})


def test_a_table_that_was_there_at_the_start_is_no_young_one() -> None:
    guard = Guard(CONFIG, start=False)
    guard.tables[STREAM] = (frozenset({1, 2}), frozenset({1, 2}))
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.source(listed(1, 2))
    guard.source(listed(1, 2, 3))
    assert table(guard) == ({1, 2}, {1, 2})


def test_no_change_waits_for_flows_that_the_kernel_does_not_remember() -> None:
    guard = three()
    guard.source(listed(1, 2, 3, 4))
    guard.tell(ev.AffinityReported(in_force=False))
    assert table(guard) == ({1, 2, 3, 4}, {1, 2, 3, 4}), "the one that waits is committed when nftables refuses"
    assert not steering(guard).observing
    guard.source(listed(1, 2, 3, 4, 5))
    assert table(guard) == ({1, 2, 3, 4, 5}, {1, 2, 3, 4, 5})
    guard.tell(ev.AffinityReported(in_force=True))
    guard.source(listed(1, 2, 3, 4, 5, 6))
    assert table(guard) == ({1, 2, 3, 4, 5}, {1, 2, 3, 4, 5})


def test_a_list_of_other_targets_alone_does_not_wait() -> None:
    guard = three(replace(CONFIG, drain_window_s=0.0))
    guard.source(listed(4, 5))
    assert table(guard) == ({4, 5}, {4, 5}), "no flow could stay with its target"


def test_the_status_says_when_a_change_of_the_list_is_committed() -> None:
    guard = three()
    assert guard.engine.status(guard.now).streams[0].commit_at is None
    guard.source(listed(1, 2, 3, 4))
    until = guard.now + LEARN_S
    guard.wait(1.0)
    status = guard.engine.status(guard.now)
    assert status.streams[0].commit_at == until
    assert {target.identifier: target.commit_at for target in status.targets} == {1: None, 2: None, 3: None, 4: until}
    guard.wait(LEARN_S)
    status = guard.engine.status(guard.now)
    assert status.streams[0].commit_at is None
    assert not any(target.commit_at for target in status.targets)


# One family of a target


def dual() -> Guard:
    """Targets 1 to 3 behind link 1, both families, all active."""
    guard = Guard(CONFIG, targets=0)
    guard.link(1, ipv6=True)
    guard.source(listed(1, 2, 3, ipv6=True))
    assert guard.states() == {1: "active", 2: "active", 3: "active"}
    return guard


def lose_ipv6_of(guard: Guard, *targets: int) -> None:
    """Another program deletes these targets' IPv6 routes, and its own take their place."""
    for number in targets:
        route = next(r for r in guard.routes if r.table == 5000 + number and not r.ipv4 and r.oif)
        guard.routes = guard.routes - {route}
        foreign = route._replace(protocol=4, oif=9)
        guard.tell(ev.RouteGone(route=route), ev.RouteSeen(route=foreign))


def give_ipv6_back(guard: Guard, *targets: int) -> None:
    for number in targets:
        ours = Route(5000 + number, False, RouteKind.UNICAST, ROUTE_METRIC, ipv6_of(number), 9, protocol=4)
        guard.tell(ev.RouteGone(route=ours))


def test_a_lost_family_is_withdrawn_alone_at_the_end_of_its_window() -> None:
    guard = dual()
    lose_ipv6_of(guard, 1)
    assert guard.states()[1] == "held"
    assert guard.deadline(1) == guard.now + WINDOW_S
    assert guard.engine.predictions(guard.now)[TargetKey(STREAM, 1)].action is Action.WITHDRAW_FAMILY
    assert steering(guard).ipv6.served == (5001, 5002, 5003)
    guard.wait(WINDOW_S + 0.1)
    [decision] = guard.decisions()
    assert (decision.action, decision.state_to) == (Action.WITHDRAW_FAMILY, "held")
    assert [e.withdrawn for e in decision.evidence] == [False, True]
    assert steering(guard).ipv4.served == (5001, 5002, 5003)
    assert steering(guard).ipv6.served == (5002, 5003)
    assert guard.active() == {1, 2, 3}
    assert guard.deadline(1) is None
    give_ipv6_back(guard, 1)
    assert guard.states()[1] == "active"
    assert steering(guard).ipv6.served == (5001, 5002, 5003)


def test_a_family_that_is_back_in_time_is_not_withdrawn() -> None:
    guard = dual()
    lose_ipv6_of(guard, 1)
    guard.wait(WINDOW_S - 0.1)
    give_ipv6_back(guard, 1)
    assert guard.states()[1] == "active"
    assert guard.wait(10.0) == []


def test_when_most_of_a_stream_lose_a_family_it_is_withdrawn_after_the_freeze_limit() -> None:
    guard = dual()
    lose_ipv6_of(guard, 1, 2)
    lost_at = guard.now
    guard.wait(LIMIT_S - WINDOW_S)
    assert steering(guard).ipv6.served == (5001, 5002, 5003)
    guard.wait(2 * WINDOW_S + 0.1)
    assert steering(guard).ipv6.served == (5003,)
    assert guard.now <= lost_at + LIMIT_S + WINDOW_S + 0.2


def test_a_target_that_loses_its_other_family_gets_another_window() -> None:
    guard = dual()
    lose_ipv6_of(guard, 1)
    guard.wait(WINDOW_S + 1.0)
    route = next(r for r in guard.routes if r.table == 5001 and r.ipv4 and r.oif)
    guard.routes = guard.routes - {route}
    guard.tell(ev.RouteGone(route=route), ev.RouteSeen(route=route._replace(protocol=4, oif=9)))
    assert guard.deadline(1) == guard.now + WINDOW_S
    guard.wait(WINDOW_S + 0.1)
    assert guard.states()[1] == "withdrawn"
    assert steering(guard).ipv4.served == (5002, 5003)
    assert steering(guard).ipv6.served == (5002, 5003)


def test_without_affinity_a_lost_family_is_held_without_an_end() -> None:
    guard = Guard(replace(CONFIG, affinity=False), targets=0)
    guard.link(1, ipv6=True)
    guard.source(listed(1, 2, 3, ipv6=True))
    lose_ipv6_of(guard, 1)
    assert guard.states()[1] == "held"
    assert guard.deadline(1) is None
    assert guard.wait(100.0) == []


def test_a_target_of_several_streams_drains_in_the_one_that_it_left() -> None:
    """With Meridio, one address is a target of each stream that its pod has opened."""
    guard = three()
    other = StreamSpec(name="other", identifier_offset=6000, targets=listed(1, 2, 3).targets)
    guard.source(listed(1, 2, 3), other)
    guard.source(listed(1, 2), other)
    assert guard.states()[3] == "draining"
    guard.source(listed(1, 2), replace(other, vips=()))
    assert guard.states()[3] == "draining"


def test_the_same_list_again_changes_nothing_of_a_drain() -> None:
    guard = three()
    guard.source(listed(1, 2))
    guard.fail_neighbor(ipv4_of(3))
    assert guard.states()[3] == "held"
    guard.source(listed(1, 2))
    assert guard.states()[3] == "held"


# A restart while a target drains


def restarted(drains: tuple[ev.OpenDrain, ...], *specs: StreamSpec, config: EngineConfig = CONFIG) -> Guard:
    """Another run, that finds the targets 1 to 3 in the table."""
    guard = Guard(config, start=False)
    guard.tables[STREAM] = (frozenset({1, 2, 3}), frozenset({1, 2, 3}))
    guard.tell(ev.HoldsRemembered(holds=(), drains=drains))
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.source(*(specs or (listed(1, 2),)))
    return guard


def left_open() -> tuple[ev.OpenDrain, ...]:
    """Return the drains of a run that ends half a window after target 3 left the list."""
    guard = three()
    guard.source(listed(1, 2))
    guard.wait(DRAIN_S / 2)
    drains = guard.engine.open_drains(guard.now)
    assert [(drain.identifier, drain.left_s) for drain in drains] == [(3, DRAIN_S / 2)]
    return drains


def test_a_drain_goes_on_after_a_restart_for_the_time_that_is_left() -> None:
    guard = restarted(left_open())
    assert guard.states() == {1: "active", 2: "active", 3: "draining"}
    assert guard.active() == {1, 2, 3}
    assert steering(guard).ipv4.avoid == (5003,)
    assert steering(guard).draining == (5003,)
    assert guard.engine.open_drains(guard.now)[0].left_s == pytest.approx(DRAIN_S / 2)
    guard.wait(DRAIN_S / 2 - 0.01)
    assert guard.states()[3] == "draining"
    guard.wait(0.02)
    assert guard.states() == {1: "active", 2: "active"}
    assert guard.decisions()[-1].cause == "drain_window"


def test_without_a_remembered_drain_a_target_that_is_not_listed_goes_at_the_start() -> None:
    assert restarted(()).states() == {1: "active", 2: "active"}


@pytest.mark.parametrize("config", [replace(CONFIG, drain_window_s=0.0), replace(CONFIG, affinity=False)])
def test_a_drain_ends_at_a_start_that_has_none(config: EngineConfig) -> None:
    guard = restarted(left_open(), config=config)
    assert guard.states() == {1: "active", 2: "active"}
    assert guard.active() == {1, 2}


def test_a_target_listed_again_meanwhile_is_active() -> None:
    guard = restarted(left_open(), listed(1, 2, 3))
    assert guard.states() == {1: "active", 2: "active", 3: "active"}
    guard.wait(2 * DRAIN_S)
    assert guard.states()[3] == "active"


def test_an_address_used_again_meanwhile_is_not_drained() -> None:
    spec = listed(1, 2)
    newcomer = TargetSpec(identifier=7, ips=(ipv4_of(3),))
    guard = restarted(left_open(), replace(spec, targets=(*spec.targets, newcomer)))
    assert 3 not in guard.states()


def test_a_target_that_is_not_in_the_table_any_more_is_not_drained() -> None:
    guard = Guard(CONFIG, start=False)
    guard.tables[STREAM] = (frozenset({1, 2}), frozenset({1, 2}))
    guard.tell(ev.HoldsRemembered(holds=(), drains=left_open()))
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.source(listed(1, 2))
    assert guard.states() == {1: "active", 2: "active"}
    assert guard.active() == {1, 2}
    guard.wait(2 * DRAIN_S)
    assert guard.route(3) is None


def test_a_stream_that_is_not_listed_any_more_does_not_drain() -> None:
    other = StreamSpec(name="other", identifier_offset=6000)
    guard = restarted(left_open(), other)
    guard.source(other, listed(1, 2))
    assert guard.states() == {1: "active", 2: "active"}


# In the status


def test_the_status_says_which_family_is_held_and_which_withdrawn_and_where_new_flows_go() -> None:
    guard = dual()
    lose_ipv6_of(guard, 1)
    status = guard.engine.status(guard.now)
    families = {each.ipv4: (each.held, each.withdrawn) for each in status.streams[0].families}
    assert families == {True: (0, 0), False: (1, 0)}
    assert [(path.steered, path.withdrawn) for path in status.targets[0].paths] == [(False, False), (True, False)]
    guard.wait(WINDOW_S + 0.1)
    status = guard.engine.status(guard.now)
    families = {each.ipv4: (each.held, each.withdrawn) for each in status.streams[0].families}
    assert families == {True: (0, 0), False: (0, 1)}
    assert [(path.steered, path.withdrawn) for path in status.targets[0].paths] == [(False, False), (True, True)]
    assert not any(path.steered or path.withdrawn for path in status.targets[1].paths)
    # With its other family lost, it is held as a whole.
    route = next(r for r in guard.routes if r.table == 5001 and r.ipv4 and r.oif)
    guard.routes = guard.routes - {route}
    guard.tell(ev.RouteGone(route=route), ev.RouteSeen(route=route._replace(protocol=4, oif=9)))
    families = {each.ipv4: (each.held, each.withdrawn) for each in guard.engine.summary(guard.now).streams[0].families}
    assert families == {True: (1, 0), False: (1, 0)}


def test_the_status_says_that_a_target_drains_and_whether_it_is_listed() -> None:
    guard = three()
    guard.source(listed(1, 2, draining=(2,)))
    drained = {target.identifier: target for target in guard.engine.status(guard.now).targets}
    assert [(i, t.draining, t.unlisted) for i, t in drained.items()] == [
        (1, False, False),
        (2, True, False),
        (3, True, True),
    ]
    assert [drained[i].paths[0].steered for i in (1, 2, 3)] == [False, True, True]
