"""Links: ownership, make before break, links set down, announcements, neighbours, and the work that an event costs."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig
from lbguard.core.model import Action, Condition, LinkKey, NeighborState, StreamSpec, TargetSpec
from lbguard.core.path_repair import PathRepair
from lbguard.core.state import Target
from tests.unit.core.harness import STREAM, Guard, ip, ipv4_of, ipv6_of, mac


def oifs(guard: Guard) -> set[int]:
    return {route.oif for route in guard.routes if route.oif}


# Make before break


def test_the_newer_link_takes_over_in_one_replace_and_nobody_is_withdrawn() -> None:
    guard = Guard(targets=3)
    guard.link(2)
    replaced = [r for e in guard.of(fx.ProgramRoutes) for r in e.put]
    assert {r.table for r in replaced} == {5001, 5002, 5003}
    assert {r.oif for r in replaced} == {2}
    assert not [r for e in guard.of(fx.ProgramRoutes) for r in e.delete]
    assert guard.active() == {1, 2, 3}
    guard.wait(100.0)
    assert guard.active() == {1, 2, 3}
    assert guard.effects == []


def test_the_superseded_link_is_set_down_exactly_once_after_its_routes_have_moved() -> None:
    guard = Guard(targets=3)
    guard.refuse = (fx.ProgramRoutes,)
    guard.link(2)
    routes = [r for e in guard.of(fx.ProgramRoutes) for r in e.put]
    assert guard.of(fx.SetLinkDown) == []
    guard.tell(ev.RoutesProgrammed(added=tuple(routes[:2])))
    assert guard.of(fx.SetLinkDown) == []
    guard.tell(ev.RoutesProgrammed(added=tuple(routes[2:])))
    assert guard.of(fx.SetLinkDown) == []
    guard.neighbor(ipv4_of(2), NeighborState.REACHABLE, link=2)
    assert guard.of(fx.SetLinkDown) == [fx.SetLinkDown(link=LinkKey(1, 1), ifname="nse-1")]
    guard.tell(ev.LinkSetDown(link=LinkKey(1, 1)))
    guard.set_down(1)
    guard.tell(guard.link_seen(1))
    guard.tell(guard.link_seen(2))
    assert guard.of(fx.SetLinkDown) == []


def test_the_late_delete_of_the_old_link_changes_nothing() -> None:
    guard = Guard(targets=3)
    guard.link(2)
    guard.wait(5.0)
    guard.unlink(1)
    assert guard.effects == []
    assert set(guard.states().values()) == {"active"}


def test_a_new_link_owns_nothing_before_it_is_up_and_addressed() -> None:
    guard = Guard(targets=1)
    guard.tell(guard.link_seen(2, up=False), guard.address(2, "172.16.0.2/24"))
    assert oifs(guard) == {1}
    guard.tell(guard.link_seen(2))
    assert oifs(guard) == {2}


def test_a_link_that_still_owns_another_subnet_is_not_set_down() -> None:
    guard = Guard(targets=1)
    guard.tell(guard.address(1, "172.16.1.1/24"))
    guard.link(2)
    assert guard.of(fx.SetLinkDown) == []
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    assert guard.of(fx.SetLinkDown) == []
    guard.link(3, proxy=1)
    assert [e.link.ifindex for e in guard.of(fx.SetLinkDown)] == [1]


def test_an_older_link_that_comes_up_after_the_newer_is_set_down_as_well() -> None:
    guard = Guard(targets=1)
    guard.cut(1)
    guard.link(2)
    assert guard.of(fx.SetLinkDown) == []
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    assert guard.of(fx.SetLinkDown) == []
    guard.tell(guard.link_seen(1))
    assert [e.link.ifindex for e in guard.of(fx.SetLinkDown)] == [1]
    assert oifs(guard) == {2}


def test_a_link_that_was_set_down_is_set_up_again_when_the_newer_one_goes() -> None:
    guard = Guard(targets=1)
    guard.link(2)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    [down] = guard.of(fx.SetLinkDown)
    guard.tell(ev.LinkSetDown(link=down.link))
    guard.set_down(1)
    assert guard.of(fx.SetLinkUp) == []
    guard.unlink(2)
    assert guard.of(fx.SetLinkUp) == [fx.SetLinkUp(link=down.link, ifname="nse-1")]
    guard.tell(guard.link_seen(1))
    assert oifs(guard) == {1}
    assert guard.states() == {1: "active"}
    guard.link(3)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=3)
    assert guard.of(fx.SetLinkDown) == [], "once"


def test_a_link_that_was_set_down_is_set_up_again_though_its_mac_changed() -> None:
    guard = Guard(targets=1)
    guard.link(2)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    [down] = guard.of(fx.SetLinkDown)
    guard.tell(ev.LinkSetDown(link=down.link))
    guard.set_down(1)
    guard.tell(guard.link_seen(1, up=False, admin_up=False, new_mac=77))
    assert guard.of(fx.SetLinkUp) == []
    guard.unlink(2)
    assert guard.of(fx.SetLinkUp) == [fx.SetLinkUp(link=down.link, ifname="nse-1")]


def test_a_link_that_was_left_up_is_not_set_up() -> None:
    guard = Guard(targets=1)
    guard.link(2)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    [down] = guard.of(fx.SetLinkDown)
    guard.tell(ev.LinkSetDown(link=down.link, reason="macvlan0 rides on it"))
    guard.unlink(2)
    assert guard.of(fx.SetLinkUp) == []
    assert guard.states() == {1: "active"}


def test_a_link_is_not_set_down_while_a_target_fails_on_the_newer_one() -> None:
    guard = Guard(targets=2)
    guard.link(2)
    guard.fail_neighbor(ipv4_of(2), 1)
    guard.tell(ev.NeighborSeen(ifindex=2, ip=ipv4_of(2), state=NeighborState.FAILED))
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    assert guard.of(fx.SetLinkDown) == []
    guard.neighbor(ipv4_of(2), NeighborState.REACHABLE, link=2)
    assert [e.link.ifindex for e in guard.of(fx.SetLinkDown)] == [1]


def test_a_new_mac_makes_no_link_newer_and_supersedes_none() -> None:
    guard = Guard(targets=1)
    guard.link(2)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    assert [e.link.ifindex for e in guard.of(fx.SetLinkDown)] == [1]
    both = Guard(start=False)
    both.tell(
        ev.KernelSnapshot(
            links=(both.link_seen(1), both.link_seen(2)),
            addresses=(both.address(1, "172.16.0.1/24"), both.address(2, "172.16.0.2/24")),
        )
    )
    both.register(1)
    assert oifs(both) == {2}
    both.tell(both.link_seen(1, new_mac=77))
    assert oifs(both) == {2}
    both.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=1)
    both.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    assert both.of(fx.SetLinkDown) == []


def test_a_link_that_is_renamed_to_an_excluded_name_is_left_alone_and_back_with_its_addresses() -> None:
    guard = Guard(EngineConfig(excluded_links=("lo", "old*"), neighbor_probe_interval_s=0.0), targets=1)
    renamed = ev.LinkSeen(ifindex=1, name="old0", up=True, mac=mac(1))
    guard.tell(renamed)
    assert guard.target(1).cause is Condition.NO_LINK
    assert guard.engine.view.links == {}
    guard.tell(guard.address(1, "172.16.0.9/24"))
    guard.tell(guard.link_seen(1))
    assert guard.states() == {1: "active"}
    [announced] = guard.of(fx.Announce)
    assert set(announced.addresses) == {ip("172.16.0.1"), ip("172.16.0.9")}


def test_superseded_links_are_left_alone_when_told_so() -> None:
    guard = Guard(EngineConfig(neighbor_probe_interval_s=0.0), targets=1)
    guard.link(2)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=2)
    assert guard.of(fx.SetLinkDown) == []


def test_a_new_mac_for_a_known_ifindex_is_a_new_incarnation() -> None:
    guard = Guard(targets=1)
    before = guard.engine.view.links[1].key
    guard.tell(guard.link_seen(1, new_mac=77))
    after = guard.engine.view.links[1].key
    assert after.ifindex == before.ifindex
    assert after.generation > before.generation
    [announce] = guard.of(fx.Announce)
    assert (announce.link, announce.mac, announce.addresses) == (after, mac(77), (ip("172.16.0.1"),))
    assert [e for r in guard.of(fx.ResolveNeighbors) for e in r.entries] == [(1, ipv4_of(1))]


# Announcements


def test_every_usable_address_of_a_new_link_is_announced_before_anything_is_decided() -> None:
    guard = Guard(targets=1)
    engine, now = guard.engine, guard.now
    engine.observe(guard.link_seen(2), now)
    [announce] = engine.observe(guard.address(2, "172.16.0.2/24"), now)
    assert announce == fx.Announce(link=LinkKey(2, 2), ifname="nse-2", mac=mac(2), addresses=(ip("172.16.0.2"),))
    assert engine.observe(guard.address(2, "fd00:0::2/64", usable=False), now) == []
    [announce] = engine.observe(guard.address(2, "fd00:0::2/64"), now)
    assert isinstance(announce, fx.Announce)
    assert announce.addresses == (ip("fd00::2"),)
    assert not [e for e in engine.decide(now) if isinstance(e, fx.Announce)]


def test_link_local_addresses_are_neither_announced_nor_a_subnet() -> None:
    guard = Guard(targets=0)
    effects = guard.tell(guard.link_seen(2), guard.address(2, "fe80::2/64"))
    assert not [e for e in effects if isinstance(e, fx.Announce)]
    guard.source(StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ip("fe80::99"),)),)))
    assert guard.states() == {1: "pending"}


def test_a_link_that_was_cut_announces_again() -> None:
    guard = Guard(targets=1)
    guard.cut(1)
    assert guard.of(fx.Announce) == []
    guard.tell(guard.link_seen(1))
    assert [e.addresses for e in guard.of(fx.Announce)] == [(ip("172.16.0.1"),)]


def test_excluded_links_do_not_exist() -> None:
    guard = Guard(targets=1)
    lo = ev.LinkSeen(ifindex=9, name="lo", up=True, mac=b"")
    guard.tell(lo, guard.address(9, "172.16.0.200/24"))
    assert {e.reason for e in guard.of(fx.Ignored)} == {"link_excluded", "address_of_unknown_link"}
    assert oifs(guard) == {1}


# Neighbours


def soft_guard(targets: int = 4, *, needed: int = 2, budget: float = 0.5) -> Guard:
    return Guard(
        EngineConfig(
            neighbor_probe_interval_s=0.0,
            neighbor_failures_needed=needed,
            soft_budget=budget,
            freeze=FreezeConfig(threshold=1.0, limit_s=60.0),
        ),
        targets=targets,
    )


def test_a_neighbour_counts_as_failed_after_k_failures_in_a_row_and_until_it_answers() -> None:
    guard = soft_guard(needed=3)
    for state in (NeighborState.FAILED, NeighborState.FAILED, NeighborState.REACHABLE, NeighborState.FAILED):
        guard.neighbor(ipv4_of(1), state)
    # A packet made the kernel try again before it notified the second failure.
    guard.neighbor(ipv4_of(1), NeighborState.INCOMPLETE)
    assert guard.states()[1] == "active"
    guard.neighbor(ipv4_of(1), NeighborState.FAILED)
    assert guard.states()[1] == "held"
    guard.tell(ev.NeighborGone(ifindex=1, ip=ipv4_of(1)))
    guard.neighbor(ipv4_of(1), NeighborState.INCOMPLETE)
    assert guard.states()[1] == "held", "an entry that is dropped or tried again has not answered"
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    assert guard.states()[1] == "active"


def test_a_dump_that_repeats_a_failure_is_no_new_failure() -> None:
    guard = soft_guard(targets=1)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    guard.neighbor(ipv4_of(1), NeighborState.FAILED)
    snapshot = ev.KernelSnapshot(
        links=(guard.link_seen(1),),
        addresses=(guard.address(1, "172.16.0.1/24"),),
        neighbors=(ev.NeighborSeen(ifindex=1, ip=ipv4_of(1), state=NeighborState.FAILED),),
        routes=tuple(guard.routes),
        rules=tuple(guard.rules),
    )
    for _ in range(5):
        guard.tell(snapshot)
    again = replace(snapshot, neighbors=(ev.NeighborSeen(ifindex=1, ip=ipv4_of(1), state=NeighborState.INCOMPLETE),))
    guard.tell(again)
    assert guard.engine.view.links[1].neighbors[ipv4_of(1)].failures == 1
    assert guard.states() == {1: "active"}


def test_a_changed_mac_is_counted() -> None:
    guard = soft_guard()
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, number=50)
    guard.neighbor(ipv4_of(1), NeighborState.STALE, number=50)
    assert guard.of(fx.NeighborMoved) == []
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, number=51)
    assert guard.of(fx.NeighborMoved) == [fx.NeighborMoved(ifindex=1, ip=ipv4_of(1), old_mac=mac(50), new_mac=mac(51))]


def test_neighbours_of_no_target_are_ignored_by_name() -> None:
    guard = soft_guard()
    guard.neighbor(ip("172.16.0.250"), NeighborState.FAILED)
    assert guard.of(fx.Ignored) == [fx.Ignored(reason="neighbor_of_no_target")]


@pytest.mark.parametrize("needs_flush", [True, False])
def test_a_link_that_was_cut_and_is_back_flushes_what_it_knew_and_resolves_anew(needs_flush: bool) -> None:
    guard = Guard(targets=2)
    if needs_flush:
        guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    guard.cut(1)
    guard.tell(guard.link_seen(1))
    flushed = [entry for e in guard.of(fx.FlushNeighbors) for entry in e.entries]
    assert flushed == ([(1, ipv4_of(1))] if needs_flush else [])
    resolved = {entry for e in guard.of(fx.ResolveNeighbors) for entry in e.entries}
    assert resolved == {(1, ipv4_of(1)), (1, ipv4_of(2))}
    if needs_flush:
        kinds = [type(e) for e in guard.effects]
        assert kinds.index(fx.FlushNeighbors) < kinds.index(fx.ResolveNeighbors)


def test_a_link_is_tuned_once_an_incarnation() -> None:
    guard = Guard(targets=0)
    guard.register(1, 2)
    assert [e.link.ifindex for e in guard.of(fx.TuneLink)] == [1]
    guard.register(1, 2, 3)
    assert guard.of(fx.TuneLink) == []
    guard.tell(guard.link_seen(1, new_mac=70))
    assert [e.link.ifindex for e in guard.of(fx.TuneLink)] == [1]


def test_entries_are_probed_once_an_interval_and_resolved_where_there_is_nothing_to_probe() -> None:
    guard = Guard(EngineConfig(neighbor_probe_interval_s=1.0), targets=2)
    guard.neighbor(ipv4_of(1), NeighborState.STALE)
    guard.wait(1.0)
    guard.wait(1.0)
    assert [entry for e in guard.of(fx.ProbeNeighbors) for entry in e.entries] == [(1, ipv4_of(1))]
    assert [entry for e in guard.of(fx.ResolveNeighbors) for entry in e.entries] == [(1, ipv4_of(2))]


def test_an_answer_to_a_route_counts_although_the_link_lost_an_address_of_the_other_family() -> None:
    """The kernel drops IPv4 routes with the IPv4 addresses of a link, silently; IPv6 addresses are nothing to them."""
    guard = Guard(targets=0)
    guard.link(1, ipv6=True)
    guard.register(1)
    guard.set_down(1)
    guard.refuse = (fx.ProgramRoutes,)
    guard.tell(guard.link_seen(1))
    asked = [route for effect in guard.of(fx.ProgramRoutes) for route in effect.put if route.oif]
    guard.tell(guard.address_gone(1, "fd00:0::1/64"))
    assert guard.states() == {1: "held"}
    guard.tell(ev.RoutesProgrammed(added=tuple(asked)))
    assert guard.states() == {1: "active"}


# Soft evidence and families


def test_soft_evidence_withdraws_within_its_budget_and_the_rest_is_pardoned() -> None:
    guard = soft_guard(targets=4, budget=0.5)
    for identifier in (1, 2, 3, 4):
        guard.fail_neighbor(ipv4_of(identifier))
    guard.wait(3.1)
    assert guard.states() == {1: "withdrawn", 2: "withdrawn", 3: "active", 4: "active"}
    assert {d.target.identifier for d in guard.decisions(Action.PARDON)} == {3, 4}
    pardoned_until = guard.target(3).pardoned_until
    assert pardoned_until == pytest.approx(guard.now - 0.1 + 60.0)
    guard.fail_neighbor(ipv4_of(3))
    assert guard.states()[3] == "active", "soft evidence is disbelieved for a while"
    guard.wait(60.0)
    assert guard.states()[3] == "held", "and then believed again"


def test_a_pardon_does_not_cover_hard_evidence() -> None:
    guard = soft_guard(targets=1)
    guard.fail_neighbor(ipv4_of(1))
    guard.wait(3.1)
    assert guard.actions() == [(1, "pardon")]
    guard.cut(1)
    assert guard.states() == {1: "held"}


@pytest.mark.parametrize("targets", [1, 4])
def test_a_pardon_makes_no_stream_available(targets: int) -> None:
    guard = soft_guard(targets=targets)
    for identifier in range(1, targets + 1):
        guard.fail_neighbor(ipv4_of(identifier))
    told: list[bool] = []
    for _ in range(60):
        guard.wait(5.0)
        told += [effect.available for effect in guard.of(fx.SetAvailability)]
    assert told == [False], "pardons came and went, and no path ever answered"
    guard.neighbor(ipv4_of(targets), NeighborState.REACHABLE)
    assert [effect.available for effect in guard.of(fx.SetAvailability)] == [True]


def test_a_pardoned_target_whose_path_answers_makes_the_stream_available_at_once() -> None:
    guard = soft_guard(targets=1)
    guard.fail_neighbor(ipv4_of(1))
    guard.wait(3.1)
    assert (guard.states(), guard.engine.availability.get(STREAM)[0]) == ({1: "active"}, False)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    assert (guard.states(), guard.engine.availability.get(STREAM)[0]) == ({1: "active"}, True)
    guard.fail_neighbor(ipv4_of(1))
    guard.wait(1.1)
    assert (guard.states(), guard.engine.availability.get(STREAM)[0]) == ({1: "active"}, False)


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_soft_evidence_never_empties_a_stream(targets: int) -> None:
    guard = soft_guard(targets=targets, budget=1.0)
    for identifier in range(1, targets + 1):
        guard.fail_neighbor(ipv4_of(identifier))
    guard.wait(500.0)
    assert len(guard.active()) == 1


def test_one_family_that_fails_softly_only_degrades() -> None:
    guard = soft_guard(targets=0)
    guard.link(1, ipv6=True)
    guard.register(1, ipv6=True)
    guard.fail_neighbor(ipv6_of(1))
    assert guard.states() == {1: "active"}
    assert guard.target(1).paths[ipv6_of(1)].condition is Condition.NEIGHBOR_FAILED
    guard.fail_neighbor(ipv4_of(1))
    assert guard.states() == {1: "held"}


def test_one_family_that_fails_hard_holds_and_the_evidence_says_which() -> None:
    guard = Guard(targets=0)
    guard.link(1, ipv6=True)
    guard.register(1, ipv6=True)
    guard.tell(guard.address_gone(1, "fd00:0::1/64"))
    assert guard.states() == {1: "held"}
    [record] = guard.decisions(Action.HOLD)
    assert {(e.ip, e.condition) for e in record.evidence} == {
        (ipv4_of(1), Condition.OK),
        (ipv6_of(1), Condition.NO_ADDRESS),
    }
    assert record.evidence[0].ifname == "nse-1"


# Cost


def evaluated_by(action: Callable[[], object]) -> list[Target]:
    """Return the targets whose paths the engine evaluates during an action, as the interpreter tells of its calls."""
    evaluated: list[Target] = []

    def called(frame: FrameType, what: str, _argument: object) -> None:
        if what == "call" and frame.f_code is PathRepair.evaluate.__code__:
            evaluated.append(frame.f_locals["target"])

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        action()
    finally:
        sys.setprofile(before)
    return evaluated


def test_an_event_costs_no_more_among_thousands_of_others() -> None:
    unrelated = 2000
    guard = Guard(targets=0)
    guard.tell(guard.link_seen(2), guard.address(2, "10.0.0.1/16"))
    others = tuple(
        TargetSpec(identifier=i, ips=(bytes((10, 0, 1 + i // 250, 1 + i % 250)),)) for i in range(1, unrelated + 1)
    )
    other = StreamSpec(name="others", max_targets=unrelated, identifier_offset=100_000, targets=others)
    concerned = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i),)) for i in (1, 2, 3))
    guard.source(other, StreamSpec(name=STREAM, targets=concerned))
    assert guard.stream("others").counts == {"active": unrelated, "pending": 0}

    evaluated = evaluated_by(lambda: guard.cut(1))
    assert {target.key.stream for target in evaluated} == {STREAM}
    assert len(evaluated) == 3
    assert 1 <= len(evaluated_by(lambda: guard.tell(guard.link_seen(1)))) <= 6
    evaluated = evaluated_by(lambda: guard.fail_neighbor(ipv4_of(2), times=2))
    assert {target.key.identifier for target in evaluated} == {2}


def test_a_route_that_cannot_move_is_no_path_once_the_old_link_has_lost_its_address() -> None:
    guard = Guard()
    guard.refuse = (fx.ProgramRoutes,)
    guard.link(2)
    assert guard.states() == {1: "active", 2: "active"}, "the old link still forwards"
    guard.tell(guard.address_gone(1, "172.16.0.1/24"))
    assert {guard.target(identifier).cause for identifier in (1, 2)} == {Condition.ROUTE_MISSING}
    assert guard.states() == {1: "held", 2: "held"}
