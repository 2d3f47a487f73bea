"""Which link a target address is reached through: peers, routes without a gateway, wider subnets of other links."""

import sys
from types import FrameType

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.addr import parse_prefix
from lbguard.core.model import Condition, StreamSpec, TargetSpec, TargetState
from tests.unit.core.harness import STREAM, Guard, ip


def oifs(guard: Guard) -> set[int]:
    return {route.oif for route in guard.routes if route.oif}


def test_a_wider_subnet_of_another_link_does_not_take_over() -> None:
    guard = Guard(start=False)
    guard.tell(
        ev.KernelSnapshot(
            links=(guard.link_seen(1), guard.link_seen(2)),
            addresses=(guard.address(1, "172.16.0.1/24"), guard.address(2, "172.16.200.5/16")),
        )
    )
    guard.register(1)
    assert oifs(guard) == {1}
    guard.cut(1)
    assert guard.target(1).cause is Condition.LINK_DOWN
    guard.unlink(1)
    assert guard.target(1).cause is Condition.NO_LINK
    assert guard.routes == {route for route in guard.routes if route.oif != 2}
    guard.link(3)
    assert oifs(guard) == {3}


def test_a_wider_subnet_does_not_take_over_what_is_listed_anew_or_met_by_a_later_run() -> None:
    guard = Guard(start=False)
    wider = guard.link_seen(2), guard.address(2, "172.16.200.5/16")
    guard.tell(
        ev.KernelSnapshot(links=(guard.link_seen(1), wider[0]), addresses=(guard.address(1, "172.16.0.1/24"), wider[1]))
    )
    guard.register(1)
    # The link may go while lbguard is away: then only this tells whose the address is.
    assert guard.engine.subnets_to_remember() == (parse_prefix("172.16.0.0/24"),)
    guard.unlink(1)
    assert guard.engine.subnets_to_remember() == (parse_prefix("172.16.0.0/24"),)
    guard.source(StreamSpec(name=STREAM))
    guard.register(1)
    assert guard.target(1).state is TargetState.PENDING

    later = Guard(start=False)
    later.tell(ev.HoldsRemembered(holds=(), subnets=guard.engine.subnets_to_remember()))
    later.tell(ev.KernelSnapshot(links=wider[:1], addresses=wider[1:]))
    later.register(1)
    assert later.target(1).state is TargetState.PENDING
    assert oifs(later) == set()
    assert later.engine.subnets_to_remember() == guard.engine.subnets_to_remember()
    later.link(3)
    assert oifs(later) == {3}
    later.unlink(2)
    assert later.engine.subnets_to_remember() == ()


def test_a_wider_subnet_of_a_newer_link_takes_over() -> None:
    guard = Guard(targets=1)
    guard.tell(guard.link_seen(2), guard.address(2, "172.16.0.2/16"))
    assert oifs(guard) == {1}
    guard.unlink(1)
    assert oifs(guard) == {2}
    assert guard.states() == {1: "active"}


def test_a_peer_is_on_the_link_of_its_address() -> None:
    guard = Guard(targets=0)
    guard.tell(ev.AddressSeen(ifindex=1, ip=ip("10.0.0.1"), prefix_length=32, peer=ip("10.0.0.2")))
    guard.source(StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ip("10.0.0.2"),)),)))
    assert guard.states() == {1: "active"}
    assert guard.target(1).paths[ip("10.0.0.2")].lb_ip == ip("10.0.0.1")
    guard.tell(ev.AddressGone(ifindex=1, ip=ip("10.0.0.1"), prefix_length=32, peer=ip("10.0.0.2")))
    assert guard.target(1).cause is Condition.NO_ADDRESS


def test_a_route_without_a_gateway_puts_a_target_on_its_link_while_the_link_has_an_address() -> None:
    guard = Guard(targets=0)
    prefix = parse_prefix("10.0.0.2/32")
    guard.source(StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ip("10.0.0.2"),)),)))
    guard.tell(guard.link_seen(2), ev.LinkRouteSeen(ifindex=2, prefix=prefix))
    assert guard.states() == {1: "pending"}
    guard.tell(guard.address(2, "192.0.2.1/32"))
    assert guard.states() == {1: "active"}
    assert oifs(guard) == {2}
    guard.tell(guard.address_gone(2, "192.0.2.1/32"))
    assert guard.state(1) == "held"
    guard.tell(guard.address(2, "192.0.2.9/32"))
    assert guard.state(1) == "active"
    guard.tell(ev.LinkRouteGone(ifindex=2, prefix=prefix))
    assert guard.target(1).cause is Condition.NO_ADDRESS


def calls_of_one_more_address(held: int) -> int:
    """Return how many functions are called when a link with so many addresses that faces no target gets another."""
    guard = Guard(targets=1)
    several = [guard.address(2, f"10.{n // 250}.{n % 250}.1/32") for n in range(held)]
    guard.tell(guard.link_seen(2), *several)
    calls = 0

    def called(_frame: FrameType, what: str, _argument: object) -> None:
        nonlocal calls
        calls += what == "call"

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        effects = guard.engine.observe(guard.address(2, "10.200.0.1/32"), guard.now) + guard.engine.decide(guard.now)
    finally:
        sys.setprofile(before)
    assert [effect.addresses for effect in effects if isinstance(effect, fx.Announce)] == [(ip("10.200.0.1"),)]
    return calls


@pytest.mark.parametrize("held", [500])
def test_one_more_address_costs_no_more_on_a_link_that_has_many(held: int) -> None:
    assert calls_of_one_more_address(held) <= calls_of_one_more_address(2) + 10
