"""What others made stays as they made it; and in observe mode everything does."""

import time
from socket import AF_INET6
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ndmsg import NTF_EXT_LEARNED

from lbguard.lab.netns import connect
from tests.netns.service.guarded import (
    OURS,
    PATIENT,
    Guarded,
    ips_of,
    stream,
    targets_yaml,
    wait_until,
    with_prefix,
)

pytestmark = pytest.mark.netns

KERNEL, STATIC = 2, 4
"""Other protocols of routes, rules and neighbour entries."""

TRIES = 3
"""An entry that somebody makes between our last look at it and our request for it loses its state: a known limit."""

FOREIGN_NFTABLES = [
    "add table inet other",
    "add chain inet other c { type filter hook forward priority 0; }",
    "add table ip lbguard",
    "add set ip lbguard s { type ipv4_addr; }",
    "add element ip lbguard s { 192.0.2.1 }",
]


def add_foreign(guarded: Guarded) -> None:
    guarded.lb.add_rule(5001, 77, priority=500)
    guarded.lb.request("rule", "add", family=AF_INET6, src="fd00:9::", src_len=64, table=78, priority=501)
    add_foreign_route(guarded)
    guarded.lb.add_route("default", "172.16.2.13", table=5001, metric=9000)
    guarded.lb.add_route("default", "fd00:2::d", table=5001, metric=9000)
    guarded.lb.add_route("default", "172.16.2.13", table=77)
    for command in FOREIGN_NFTABLES:
        guarded.lb.run("nft", command)


def add_foreign_route(guarded: Guarded) -> None:
    guarded.lb.add_route("198.51.100.0/24", "172.16.1.11", table=5001)


def foreign(guarded: Guarded) -> dict[str, object]:
    """Return all routes, rules and tables that are neither ours nor the kernel's own."""
    shown: dict[str, object] = {}
    for ipv4 in (True, False):
        rules, routes = guarded.lb.raw_rules(ipv4=ipv4), guarded.lb.raw_routes(ipv4=ipv4)
        shown[f"rules {ipv4}"] = guarded.plain(rule for rule in rules if rule.get("protocol") not in (OURS, KERNEL))
        shown[f"routes {ipv4}"] = guarded.plain(route for route in routes if route["proto"] not in (OURS, KERNEL))
    for table in (("inet", "other"), ("ip", "lbguard")):
        shown[" ".join(table)] = guarded.lb.run("nft", "-s", "list", "table", *table)
    return shown


def test_what_others_made_stays(guarded: Guarded) -> None:
    add_foreign(guarded)
    before = foreign(guarded)
    with guarded.service() as service:
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="withdrawn", t2="withdrawn")
        guarded.make_link("nse-a")
        guarded.wait_for(t1="active", t2="active")
        # The kernel took the foreign route through the link along; whoever made it has to make it again.
        add_foreign_route(guarded)
        assert foreign(guarded) == before
        guarded.write_targets(targets_yaml(stream("stream-a", 2, 3, 4)))
        wait_until(lambda: not guarded.routes(5001), "target 1 gone")
        assert foreign(guarded) == before
        service.kill()
    guarded.write_targets(targets_yaml())
    with guarded.service({"LBGUARD_WITHDRAW_ON_EXIT": "true"}) as service:
        assert foreign(guarded) == before
        assert service.terminate() == 0
    assert foreign(guarded) == before
    assert not any(rule.protocol == OURS for rule in guarded.rules())
    assert guarded.routes() == []
    assert guarded.nft("table", "inet", "lbguard") == []
    assert guarded.nft("table", "inet", "lbguard-counters") == []


@pytest.mark.parametrize("mode", ["enforce", "companion"])
def test_neighbor_entries_that_somebody_made_stay(guarded: Guarded, mode: str) -> None:
    mac = guarded.proxies.link("lb-1").mac
    made: dict[str, dict[str, Any]] = {
        "172.16.1.11": {},
        "fd00:1::b": {},
        "172.16.1.12": {"flags": NTF_EXT_LEARNED},
        "fd00:1::c": {"state": "reachable", "protocol": STATIC},
    }

    def make() -> None:
        for ip, how in made.items():
            guarded.lb.replace_neighbor(ip, "nse-a", mac, **how)

    def shown() -> set[tuple[object, ...]]:
        return {
            (entry.ip, entry.mac, entry.flags & NTF_EXT_LEARNED, entry.protocol, entry.state == "permanent")
            for entry in guarded.lb.neighbors()
            if entry.ip in made
        }

    if mode == "companion":
        for mark, ips in ((5001, ("172.16.1.11", "fd00:1::b")), (5002, ("172.16.1.12", "fd00:1::c"))):
            for ip in ips:
                guarded.lb.add_rule(mark, mark, ipv4="." in ip)
                guarded.lb.add_route("default", ip, table=mark)
    make()
    before = shown()
    settings = {"LBGUARD_NEIGHBORS__PROBE_INTERVAL": "100ms", "LBGUARD_MODE": mode}
    if mode == "companion":
        settings["LBGUARD_SOURCE"] = "kernel"
    with guarded.process(settings) as service:
        service.wait_until_ready()
        service.wait_until_admitted(4 if mode == "enforce" else 2)
        # What the kernel learned itself is verified meanwhile, again and again.
        if mode == "enforce":
            wait_until(lambda: (guarded.metric("lbguard_neighbor_probes_total") or 0) > 20, "others are verified")
        assert shown() == before
        # The kernel itself drops them with the link; made anew they stay as well.
        guarded.lb.set_link("nse-a", up=False)
        guarded.lb.set_link("nse-a", up=True)
        wait_until(lambda: guarded.lb.link("nse-a").operational, "nse-a is up")
        for _ in range(TRIES):
            make()
            time.sleep(0.5)
            if shown() == before:
                break
        assert shown() == before


def test_a_route_in_our_place_stays_and_ours_comes_when_it_is_gone(guarded: Guarded) -> None:
    ours: dict[str, Any] = {"metric": 2048, "protocol": STATIC}
    guarded.lb.add_route("default", "172.16.1.99", table=5001, **ours)
    with guarded.process(PATIENT) as service:
        service.wait_until_ready()
        service.wait_until_admitted(3)
        assert guarded.states()[1] == "pending"
        assert guarded.lb.routes(5001, ipv4=True)[0].gateway == "172.16.1.99"
        # So do those of a kind that is never ours.
        guarded.lb.replace_route("default", next_hops=("172.16.1.98", "172.16.1.99"), table=5002, **ours)
        guarded.lb.replace_route("default", kind="prohibit", table=5003, **ours)
        guarded.wait_for(t2="held", t3="held")
        assert any("172.16.1.98" in route.next_hops for route in guarded.lb.routes(5002))
        assert any(route.kind == "prohibit" for route in guarded.lb.routes(5003))
        for table in (5001, 5002, 5003):
            guarded.lb.delete_route("default", table=table, **ours)
        guarded.wait_for(t1="active", t2="active", t3="active")
        assert guarded.gateways(1) == set(ips_of(1))
        assert guarded.gateways(3) == set(ips_of(3))


def test_a_link_with_an_excluded_name_is_left_alone_from_then_on(guarded: Guarded) -> None:
    with guarded.service({**PATIENT, "LBGUARD_LINKS__EXCLUDE": "lo,old*"}):
        for name, state in (("old-a", "held"), ("nse-a", "active")):
            guarded.lb.set_link("nse-a" if name == "old-a" else "old-a", ifname=name)
            guarded.wait_for(t1=state, t2=state)


def second_link(guarded: Guarded) -> None:
    """A newer link of the first proxy's subnet appears, and targets 1 and 2 are behind it as well."""
    connect(guarded.lb, "nse-n", guarded.proxies, "lb-n")
    guarded.proxies.add_link("br1", "bridge")
    guarded.proxies.set_link("lb-1", "lb-n", master="br1")
    guarded.proxies.flush_addresses("lb-1")
    guarded.proxies.add_addresses("br1", *with_prefix(ips_of(1) + ips_of(2)))
    guarded.lb.add_addresses("nse-n", "172.16.1.2/24", "fd00:1::2/64")


def test_an_older_link_stays_up_unless_told_otherwise(guarded: Guarded) -> None:
    with guarded.service():
        second_link(guarded)
        wait_until(lambda: "nse-n" in [route.link for route in guarded.routes(5001)], "the routes move")
        wait_until(lambda: guarded.lb.neighbor("172.16.1.11"), "the neighbour is asked for")
        assert guarded.lb.link("nse-a").up


def test_an_older_link_is_set_down_and_back_with_its_addresses_when_the_newer_goes(guarded: Guarded) -> None:
    with guarded.service({**PATIENT, "LBGUARD_LINKS__SUPERSEDED": "down"}) as service:
        before = guarded.lb.addresses("nse-a")
        second_link(guarded)
        service.wait_for_log("superseded link set down", link="nse-a")
        assert not guarded.lb.link("nse-a").up
        assert set(guarded.states().values()) == {"active"}
        guarded.delete_link("nse-n")
        service.wait_for_log("link set up again: it is superseded no more", link="nse-a")
        guarded.wait_for(t1="active", t2="active")
        assert guarded.lb.addresses("nse-a") == before


def test_an_older_link_that_something_rides_on_is_left_up(guarded: Guarded) -> None:
    guarded.lb.add_link("mv0", "macvlan", up=False, link=guarded.lb.index("nse-a"), macvlan_mode="private")
    with guarded.service({"LBGUARD_LINKS__SUPERSEDED": "down"}) as service:
        second_link(guarded)
        told = service.wait_for_log("superseded link left up", link="nse-a")
        assert told["reason"] == "mv0 rides on it"
        assert guarded.lb.link("nse-a").up


def test_observing_touches_nothing(guarded: Guarded) -> None:
    add_foreign(guarded)
    guarded.delete_link("nse-b")
    before = guarded.everything()
    process = guarded.process({"LBGUARD_MODE": "observe"})
    with process as service:
        service.wait_until_ready()
        service.wait_for_log("admit", count=2, observe=True)
        assert guarded.everything() == before
        guarded.delete_link("nse-a")
        service.wait_for_log("hold", count=2)
        service.wait_for_log("withdraw", count=2)
        after_loss = guarded.everything()
        guarded.make_link("nse-a")
        # The kernel may still be about to say that the link is up.
        service.wait_for_log("readmit", count=2)
        service.hang_up()
        guarded.write_targets(targets_yaml(stream("stream-a", 1)))
        service.wait_for_log("targets read", targets=1)
        wait_until(lambda: set(guarded.states()) == {1}, "one target left")
        for name in ("rules4", "rules6", "ruleset", "timers", "sysctls"):
            # Timers and settings of a link come and go with it.
            if name in ("rules4", "rules6", "ruleset"):
                assert guarded.everything()[name] == before[name] == after_loss[name]
        assert guarded.routes() == []
        # Nobody asked for a target's address either.
        assert not {entry.ip for entry in guarded.lb.neighbors()} & {ip for n in (1, 2, 3, 4) for ip in ips_of(n)}
        quiet = guarded.everything()
        assert service.terminate() == 0
    assert guarded.everything() == quiet
    assert guarded.nft("table", "inet", "lbguard") == []
    assert guarded.nft("table", "inet", "lbguard-counters") == []


def test_observing_adopts_what_an_enforcing_one_left(guarded: Guarded) -> None:
    with guarded.service() as service:
        service.terminate()
    before = guarded.everything()
    with guarded.process({"LBGUARD_MODE": "observe"}) as service:
        service.wait_until_ready()
        service.wait_for_log("adopt", count=4, observe=True)
        assert guarded.states() == dict.fromkeys((1, 2, 3, 4), "active")
        guarded.delete_link("nse-a")
        service.wait_for_log("withdraw", count=2)
        assert set(guarded.active()) == {1, 2, 3, 4}
        assert guarded.everything()["ruleset"] == before["ruleset"]
        assert guarded.everything()["rules4"] == before["rules4"]


def test_a_link_whose_name_is_not_utf8_is_borne(guarded: Guarded) -> None:
    """The kernel takes any bytes for a name; Python has them as surrogates."""
    early, late = "\udcff\udcfe", "late\udc80"
    guarded.lb.add_veth(early, "p-early", up=False)
    with guarded.service() as service:
        guarded.lb.add_veth(late, "p-late", up=False)
        for name in (early, late):
            # Both are read, in each second, for what they say of packets of targets.
            guarded.lb.add_addresses(name, "172.16.1.200/24")
        guarded.lb.set_link(early, late, "p-late", up=True)
        wait_until(lambda: r"late\\x80" in guarded.http("/metrics")[1], "the counters of the link")
        assert guarded.http("/healthz")[0] == 200
        assert service.log("started")
