"""Marks and tables of streams that change, come and go: no mark leads to the target of another stream."""

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.model import StreamSpec, TargetSpec
from tests.unit.core.harness import Guard, ipv4_of


def stream(name: str, *, offset: int = 5000, room: int = 100, targets: tuple[int, ...] = (1,)) -> StreamSpec:
    specs = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i),)) for i in targets)
    return StreamSpec(name=name, identifier_offset=offset, max_targets=room, targets=specs)


def test_a_stream_waits_for_marks_that_another_still_has() -> None:
    guard = Guard(targets=0)
    guard.source(stream("a"))
    guard.source(stream("a", offset=6000), stream("c", targets=(1, 2)))
    assert "c" not in guard.tables
    # The first keeps its marks until it is gone; then the other gets them, with rules and routes of its own.
    guard.source(stream("c", targets=(1, 2)))
    assert guard.active("c") == {1, 2}
    assert {rule.mark for rule in guard.rules} == {5001, 5002}
    guard.source()
    assert guard.rules == set()
    assert guard.routes == set()


def test_entries_beyond_the_room_of_a_stream_are_not_its_marks() -> None:
    guard = Guard(targets=0, start=False)
    guard.tables["a"] = (frozenset({1, 60}), frozenset({1, 60}))
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.source(stream("a", room=50), stream("b", offset=5050, room=50, targets=(10,)))
    assert guard.active("a") == {1}
    assert guard.active("b") == {10}
    assert {rule.mark for rule in guard.rules} == {5001, 5060}


def test_a_removed_stream_ends_also_when_its_table_went_with_it() -> None:
    guard = Guard(targets=0)
    guard.source(stream("a"))
    guard.refuse = (fx.CommitTables, fx.AttachStream)
    guard.source()
    guard.tell(ev.CommitFailed(stream="a", reason="it does not exist"))
    guard.tell(ev.DistributorLost(stream="a", reason="it does not exist"))
    for _ in range(5):
        guard.tell(ev.CommitFailed(stream="a", reason="it does not exist"))
        guard.wait(10.0)
    assert "a" not in guard.engine.stream_registry.streams
    assert guard.rules == set()
    guard.refuse = ()
    guard.source(stream("a", offset=7000))
    assert guard.active("a") == {1}


def test_a_changed_size_is_refused_and_its_targets_are_followed_all_the_same() -> None:
    guard = Guard(targets=0)
    guard.source(stream("a", targets=(1, 3)))
    guard.source(stream("a", room=200, targets=(2, 3, 150)))
    assert guard.active("a") == {2, 3}
    assert guard.stream("a").spec.max_targets == 100


def test_an_acknowledgement_that_a_loss_overtook_brings_no_route_back() -> None:
    guard = Guard(targets=1)
    guard.unlink(1)
    guard.refuse = (fx.ProgramRoutes,)
    guard.link(2)
    (asked,) = [route for effect in guard.of(fx.ProgramRoutes) for route in effect.put if route.oif == 2]
    guard.refuse = ()
    # The address goes and comes back, and the kernel drops the route with it, before the acknowledgement is read.
    guard.tell(guard.address_gone(2, "172.16.0.2/24"), ev.RoutesProgrammed(added=(asked,)))
    guard.tell(guard.address(2, "172.16.0.2/24"))
    assert asked in guard.routes
    assert guard.states() == {1: "active"}


def test_subnets_that_a_link_lost_are_remembered_only_for_targets() -> None:
    guard = Guard(targets=1)
    for number in range(200):
        address = f"10.{number}.0.1/24"
        guard.tell(guard.address(1, address))
        guard.tell(guard.address_gone(1, address))
    assert guard.engine.view._ownership._stripped == {}
