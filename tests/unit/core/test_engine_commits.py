"""The distributor's side: what is committed when, what happens when it fails, and what may go only afterwards."""

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.addr import parse_prefix
from lbguard.core.model import Action, Route, RouteKind, StreamSpec, TargetSpec
from tests.unit.core.harness import STREAM, Guard, ip, ipv4_of, ipv6_of

NONE: frozenset[int] = frozenset()


def spec(*identifiers: int, name: str = STREAM, offset: int = 5000, vips: tuple[str, ...] = ()) -> StreamSpec:
    return StreamSpec(
        name=name,
        identifier_offset=offset,
        vips=tuple(parse_prefix(vip) for vip in vips),
        targets=tuple(TargetSpec(identifier=i, ips=(ipv4_of(i),)) for i in identifiers),
    )


def done(*identifiers: int) -> ev.CommitDone:
    return ev.CommitDone(stream=STREAM, registered=frozenset(identifiers), active=frozenset(identifiers))


def test_one_commit_carries_all_targets_and_all_streams() -> None:
    guard = Guard(targets=0)
    guard.source(spec(1, 2), spec(3, name="stream-b", offset=6000))
    assert guard.active() == {1, 2}
    assert guard.active("stream-b") == {3}
    last = guard.of(fx.CommitTables)[-1]
    assert {table.stream.name for table in last.tables} == {STREAM, "stream-b"}


def test_one_commit_per_stream_is_under_way_at_a_time_and_the_next_makes_up_for_all() -> None:
    guard = Guard(targets=1)
    guard.refuse = (fx.CommitTables,)
    guard.register(1, 2)
    assert len(guard.of(fx.CommitTables)) == 1
    guard.register(1, 2, 3)
    guard.register(1)
    guard.wait(10.0)
    assert guard.of(fx.CommitTables) == []
    guard.tell(ev.CommitDone(stream=STREAM, registered=frozenset({1, 2}), active=frozenset({1})))
    [commit] = guard.of(fx.CommitTables)
    assert commit.tables[0].registered == frozenset({1})


def test_a_failed_commit_is_tried_again_with_backoff() -> None:
    guard = Guard(targets=1)
    guard.refuse = (fx.CommitTables,)
    guard.register(1, 2)
    delays = []
    for _ in range(8):
        guard.tell(ev.CommitFailed(stream=STREAM, reason="refused"))
        failed_at = guard.now
        assert guard.of(fx.CommitTables) == []
        while not guard.of(fx.CommitTables):
            at = guard.engine.next_deadline(guard.now)
            assert at is not None
            guard.wait(at - guard.now)
        delays.append(round(guard.now - failed_at, 3))
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    guard.tell(done(1, 2))
    assert guard.engine.next_deadline(guard.now) is None


def test_a_lost_table_is_attached_and_committed_again() -> None:
    guard = Guard(targets=2)
    guard.tables.clear()
    guard.tell(ev.DistributorLost(stream=STREAM, reason="replaced"))
    assert [type(e) for e in guard.effects if isinstance(e, fx.AttachStream | fx.CommitTables)] == [
        fx.AttachStream,
        fx.CommitTables,
    ]
    assert guard.active() == {1, 2}
    assert guard.states() == {1: "active", 2: "active"}


def test_a_table_that_somebody_else_changed_is_committed_again() -> None:
    guard = Guard(targets=2)
    guard.tell(ev.DistributorSeen(stream=STREAM, active=frozenset({1, 2})))
    assert guard.of(fx.CommitTables) == []
    guard.tell(ev.DistributorSeen(stream=STREAM, active=frozenset({1})))
    assert guard.active() == {1, 2}
    assert len(guard.of(fx.CommitTables)) == 1


def test_a_failed_attach_is_tried_again_also_when_only_the_vips_changed() -> None:
    guard = Guard(targets=0)
    guard.source(spec(1))
    guard.refuse = (fx.AttachStream,)
    guard.source(spec(1, vips=("20.0.0.1/32",)))
    [attach] = guard.of(fx.AttachStream)
    assert attach.stream.vips == (parse_prefix("20.0.0.1/32"),)
    guard.tell(ev.CommitFailed(stream=STREAM, reason="refused"))
    guard.refuse = ()
    guard.wait(1.0)
    assert [e.stream.vips for e in guard.of(fx.AttachStream)] == [(parse_prefix("20.0.0.1/32"),)]
    assert guard.engine.next_deadline(guard.now) is None


def test_an_attach_waits_for_the_commit_that_is_under_way() -> None:
    guard = Guard(targets=0)
    guard.source(spec(1))
    guard.refuse = (fx.CommitTables, fx.AttachStream)
    guard.source(spec(1, 2))
    guard.source(spec(1, 2, vips=("20.0.0.1/32",)))
    assert guard.of(fx.AttachStream) == []
    guard.tell(ev.CommitDone(stream=STREAM, registered=frozenset({1, 2}), active=frozenset({1})))
    assert len(guard.of(fx.AttachStream)) == 1
    assert guard.of(fx.CommitTables) == []
    guard.tell(ev.DistributorSeen(stream=STREAM, active=frozenset({1})))
    assert len(guard.of(fx.CommitTables)) == 1


# Targets come and go


def test_a_removed_target_is_out_at_once_and_its_routes_go_after_the_commit() -> None:
    guard = Guard(targets=2)
    guard.refuse = (fx.CommitTables,)
    guard.register(1)
    assert [d.action for d in guard.decisions()] == [Action.REMOVE]
    [commit] = guard.of(fx.CommitTables)
    assert (commit.tables[0].registered, commit.tables[0].active) == (frozenset({1}), frozenset({1}))
    assert guard.route(2) is not None
    guard.wait(30.0)
    assert guard.route(2) is not None
    guard.tell(done(1))
    assert not [r for r in guard.routes if r.table == 5002]
    assert not [r for r in guard.rules if r.mark == 5002]
    rules_at = next(n for n, e in enumerate(guard.effects) if isinstance(e, fx.ProgramRules) and e.delete)
    routes_at = next(n for n, e in enumerate(guard.effects) if isinstance(e, fx.ProgramRoutes) and e.delete)
    assert rules_at < routes_at, "without its rule no packet meets the empty table"


def test_a_target_that_is_back_before_the_commit_keeps_its_routes() -> None:
    guard = Guard(targets=2)
    guard.refuse = (fx.CommitTables,)
    guard.register(1)
    guard.register(1, 2)
    guard.refuse = ()
    guard.tell(done(1))
    assert guard.route(2) is not None
    assert guard.active() == {1, 2}
    assert not [r for e in guard.of(fx.ProgramRoutes) for r in e.delete]


def test_a_target_that_comes_and_goes_between_two_commits_leaves_nothing() -> None:
    guard = Guard(targets=1)
    guard.tell(ev.SourceSnapshot(streams=(spec(1, 2),)), ev.SourceSnapshot(streams=(spec(1),)))
    assert guard.engine.stream_registry.retiring == {}
    assert {r.table for r in guard.routes} == {5001}
    assert {r.mark for r in guard.rules} == {5001}


def test_an_address_that_changes_takes_the_route_over_in_one_replace() -> None:
    guard = Guard(targets=1)
    guard.source(StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ip("172.16.0.77"),)),)))
    [programmed] = [e for e in guard.of(fx.ProgramRoutes) if e.put]
    assert [r.gateway for r in programmed.replace] == [ip("172.16.0.77")]
    assert not [r for e in guard.of(fx.ProgramRoutes) for r in e.delete]
    assert guard.active() == {1}
    assert guard.states() == {1: "active"}


def test_an_address_that_changes_to_one_without_a_link_leaves_no_route_to_the_old_one() -> None:
    guard = Guard(targets=1)
    guard.source(StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ip("10.9.9.9"),)),)))
    assert guard.states() == {1: "held"}
    route = guard.route(1)
    assert route is not None
    assert route.kind is RouteKind.BLACKHOLE


def test_a_family_that_a_target_loses_leaves_no_route() -> None:
    guard = Guard(targets=0)
    guard.link(1, ipv6=True)
    guard.register(1, ipv6=True)
    assert guard.route(1, ipv4=False).kind is RouteKind.UNICAST  # type: ignore[union-attr]
    guard.register(1)
    assert guard.route(1, ipv4=False).kind is RouteKind.BLACKHOLE  # type: ignore[union-attr]
    assert guard.states() == {1: "active"}


def test_a_route_that_was_under_way_when_its_family_was_lost_goes_as_well() -> None:
    guard = Guard(targets=0)
    guard.link(1, ipv6=True)
    guard.refuse = (fx.ProgramRoutes,)
    guard.register(1, ipv6=True)
    late = next(r for e in guard.of(fx.ProgramRoutes) for r in e.put if r.gateway == ipv6_of(1))
    guard.register(1)
    guard.tell(ev.RoutesProgrammed(added=(late,)))
    assert [r for e in guard.of(fx.ProgramRoutes) for r in e.delete] == [late]


def test_every_mark_has_its_fallback_in_both_families() -> None:
    guard = Guard(targets=1)
    fallbacks = {(r.ipv4, r.metric) for r in guard.routes if r.kind is RouteKind.BLACKHOLE and r.table == 5001}
    assert fallbacks == {(True, 4294967295), (False, 4294967295)}
    guard.unlink(1)
    assert guard.route(1).kind is RouteKind.BLACKHOLE  # type: ignore[union-attr]


# Streams come and go


def test_a_stream_that_ends_is_emptied_and_forgotten_and_its_marks_go() -> None:
    guard = Guard(targets=2)
    guard.source()
    assert [e.stream.name for e in guard.of(fx.ForgetStream)] == [STREAM]
    assert guard.tables == {}
    assert guard.routes == set()
    assert guard.rules == set()
    assert guard.engine.stream_registry.streams == {}


def test_a_stream_that_was_empty_already_is_forgotten_too() -> None:
    guard = Guard(targets=2)
    guard.register()
    guard.source()
    assert [e.stream.name for e in guard.of(fx.ForgetStream)] == [STREAM]
    assert guard.engine.stream_registry.streams == {}


def test_a_stream_that_ended_is_forgotten_before_one_of_its_name_is_attached() -> None:
    guard = Guard(targets=1)
    guard.refuse = (fx.CommitTables,)
    guard.source()
    guard.refuse = ()
    guard.tell(done(), ev.SourceSnapshot(streams=(spec(1),)))
    kinds = [type(e) for e in guard.effects if isinstance(e, fx.AttachStream | fx.ForgetStream)]
    assert kinds == [fx.ForgetStream, fx.AttachStream]
    assert guard.active() == {1}


def test_a_stream_that_comes_back_as_another_is_served_once_the_old_one_is_gone() -> None:
    guard = Guard(targets=1)
    guard.refuse = (fx.CommitTables,)
    guard.source()
    guard.source(spec(1, offset=7000))
    guard.refuse = ()
    guard.tell(done())
    assert guard.stream().spec.identifier_offset == 7000
    assert guard.active() == {1}
    assert {r.table for r in guard.routes} == {7001}


def test_a_stream_that_is_served_does_not_change_its_marks() -> None:
    guard = Guard(targets=1)
    guard.source(spec(1, offset=7000))
    assert guard.of(fx.Ignored) == [fx.Ignored(reason="stream_identity_changed")]
    assert guard.stream().spec.identifier_offset == 5000


def test_a_list_and_its_end_in_one_batch_with_an_old_commit_do_no_harm() -> None:
    guard = Guard(targets=0)
    guard.refuse = (fx.CommitTables,)
    guard.source(spec())
    guard.tell(ev.DistributorLost(stream=STREAM, reason="replaced"))
    guard.tell(
        ev.SourceSnapshot(streams=(spec(1),)),
        ev.SourceSnapshot(streams=()),
        ev.CommitDone(stream=STREAM, registered=NONE, active=NONE),
    )
    assert guard.engine.stream_registry.streams == {}


def test_events_of_unknown_streams_are_ignored_by_name() -> None:
    guard = Guard(targets=1)
    guard.tell(ev.DistributorSeen(stream="nobody", active=NONE), ev.CommitFailed(stream="nobody", reason=""))
    assert guard.of(fx.Ignored) == [fx.Ignored(reason="stream_unknown", count=2)]


# The kernel refuses


def test_a_route_that_failed_is_tried_again_with_backoff_and_admits_its_target() -> None:
    guard = Guard(targets=1)
    guard.refuse = (fx.ProgramRoutes,)
    guard.register(1, 2)
    route = next(r for e in guard.of(fx.ProgramRoutes) for r in e.put if r.kind is RouteKind.UNICAST)
    assert guard.states()[2] == "pending"
    for delay in (0.1, 0.2, 0.4):
        guard.tell(ev.RouteFailed(route=route, reason="busy"))
        assert guard.engine.next_deadline(guard.now) == guard.now + delay
        guard.wait(delay)
        assert [r for e in guard.of(fx.ProgramRoutes) for r in e.put] == [route]
    guard.tell(ev.RoutesProgrammed(added=(route,)))
    assert guard.states()[2] == "active"
    assert guard.engine.next_deadline(guard.now) is None


def test_a_rule_that_failed_is_tried_again_and_its_failures_are_forgotten_once_it_stands() -> None:
    guard = Guard(targets=0)
    guard.refuse = (fx.ProgramRules,)
    guard.register(1)
    rules = [r for e in guard.of(fx.ProgramRules) for r in e.add]
    for _ in range(2):
        guard.tell(*(ev.RuleFailed(rule=rule, reason="busy") for rule in rules))
        assert guard.engine.next_deadline(guard.now) == guard.now + 0.1
        guard.wait(0.1)
        assert [r for e in guard.of(fx.ProgramRules) for r in e.add] == rules
        guard.tell(*(ev.RuleSeen(rule=rule) for rule in rules))
        assert guard.states() == {1: "active"}
        guard.tell(*(ev.RuleGone(rule=rule) for rule in rules))


def test_an_acknowledgement_that_the_loss_of_the_link_has_overtaken_is_not_believed() -> None:
    guard = Guard(targets=1)
    route = guard.route(1)
    assert route is not None
    guard.set_down(1)
    guard.tell(ev.RoutesProgrammed(added=(route,)))
    guard.tell(guard.link_seen(1))
    assert route in [r for e in guard.of(fx.ProgramRoutes) for r in e.put]
    assert guard.route(1) == route


def test_foreign_routes_and_rules_are_nobodys_business() -> None:
    guard = Guard(targets=1)
    foreign = Route(5001, True, RouteKind.UNICAST, 100, ip("172.16.0.99"), 1, protocol=4)
    guard.tell(ev.RouteSeen(route=foreign))
    assert guard.of(fx.Ignored) == [fx.Ignored(reason="route_known_or_foreign")]
    guard.source()
    assert foreign not in [r for e in guard.of(fx.ProgramRoutes) for r in e.delete]


# Availability


def availability(guard: Guard) -> list[tuple[bool, str]]:
    return [(e.available, e.reason) for e in guard.of(fx.SetAvailability)]


def test_a_stream_with_a_path_is_available_at_once_and_without_any_after_its_own_grace() -> None:
    guard = Guard(targets=2)
    assert availability(guard) == [(True, "ok")]
    guard.unlink(1)
    guard.wait(0.99)
    assert availability(guard) == []
    guard.wait(0.02)
    assert availability(guard) == [(False, "no_usable_path")]
    assert guard.states() == {1: "held", 2: "held"}
    guard.link(2)
    assert availability(guard) == [(True, "ok")]


def test_a_short_loss_is_not_told() -> None:
    guard = Guard(targets=2)
    guard.unlink(1)
    guard.wait(0.9)
    guard.link(2)
    guard.wait(10.0)
    assert availability(guard) == []


def test_a_stream_without_targets_is_not_available() -> None:
    guard = Guard(targets=1)
    guard.register()
    guard.wait(2.0)
    assert availability(guard) == [(False, "no_targets")]
