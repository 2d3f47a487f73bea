"""Paths that somebody else keeps: neighbours and announcements are ours, nothing else is."""

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig
from lbguard.core.model import ROUTE_METRIC, Action, NeighborState, Route, RouteKind, Rule
from tests.unit.core.harness import STREAM, Guard, ip, ipv4_of, mac

COMPANION = EngineConfig(manages_paths=False, neighbor_probe_interval_s=1.0)
PATHS = (fx.ProgramRoutes, fx.ProgramRules, fx.SetLinkDown)
FOREIGN = 3


def foreign_route(identifier: int, link: int) -> Route:
    mark = 5000 + identifier
    return Route(mark, True, RouteKind.UNICAST, 0, ipv4_of(identifier), link, FOREIGN)


def test_it_repairs_neighbours_and_announces_and_programs_nothing() -> None:
    guard = Guard(COMPANION, targets=1)
    effects = list(guard.effects)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, number=9)
    effects += guard.cut(1)
    effects += guard.tell(guard.link_seen(1))
    assert guard.of(fx.FlushNeighbors) == [fx.FlushNeighbors(entries=((1, ipv4_of(1)),))]
    assert guard.of(fx.ResolveNeighbors) == [fx.ResolveNeighbors(entries=((1, ipv4_of(1)),))]
    assert [announced.addresses for announced in guard.of(fx.Announce)] == [(ip("172.16.0.1"),)]
    effects += guard.unlink(1)
    effects += guard.link(2)
    effects += guard.link(3)
    assert guard.of(fx.Announce)
    effects += guard.wait(5)
    assert any(isinstance(effect, fx.TuneLink) for effect in effects)
    assert any(isinstance(effect, fx.SolicitNeighbors) for effect in effects)
    assert not [effect for effect in effects if isinstance(effect, PATHS)]


def test_what_would_have_been_decided_is_decided() -> None:
    guard = Guard(COMPANION, targets=2)
    effects = guard.unlink(1)
    assert guard.states() == {1: "held", 2: "held"}
    effects += guard.wait(70)
    assert guard.states() == {1: "withdrawn", 2: "withdrawn"}
    effects += guard.link(2)
    assert guard.states() == {1: "active", 2: "active"}
    actions = {effect.decision.action for effect in effects if isinstance(effect, fx.Record)}
    assert {Action.HOLD, Action.WITHDRAW, Action.READMIT} <= actions
    assert not [effect for effect in effects if isinstance(effect, PATHS)]


def test_routes_and_rules_of_the_load_balancer_come_and_go_without_a_word_of_ours() -> None:
    guard = Guard(COMPANION, targets=1)
    effects: list[fx.Effect] = []
    for _ in range(3):
        rule = Rule(5001, True, 5001, 32765, FOREIGN)
        effects += guard.tell(ev.RuleSeen(rule=rule), ev.RouteSeen(route=foreign_route(1, 1)))
        effects += guard.tell(ev.RouteGone(route=foreign_route(1, 1)), ev.RuleGone(rule=rule))
    assert {type(effect) for effect in effects} <= {fx.Ignored}
    assert guard.state(1) == "active"


def test_leftovers_of_a_run_that_enforced_are_left_alone() -> None:
    guard = Guard(COMPANION, start=False)
    ours = Route(5009, True, RouteKind.UNICAST, ROUTE_METRIC, ipv4_of(9), 1)
    effects = guard.tell(ev.KernelSnapshot(routes=(ours,), rules=(Rule(5009, True, 5009),)))
    effects += guard.link(1)
    effects += guard.register(1)
    effects += guard.wait(10)
    assert not [effect for effect in effects if isinstance(effect, PATHS)]


def test_the_table_is_the_load_balancers_own() -> None:
    guard = Guard(COMPANION, targets=2)
    guard.tell(ev.DistributorSeen(stream=STREAM, active=frozenset({1})))
    assert guard.of(fx.CommitTables) == []


def test_an_outdated_neighbour_is_flushed_and_resolved_and_no_other_is() -> None:
    guard = Guard(targets=2)
    for identifier in (1, 2):
        guard.neighbor(ipv4_of(identifier), NeighborState.STALE, number=identifier)
    guard.tell(ev.NeighborsOutdated(ips=(ipv4_of(1), ipv4_of(7))))
    assert guard.of(fx.FlushNeighbors) == [fx.FlushNeighbors(entries=((1, ipv4_of(1)),))]
    assert guard.of(fx.ResolveNeighbors) == [fx.ResolveNeighbors(entries=((1, ipv4_of(1)),))]
    assert guard.of(fx.Ignored) == []


def test_outdated_means_on_every_link_that_holds_an_entry() -> None:
    guard = Guard(EngineConfig(superseded_link_down=False, neighbor_probe_interval_s=0.0, solicit_neighbors=False))
    guard.neighbor(ipv4_of(1), NeighborState.STALE, number=9)
    guard.link(2)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2, number=9)
    guard.tell(ev.NeighborsOutdated(ips=(ipv4_of(1),)))
    assert {entry for effect in guard.of(fx.FlushNeighbors) for entry in effect.entries} == {
        (1, ipv4_of(1)),
        (2, ipv4_of(1)),
    }


def test_an_entry_that_holds_the_new_address_already_is_right() -> None:
    guard = Guard(targets=1)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, number=9)
    guard.tell(ev.NeighborsOutdated(ips=(ipv4_of(1),), new_mac=mac(9)))
    assert guard.of(fx.FlushNeighbors) == []
    assert guard.of(fx.Ignored) == [fx.Ignored(reason="neighbor_not_outdated")]
    guard.tell(ev.NeighborsOutdated(ips=(ipv4_of(1),), new_mac=mac(8)))
    assert guard.of(fx.FlushNeighbors) != []


def test_where_the_kernel_holds_nothing_there_is_nothing_to_flush() -> None:
    guard = Guard(targets=1)
    guard.neighbor(ipv4_of(1), NeighborState.FAILED)
    guard.tell(ev.NeighborsOutdated(ips=(ipv4_of(1),)))
    assert guard.of(fx.FlushNeighbors) == []


def test_an_observer_flushes_nothing() -> None:
    guard = Guard(EngineConfig(observe=True), targets=1)
    guard.neighbor(ipv4_of(1), NeighborState.STALE, number=9)
    guard.tell(ev.NeighborsOutdated(ips=(ipv4_of(1),)))
    assert guard.of(fx.FlushNeighbors) == []
