"""Targets are reached in every way in which an address or a route puts them on a link, and in no other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lbguard.lab.netns import Namespace, connect
from tests.netns.service.guarded import PATIENT, Guarded, stream, targets_yaml, wait_until

pytestmark = pytest.mark.netns


def targets(*ips: str) -> str:
    return targets_yaml(stream(targets=[{"identifier": 1, "ips": list(ips)}]))


def routes(guarded: Guarded) -> set[tuple[str, str]]:
    """Return gateway and link of each route of target 1."""
    return {(route[3], route[4]) for route in guarded.routes("5001") if route[3]}


def test_a_target_is_the_peer_of_an_address_or_on_a_link_by_a_route(guarded: Guarded) -> None:
    guarded.lb.batch(
        [
            "addr add 10.0.0.1 peer 10.0.0.2/32 dev nse-a",
            "addr add 192.0.2.1/32 dev nse-b",
            "addr add fd0a::1/128 dev nse-b nodad",
            "route add fd0b::/64 dev nse-b",
        ]
    )
    guarded.proxies.batch(["addr add 10.0.0.2/32 dev lb-1", "addr add fd0b::2/64 dev lb-2 nodad"])
    with guarded.process(PATIENT, targets=targets("10.0.0.2", "fd0b::2")) as service:
        service.wait_until_ready()
        guarded.wait_for(t1="active")
        assert routes(guarded) == {("10.0.0.2", "nse-a"), ("fd0b::2", "nse-b")}
        guarded.lb.ip("-6", "route", "del", "fd0b::/64", "dev", "nse-b")
        guarded.wait_for(t1="held")
        guarded.lb.ip("-6", "route", "add", "fd0b::/64", "dev", "nse-b")
        guarded.wait_for(t1="active")
        # IPv4 routes of a link vanish with it without a word.
        guarded.lb.ip("link", "set", "nse-a", "down")
        guarded.wait_for(t1="held")
        guarded.lb.ip("link", "set", "nse-a", "up")
        guarded.wait_for(t1="active")


def test_a_route_of_a_link_that_is_set_down_puts_nothing_on_it_any_more(guarded: Guarded) -> None:
    guarded.lb.batch(["addr add 192.0.2.1/32 dev nse-b", "route add 10.1.0.2/32 dev nse-b"])
    with guarded.process(PATIENT, targets=targets("10.1.0.2")) as service:
        service.wait_until_ready()
        guarded.wait_for(t1="active")
        guarded.lb.ip("link", "set", "nse-b", "down")
        guarded.wait_for(t1="held")
        guarded.lb.ip("link", "set", "nse-b", "up")
        # The kernel has dropped the route; whoever made it makes it again.
        assert guarded.states()[1] == "held"
        guarded.lb.ip("route", "add", "10.1.0.2/32", "dev", "nse-b")
        guarded.wait_for(t1="active")


def test_an_address_without_a_prefix_route_serves_at_once(guarded: Guarded) -> None:
    with guarded.service(PATIENT):
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held")
        connect(guarded.lb, "nse-a", guarded.proxies, "lb-1")
        guarded.lb.batch(
            ["addr add 172.16.1.1/24 dev nse-a noprefixroute", "addr add fd00:1::1/64 dev nse-a nodad noprefixroute"]
        )
        guarded.wait_for(t1="active", t2="active")
        assert routes(guarded) == {("172.16.1.11", "nse-a"), ("fd00:1::b", "nse-a")}
        assert "172.16.1.0/24" not in guarded.lb.ip("route", "show")


@pytest.mark.parametrize("how", ["set down", "deleted"])
def test_a_wider_subnet_of_another_link_does_not_take_over(
    guarded: Guarded, make_namespace: Callable[[str], Namespace], tmp_path: Path, how: str
) -> None:
    connect(guarded.lb, "eth0", make_namespace("pod"), "eth0")
    guarded.lb.batch(["addr add 172.16.200.5/16 dev eth0", "addr add fd00::5/16 dev eth0 nodad"])
    with guarded.service(PATIENT):
        if how == "deleted":
            guarded.delete_link("nse-a")
        else:
            guarded.lb.ip("link", "set", "nse-a", "down")
        guarded.wait_for(t1="held", t2="held")
        assert {route[4] for route in guarded.routes("5001")} == {""}, "only the fallback is left"
        if how == "deleted":
            guarded.make_link("nse-a")
        else:
            guarded.lb.ip("link", "set", "nse-a", "up")
            guarded.lb.ip("addr", "add", "fd00:1::1/64", "dev", "nse-a", "nodad")
        guarded.wait_for(t1="active", t2="active")
        assert {route[4] for route in guarded.routes("5001")} == {"", "nse-a"}


def test_neighbor_timers_are_set_again_when_a_small_mtu_has_taken_ipv6_off_a_link(guarded: Guarded) -> None:
    def timers() -> str:
        return guarded.lb.ip("ntable", "show", "dev", "nse-a", "name", "ndisc_cache")

    with guarded.service(PATIENT):
        wait_until(lambda: "retrans 200" in timers(), "the timers are set")
        guarded.lb.ip("link", "set", "nse-a", "mtu", "1200")
        guarded.wait_for(t1="held")
        guarded.lb.ip("link", "set", "nse-a", "mtu", "1500")
        guarded.lb.ip("addr", "add", "fd00:1::1/64", "dev", "nse-a", "nodad")
        guarded.wait_for(t1="active")
        wait_until(lambda: "retrans 200" in timers(), "the timers are set again")
