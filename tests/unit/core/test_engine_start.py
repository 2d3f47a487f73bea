"""Starting: what has to come before anything is decided, in any order, and what is adopted."""

import itertools

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig
from lbguard.core.model import (
    BLACKHOLE_METRIC,
    ROUTE_METRIC,
    Action,
    NeighborState,
    Route,
    RouteKind,
    Rule,
    StreamSpec,
    TargetSpec,
)
from tests.unit.core.harness import STREAM, Guard, ipv4_of, mac

SPEC = StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ipv4_of(1),)),))


def world(*, link: bool = True) -> ev.KernelSnapshot:
    """A kernel in which target 1 (and the unlisted target 9) is fully programmed through link 1."""
    routes = []
    for mark, gateway in ((5001, ipv4_of(1)), (5009, ipv4_of(9))):
        routes += [Route(mark, v4, RouteKind.BLACKHOLE, BLACKHOLE_METRIC) for v4 in (True, False)]
        routes += [Route(mark, True, RouteKind.UNICAST, ROUTE_METRIC, gateway, 1)] if link else []
    return ev.KernelSnapshot(
        links=(ev.LinkSeen(ifindex=1, name="nse-1", up=True, mac=mac(1)),) if link else (),
        addresses=(ev.AddressSeen(ifindex=1, ip=b"\xac\x10\x00\x01", prefix_length=24),) if link else (),
        routes=tuple(routes),
        rules=tuple(Rule(mark, v4, mark) for mark in (5001, 5009) for v4 in (True, False)),
    )


def restarted(active: set[int], *, link: bool = True, listed: tuple[int, ...] = (1,)) -> Guard:
    """A new engine over a distributor that holds these identifiers."""
    guard = Guard(start=False)
    guard.tables[STREAM] = (frozenset(active), frozenset(active))
    snapshot = world(link=link)
    guard.routes, guard.rules = set(snapshot.routes), set(snapshot.rules)
    guard.tell(snapshot)
    guard.register(*listed)
    return guard


def test_nothing_is_decided_before_the_first_view_and_the_first_list() -> None:
    guard = Guard(start=False)
    assert guard.tell(ev.KernelSnapshot()) == []
    assert guard.link(1) == []
    assert guard.wait(60) == []


@pytest.mark.parametrize("order", list(itertools.permutations(("kernel", "source", "distributor"))))
def test_the_first_events_may_come_in_any_order(order: tuple[str, ...]) -> None:
    guard = Guard(start=False)
    guard.refuse = (fx.AttachStream,)
    told = {
        "kernel": lambda: guard.tell(world()),
        "source": lambda: guard.source(SPEC),
        "distributor": lambda: guard.tell(ev.DistributorSeen(stream=STREAM, active=frozenset({1}))),
    }
    for step in order:
        told[step]()
        if step == "source":
            assert guard.of(fx.AttachStream)
            if "distributor" in order[: order.index("source")]:
                # A read-back of a stream that nobody listed was nobody's; the attach is answered anew.
                guard.tell(ev.DistributorSeen(stream=STREAM, active=frozenset({1})))
    assert guard.states() == {1: "active"}


def test_what_the_distributor_holds_is_adopted_and_nothing_changes() -> None:
    guard = restarted({1})
    assert guard.actions() == [(1, "adopt")]
    routes = [r for e in guard.of(fx.ProgramRoutes) for r in e.put if r.table == 5001]
    assert routes == [], "what stands in the kernel as it should is left alone"
    assert guard.active() == {1}


def test_an_adopted_target_with_a_broken_path_is_held_for_its_window() -> None:
    guard = restarted({1}, link=False)
    assert guard.actions() == [(1, "adopt"), (1, "hold")]
    assert guard.active() == {1}
    assert guard.deadline(1) == guard.now + 3.0


def test_a_target_that_was_out_and_is_still_broken_stays_out() -> None:
    guard = restarted(set(), link=False)
    assert guard.states() == {1: "pending"}
    assert guard.active() == set()


def test_an_unlisted_identifier_is_taken_out_and_its_routes_go_only_after_that() -> None:
    guard = Guard(start=False)
    guard.tables[STREAM] = (frozenset({1, 9}), frozenset({1, 9}))
    guard.refuse = (fx.CommitTables,)
    guard.tell(world())
    guard.source(SPEC)
    [commit] = guard.of(fx.CommitTables)
    assert commit.tables[0].active == commit.tables[0].registered == frozenset({1})
    assert not [r for e in guard.of(fx.ProgramRoutes) for r in e.delete]
    assert not [r for e in guard.of(fx.ProgramRules) for r in e.delete]

    guard.tell(ev.CommitDone(stream=STREAM, registered=frozenset({1}), active=frozenset({1})))
    deleted = {r for e in guard.of(fx.ProgramRoutes) for r in e.delete}
    assert {r.table for r in deleted} == {5009}
    assert len(deleted) == 3
    assert {r.mark for e in guard.of(fx.ProgramRules) for r in e.delete} == {5009}


def test_leftovers_of_earlier_runs_go_once_every_table_was_read() -> None:
    guard = Guard(start=False)
    guard.refuse = (fx.AttachStream,)
    guard.tell(world())
    guard.source(SPEC)
    assert not [r for e in guard.of(fx.ProgramRules) for r in e.delete], "9 may still be in use"
    guard.tell(ev.DistributorSeen(stream=STREAM, active=frozenset({1})))
    assert {r.mark for e in guard.of(fx.ProgramRules) for r in e.delete} == {5009}


def test_a_route_of_a_family_that_the_target_has_no_more_goes() -> None:
    guard = Guard(start=False)
    stale = Route(5001, False, RouteKind.UNICAST, ROUTE_METRIC, b"\xfd" + b"\0" * 15, 1)
    snapshot = world()
    guard.tell(ev.KernelSnapshot(links=snapshot.links, addresses=snapshot.addresses, routes=(stale,)))
    guard.routes = {stale}
    guard.source(SPEC)
    assert stale not in guard.routes


def test_a_restart_in_the_middle_of_a_freeze_changes_no_slot() -> None:
    guard = restarted({1, 2}, link=False, listed=(1, 2))
    guard.wait(4)
    assert guard.states() == {1: "frozen", 2: "frozen"}
    again = restarted(guard.active(), link=False, listed=(1, 2))
    assert again.active() == {1, 2}


def test_what_nobody_listens_to_yet_is_not_kept() -> None:
    guard = Guard(start=False)
    for _ in range(1000):
        guard.engine.observe(ev.NeighborSeen(ifindex=7, ip=ipv4_of(1), state=NeighborState.STALE), guard.now)
    assert len(guard.engine.view.changes.ignored) == 1


def test_observe_mode_touches_nothing_and_decides_all_the_same() -> None:
    guard = Guard(EngineConfig(observe=True), targets=2)
    touching = (
        fx.Announce,
        fx.ProgramRoutes,
        fx.ProgramRules,
        fx.FlushNeighbors,
        fx.ResolveNeighbors,
        fx.ProbeNeighbors,
        fx.TuneLink,
        fx.SetLinkDown,
    )
    effects = list(guard.effects)
    assert guard.states() == {1: "active", 2: "active"}
    effects += guard.link(2)
    effects += guard.unlink(1)
    effects += guard.set_down(2)
    effects += guard.wait(70)
    effects += guard.link(2)
    assert {type(e) for e in effects}.isdisjoint(touching)
    assert Action.WITHDRAW in {e.decision.action for e in effects if isinstance(e, fx.Record)}
