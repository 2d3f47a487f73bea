"""Links are set down only when the kernel shows that nothing needs them, and get back what they lost by it.

On a link that is tuned the kernel announces the IPv4 addresses by itself.
"""

import os
import socket
import time
from collections.abc import Callable
from socket import AF_INET

import pytest
from pyroute2.netlink.rtnl import RTM_GETNEIGH
from pyroute2.netlink.rtnl.ndmsg import NTF_EXT_LEARNED, ndmsg

from lbguard.core.model import LinkKey
from lbguard.kernel.links import LinkOperations, NeighborTimers
from lbguard.kernel.requests import KernelRequests
from lbguard.lab.netns import Namespace
from tests.netns.kernel.conftest import Bench

pytestmark = pytest.mark.netns

MAC = "02:00:00:00:00:09"


def add_vxlan(lb: Namespace, **ends: object) -> None:
    lb.add_link("vx0", "vxlan", up=False, vxlan_id=5, vxlan_port=4789, **ends)


def make_bridge_of(lb: Namespace) -> None:
    lb.add_link("br0", "bridge", up=False)
    lb.set_link("nse-a", master="br0")


def add_nexthop_object(lb: Namespace) -> None:
    lb.run("ip", *["nexthop", "add", "id", "5", "via", "172.16.0.2", "dev", "nse-a"])  # pyroute2 has none


def add_route_of_nexthop_object(lb: Namespace) -> None:
    add_nexthop_object(lb)
    lb.run("ip", *["route", "add", "10.0.0.0/8", "nhid", "5"])


def add_tunnel_from_its_address(lb: Namespace) -> None:
    lb.add_addresses("nse-a", "172.16.7.1/24")
    add_vxlan(lb, vxlan_local="172.16.7.1", vxlan_group="10.0.0.9")


NEEDS: dict[str, tuple[Callable[[Namespace], object], str]] = {
    "a macvlan": (lambda lb: lb.add_link("mv0", "macvlan", up=False, link=lb.index("nse-a")), "mv0 rides on it"),
    "a tunnel": (
        lambda lb: add_vxlan(lb, vxlan_link=lb.index("nse-a"), vxlan_group="172.16.0.9"),
        "vx0 rides on it",
    ),
    "a bridge": (make_bridge_of, "it is a port of br0"),
    "the default route": (lambda lb: lb.add_route("default", "172.16.0.2"), "the default route leads through it"),
    "one of several next hops": (
        lambda lb: lb.add_route("10.0.0.0/8", next_hops=("172.16.0.2", "172.16.0.3")),
        "the route to 10.0.0.0/8 leads through it",
    ),
    "a next-hop object": (add_route_of_nexthop_object, "the route to 10.0.0.0/8 leads through it"),
    "another table": (
        lambda lb: lb.add_route("fd77::/64", "fd00::2", table=77),
        "the route to fd77::/64 leads through it",
    ),
    "a next-hop object without a route": (add_nexthop_object, "a next-hop object leads through it"),
    "a route to what is delivered here": (
        lambda lb: lb.add_route("10.0.0.0/8", link="nse-a", kind="local"),
        "the route to 10.0.0.0/8 leads through it",
    ),
    "a static neighbour": (
        lambda lb: lb.replace_neighbor("172.16.0.9", "nse-a", MAC),
        "somebody made the neighbour entry of 172.16.0.9 on it",
    ),
    "a neighbour of a control plane": (
        lambda lb: lb.replace_neighbor("fd00::9", "nse-a", MAC, state="stale", flags=NTF_EXT_LEARNED),
        "somebody made the neighbour entry of fd00::9 on it",
    ),
    "a tunnel from its address": (add_tunnel_from_its_address, "vx0 rides on it"),
    "a rule": (lambda lb: lb.request("rule", "add", iifname="nse-a", table=77), "a routing rule names it"),
}


def addresses(bench: Bench) -> list[tuple[str, int, str]]:
    """Return address, prefix length and peer of all but link-local addresses."""
    found = [address for address in bench.lb.addresses("nse-a") if not address.ip.startswith("fe80")]
    return sorted((address.ip, address.prefix_length, address.peer) for address in found)


@pytest.mark.parametrize(("need", "reason"), list(NEEDS.values()), ids=list(NEEDS))
async def test_a_link_that_something_needs_stays_up(
    bench: Bench, links: LinkOperations, need: Callable[[Namespace], object], reason: str
) -> None:
    need(bench.lb)
    link = LinkKey(bench.lb.index("nse-a"), 1)
    with bench.lb.entered():
        outcome = await links.set_down(link, "nse-a")
    assert outcome.reason == reason
    assert bench.lb.link("nse-a").up


async def test_a_link_is_set_down_and_up_again_with_what_it_lost(bench: Bench, links: LinkOperations) -> None:
    bench.lb.add_addresses("nse-a", "172.16.9.1>172.16.9.2/32", "fd09::1>fd09::2/128")
    bench.lb.add_route("default", "172.16.0.2", table=5001, metric=2048, protocol=152)
    before = addresses(bench)
    assert len(before) == 4
    link = LinkKey(bench.lb.index("nse-a"), 1)
    with bench.lb.entered():
        outcome = await links.set_down(link, "nse-a")
        assert outcome.reason == ""
        assert not bench.lb.link("nse-a").up
        assert len(addresses(bench)) < len(before)
        assert await links.set_up(link, "nse-a") == ""
    assert bench.lb.link("nse-a").up
    assert addresses(bench) == before


async def test_both_ends_of_a_pair_in_one_namespace_do_not_ride_on_each_other(
    bench: Bench, links: LinkOperations, make_namespace: Callable[[str], Namespace]
) -> None:
    bench.lb.add_veth("pair0", "pair1", up=False)
    bench.lb.set_link("pair0", up=True)
    with bench.lb.entered():
        outcome = await links.set_down(LinkKey(bench.lb.index("pair0"), 2), "pair0")
    assert outcome.reason == ""


async def test_a_link_whose_name_is_not_utf_8_is_known_by_the_name_of_the_mirror(
    bench: Bench, links: LinkOperations
) -> None:
    bench.lb.add_link(os.fsdecode(b"odd\xff"), "bridge")
    index = next(link.ifindex for link in bench.lb.links() if link.name not in ("lo", "nse-a"))
    assert await links.tune(index, r"odd\xff", NeighborTimers()) == ""
    assert "is no longer" in await links.tune(index, "odd", NeighborTimers())


async def test_questions_leave_nothing_in_the_library(bench: Bench) -> None:
    requests = KernelRequests(bench.lb.name)
    index = bench.lb.index("nse-a")
    for _ in range(20):
        assert await requests.link_name(index) == "nse-a"
    await requests.set_neighbor_timers(index, AF_INET, NeighborTimers().attributes())
    bench.lb.replace_neighbor("172.16.0.2", "nse-a", bench.peer.link("lb-a").mac)
    assert await requests.dump(ndmsg(), RTM_GETNEIGH, bytes)
    # A message that no request waits for would stay in the library's own queue for ever.
    assert requests._library is not None
    assert requests._library.msg_queue.root.qsize() == 0
    requests.close()


def gratuitous_arp(bench: Bench, within_s: float) -> bool:
    """Set the link down and up, with nothing of ours at work; return whether the peer hears its address announced."""
    with bench.peer.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    with wire:
        bench.lb.set_link("nse-a", up=False)
        wire.bind(("lb-a", 0x0806))
        bench.lb.set_link("nse-a", up=True)
        deadline = time.monotonic() + within_s
        while (left_s := deadline - time.monotonic()) > 0:
            wire.settimeout(left_s)
            try:
                frame = wire.recv(128)
            except (TimeoutError, OSError):
                continue
            if frame[28:32] == frame[38:42] == socket.inet_aton("172.16.0.1"):
                return True
    return False


async def test_the_kernel_announces_a_tuned_link_until_that_is_undone(bench: Bench, links: LinkOperations) -> None:
    assert not gratuitous_arp(bench, 0.3)
    assert await links.tune(bench.lb.index("nse-a"), "nse-a", NeighborTimers()) == ""
    assert gratuitous_arp(bench, 10.0)
    await links.restore()
    assert not gratuitous_arp(bench, 0.3)


async def test_an_announcement_that_others_asked_for_is_not_undone(bench: Bench, links: LinkOperations) -> None:
    bench.lb.sysctl("net.ipv4.conf.nse-a.arp_notify", "1")
    assert await links.tune(bench.lb.index("nse-a"), "nse-a", NeighborTimers()) == ""
    await links.restore()
    assert gratuitous_arp(bench, 10.0)


async def test_a_link_without_ipv6_is_tuned_for_ipv4(bench: Bench, links: LinkOperations) -> None:
    bench.lb.set_link("nse-a", mtu=1000)
    assert await links.tune(bench.lb.index("nse-a"), "nse-a", NeighborTimers()) != ""
    assert bench.lb.run("cat", "/proc/sys/net/ipv4/conf/nse-a/arp_notify").strip() == "1"
    assert bench.lb.run("cat", "/proc/sys/net/ipv4/neigh/nse-a/ucast_solicit").strip() == "1"
