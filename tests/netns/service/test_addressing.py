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
    return {(route.gateway, route.link) for route in guarded.routes(5001) if route.gateway}


def test_a_target_is_the_peer_of_an_address_or_on_a_link_by_a_route(guarded: Guarded) -> None:
    guarded.lb.add_addresses("nse-a", "10.0.0.1>10.0.0.2/32")
    guarded.lb.add_addresses("nse-b", "192.0.2.1/32", "fd0a::1/128")
    guarded.lb.add_route("fd0b::/64", link="nse-b")
    guarded.proxies.add_addresses("lb-1", "10.0.0.2/32")
    guarded.proxies.add_addresses("lb-2", "fd0b::2/64")
    with guarded.process(PATIENT, targets=targets("10.0.0.2", "fd0b::2")) as service:
        service.wait_until_ready()
        guarded.wait_for(t1="active")
        assert routes(guarded) == {("10.0.0.2", "nse-a"), ("fd0b::2", "nse-b")}
        guarded.lb.delete_route("fd0b::/64", link="nse-b")
        guarded.wait_for(t1="held")
        guarded.lb.add_route("fd0b::/64", link="nse-b")
        guarded.wait_for(t1="active")
        # IPv4 routes of a link vanish with it without a word.
        guarded.lb.set_link("nse-a", up=False)
        guarded.wait_for(t1="held")
        guarded.lb.set_link("nse-a", up=True)
        guarded.wait_for(t1="active")


def test_a_route_of_a_link_that_is_set_down_puts_nothing_on_it_any_more(guarded: Guarded) -> None:
    guarded.lb.add_addresses("nse-b", "192.0.2.1/32")
    guarded.lb.add_route("10.1.0.2", link="nse-b")
    with guarded.process(PATIENT, targets=targets("10.1.0.2")) as service:
        service.wait_until_ready()
        guarded.wait_for(t1="active")
        guarded.lb.set_link("nse-b", up=False)
        guarded.wait_for(t1="held")
        guarded.lb.set_link("nse-b", up=True)
        # The kernel has dropped the route; whoever made it makes it again.
        assert guarded.states()[1] == "held"
        guarded.lb.add_route("10.1.0.2", link="nse-b")
        guarded.wait_for(t1="active")


def test_an_address_without_a_prefix_route_serves_at_once(guarded: Guarded) -> None:
    with guarded.service(PATIENT):
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held")
        connect(guarded.lb, "nse-a", guarded.proxies, "lb-1")
        guarded.lb.add_addresses("nse-a", "172.16.1.1/24", "fd00:1::1/64", prefix_route=False)
        guarded.wait_for(t1="active", t2="active")
        assert routes(guarded) == {("172.16.1.11", "nse-a"), ("fd00:1::b", "nse-a")}
        assert "172.16.1.0/24" not in [route.destination for route in guarded.lb.routes()]


@pytest.mark.parametrize("how", ["set down", "deleted"])
def test_a_wider_subnet_of_another_link_does_not_take_over(
    guarded: Guarded, make_namespace: Callable[[str], Namespace], tmp_path: Path, how: str
) -> None:
    connect(guarded.lb, "eth0", make_namespace("pod"), "eth0")
    guarded.lb.add_addresses("eth0", "172.16.200.5/16", "fd00::5/16")
    with guarded.service(PATIENT):
        if how == "deleted":
            guarded.delete_link("nse-a")
        else:
            guarded.lb.set_link("nse-a", up=False)
        guarded.wait_for(t1="held", t2="held")
        assert {route.link for route in guarded.routes(5001)} == {""}, "only the fallback is left"
        if how == "deleted":
            guarded.make_link("nse-a")
        else:
            guarded.lb.set_link("nse-a", up=True)
            guarded.lb.add_addresses("nse-a", "fd00:1::1/64")
        guarded.wait_for(t1="active", t2="active")
        assert {route.link for route in guarded.routes(5001)} == {"", "nse-a"}


def test_neighbor_timers_are_set_again_when_a_small_mtu_has_taken_ipv6_off_a_link(guarded: Guarded) -> None:
    def tuned() -> bool:
        timers = guarded.lb.neighbor_timers().get(("ndisc_cache", guarded.lb.index("nse-a")), {})
        return timers.get("NDTPA_RETRANS_TIME") == 200

    with guarded.service(PATIENT):
        wait_until(tuned, "the timers are set")
        guarded.lb.set_link("nse-a", mtu=1200)
        guarded.wait_for(t1="held")
        guarded.lb.set_link("nse-a", mtu=1500)
        guarded.lb.add_addresses("nse-a", "fd00:1::1/64")
        guarded.wait_for(t1="active")
        wait_until(tuned, "the timers are set again")
