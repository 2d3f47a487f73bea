"""Neighbour entries and routes that somebody else made stay as they are."""

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig
from lbguard.core.model import Condition, NeighborState
from tests.unit.core.harness import Guard, ip, ipv4_of, mac

ASKING = fx.FlushNeighbors | fx.ResolveNeighbors | fx.ProbeNeighbors


def test_entries_that_somebody_made_are_never_asked_for_whenever_they_came() -> None:
    config = EngineConfig(neighbor_probe_interval_s=1.0)
    guard = Guard(config, targets=0)
    foreign = ev.NeighborSeen(ifindex=1, ip=ipv4_of(1), state=NeighborState.PERMANENT, mac=mac(9), foreign=True)
    guard.tell(foreign)
    guard.register(1, 2)
    guard.wait(5.0)
    guard.cut(1)
    guard.tell(guard.link_seen(1))
    guard.tell(ev.NeighborsOutdated(ips=(ipv4_of(1), ipv4_of(2)), new_mac=mac(8)))
    asked = [entry for effect in guard.effects if isinstance(effect, ASKING) for entry in effect.entries]
    guard.wait(5.0)
    asked += [entry for effect in guard.effects if isinstance(effect, ASKING) for entry in effect.entries]
    assert {address for _, address in asked} == {ipv4_of(2)}
    guard.tell(ev.NeighborGone(ifindex=1, ip=ipv4_of(1)))
    guard.wait(5.0)
    asked = [entry for effect in guard.effects if isinstance(effect, ASKING) for entry in effect.entries]
    assert {address for _, address in asked} == {ipv4_of(1), ipv4_of(2)}


def test_the_route_of_somebody_else_in_our_place_stays_and_ours_comes_when_it_is_gone() -> None:
    guard = Guard(targets=1)
    ours = guard.route(1)
    assert ours is not None
    foreign = ours._replace(gateway=ip("172.16.0.99"), protocol=4)
    guard.routes = (guard.routes - {ours}) | {foreign}
    guard.tell(ev.RouteGone(route=ours), ev.RouteSeen(route=foreign))
    assert guard.target(1).cause is Condition.ROUTE_MISSING
    assert guard.decisions()[-1].evidence[0].detail == "table 5001 metric 2048 holds a route of protocol 4"
    assert guard.of(fx.ProgramRoutes) == []
    same_way = foreign._replace(gateway=ours.gateway)
    guard.tell(ev.RouteGone(route=foreign), ev.RouteSeen(route=same_way))
    assert guard.state(1) == "active"
    guard.routes = guard.routes - {foreign}
    guard.tell(ev.RouteGone(route=same_way))
    assert guard.route(1) == ours
    assert guard.state(1) == "active"


def test_of_a_route_with_several_next_hops_the_end_may_be_told_one_by_one() -> None:
    guard = Guard(targets=1)
    ours = guard.route(1)
    assert ours is not None
    several = ours._replace(gateway=b"", oif=0, protocol=4)
    guard.routes = (guard.routes - {ours}) | {several}
    guard.tell(ev.RouteGone(route=ours), ev.RouteSeen(route=several))
    assert guard.target(1).cause is Condition.ROUTE_MISSING
    guard.routes = guard.routes - {several}
    guard.tell(ev.RouteGone(route=ours._replace(gateway=ip("172.16.0.99"), protocol=4)))
    assert guard.route(1) == ours
    assert guard.state(1) == "active"


def test_a_route_is_added_where_nothing_of_ours_stands_and_replaced_where_something_does() -> None:
    guard = Guard(targets=1)
    guard.unlink(1)
    guard.link(2)
    [added] = [effect for effect in guard.of(fx.ProgramRoutes) if effect.put]
    assert (len(added.add), added.replace) == (1, ())
    guard.link(3)
    [moved] = [effect for effect in guard.of(fx.ProgramRoutes) if effect.put]
    assert (moved.add, len(moved.replace)) == ((), 1)


def test_timers_are_set_again_when_a_family_comes_back_to_a_link() -> None:
    guard = Guard(targets=0)
    guard.link(1, ipv6=True)
    guard.register(1, ipv6=True)
    guard.tell(guard.address_gone(1, "fd00:0::1/64"))
    assert guard.of(fx.TuneLink) == []
    guard.tell(guard.address(1, "fe80::1/64"))
    assert [effect.ifname for effect in guard.of(fx.TuneLink)] == ["nse-1"]
