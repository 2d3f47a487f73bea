"""Links are set down only when the kernel shows that nothing needs them, and get back what they lost by it."""

from collections.abc import Callable

import pytest

from lbguard.core.model import LinkKey
from lbguard.kernel.links import LinkOperations
from lbguard.lab.netns import Namespace
from tests.netns.kernel.conftest import Bench

pytestmark = pytest.mark.netns

NEEDS = {
    "a macvlan": (["link add mv0 link nse-a type macvlan"], "mv0 rides on it"),
    "a tunnel": (["link add vx0 type vxlan id 5 dev nse-a remote 172.16.0.9 dstport 4789"], "vx0 rides on it"),
    "a bridge": (["link add br0 type bridge", "link set nse-a master br0"], "it is a port of br0"),
    "the default route": (["route add default via 172.16.0.2"], "the default route leads through it"),
    "one of several next hops": (
        ["route add 10.0.0.0/8 nexthop via 172.16.0.2 dev nse-a nexthop via 172.16.0.3 dev nse-a"],
        "the route to 10.0.0.0/8 leads through it",
    ),
    "a next-hop object": (
        ["nexthop add id 5 via 172.16.0.2 dev nse-a", "route add 10.0.0.0/8 nhid 5"],
        "the route to 10.0.0.0/8 leads through it",
    ),
    "another table": (["-6 route add fd77::/64 via fd00::2 table 77"], "the route to fd77::/64 leads through it"),
    "a next-hop object without a route": (
        ["nexthop add id 5 via 172.16.0.2 dev nse-a"],
        "a next-hop object leads through it",
    ),
    "a route to what is delivered here": (
        ["route add local 10.0.0.0/8 dev nse-a"],
        "the route to 10.0.0.0/8 leads through it",
    ),
    "a static neighbour": (
        ["neigh add 172.16.0.9 lladdr 02:00:00:00:00:09 dev nse-a nud permanent"],
        "somebody made the neighbour entry of 172.16.0.9 on it",
    ),
    "a neighbour of a control plane": (
        ["neigh add fd00::9 lladdr 02:00:00:00:00:09 dev nse-a nud stale extern_learn"],
        "somebody made the neighbour entry of fd00::9 on it",
    ),
    "a tunnel from its address": (
        [
            "addr add 172.16.7.1/24 dev nse-a",
            "link add vx0 type vxlan id 5 local 172.16.7.1 remote 10.0.0.9 dstport 4789",
        ],
        "vx0 rides on it",
    ),
    "a rule": (["rule add iif nse-a lookup 77"], "a routing rule names it"),
}


def is_up(bench: Bench) -> bool:
    return "UP" in next(link["flags"] for link in bench.json("link") if link["ifname"] == "nse-a")


def addresses(bench: Bench) -> list[tuple[str, int, str]]:
    """Return address, prefix length and peer of all but link-local addresses."""
    return sorted(
        (address["local"], address["prefixlen"], address.get("address", ""))
        for link in bench.json("addr", "show", "dev", "nse-a")
        for address in link["addr_info"]
        if address["scope"] == "global"
    )


@pytest.mark.parametrize(("commands", "reason"), list(NEEDS.values()), ids=list(NEEDS))
async def test_a_link_that_something_needs_stays_up(
    bench: Bench, links: LinkOperations, commands: list[str], reason: str
) -> None:
    for command in commands:
        bench.lb.ip(*command.split())
    link = LinkKey(bench.ifindex("nse-a"), 1)
    with bench.lb.entered():
        outcome = await links.set_down(link, "nse-a")
    assert outcome.reason == reason
    assert is_up(bench)


async def test_a_link_is_set_down_and_up_again_with_the_addresses_that_it_lost(
    bench: Bench, links: LinkOperations
) -> None:
    bench.lb.ip("addr", "add", "172.16.9.1", "peer", "172.16.9.2/32", "dev", "nse-a")
    bench.lb.ip("addr", "add", "fd09::1", "peer", "fd09::2/128", "dev", "nse-a", "nodad")
    bench.lb.ip("route", "add", "default", "via", "172.16.0.2", "table", "5001", "metric", "2048", "proto", "152")
    before = addresses(bench)
    assert len(before) == 4
    link = LinkKey(bench.ifindex("nse-a"), 1)
    with bench.lb.entered():
        outcome = await links.set_down(link, "nse-a")
        assert outcome.reason == ""
        assert not is_up(bench)
        assert len(addresses(bench)) < len(before)
        assert await links.set_up(link, "nse-a") == ""
    assert is_up(bench)
    assert addresses(bench) == before


async def test_both_ends_of_a_pair_in_one_namespace_do_not_ride_on_each_other(
    bench: Bench, links: LinkOperations, make_namespace: Callable[[str], Namespace]
) -> None:
    bench.lb.ip("link", "add", "pair0", "type", "veth", "peer", "name", "pair1")
    bench.lb.ip("link", "set", "pair0", "up")
    with bench.lb.entered():
        outcome = await links.set_down(LinkKey(bench.ifindex("pair0"), 2), "pair0")
    assert outcome.reason == ""
