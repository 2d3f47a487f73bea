"""What others made stays as they made it; and in observe mode everything does."""

import json
import time

import pytest

from lbguard.lab.netns import connect
from tests.netns.service.guarded import OURS, PATIENT, Guarded, ips_of, stream, targets_yaml, wait_until

pytestmark = pytest.mark.netns

FOREIGN_RULES = ["-4 rule add fwmark 5001 table 77 priority 500", "-6 rule add from fd00:9::/64 table 78 priority 501"]
FOREIGN_ROUTES = [
    "-4 route add 198.51.100.0/24 via 172.16.1.11 table 5001",
    "-4 route add default via 172.16.2.13 metric 9000 table 5001",
    "-6 route add default via fd00:2::d metric 9000 table 5001",
    "-4 route add default via 172.16.2.13 table 77",
]
FOREIGN_NFTABLES = [
    "add table inet other",
    "add chain inet other c { type filter hook forward priority 0; }",
    "add table ip lbguard",
    "add set ip lbguard s { type ipv4_addr; }",
    "add element ip lbguard s { 192.0.2.1 }",
]


def add_foreign(guarded: Guarded) -> None:
    for line in [*FOREIGN_RULES, *FOREIGN_ROUTES]:
        guarded.lb.ip(*line.split())
    for command in FOREIGN_NFTABLES:
        guarded.lb.run("nft", command)


def foreign(guarded: Guarded) -> dict[str, object]:
    """Return all routes, rules and tables that are neither ours nor the kernel's own."""
    everything = guarded.everything()
    shown: dict[str, object] = {
        name: [line for line in everything[name].splitlines() if f"proto {OURS}" not in line and "kernel" not in line]
        for name in ("rules4", "rules6", "routes4", "routes6")
    }
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
        guarded.lb.ip(*FOREIGN_ROUTES[0].split())
        assert foreign(guarded) == before
        guarded.write_targets(targets_yaml(stream("stream-a", 2, 3, 4)))
        wait_until(lambda: not any(route[1] == "5001" for route in guarded.routes()), "target 1 gone")
        assert foreign(guarded) == before
        service.kill()
    guarded.write_targets(targets_yaml())
    with guarded.service({"LBGUARD_WITHDRAW_ON_EXIT": "true"}) as service:
        assert foreign(guarded) == before
        assert service.terminate() == 0
    assert foreign(guarded) == before
    assert guarded.rules() == [rule for rule in guarded.rules() if rule[3] != str(OURS)]
    assert guarded.routes() == []
    assert guarded.nft("table", "inet", "lbguard") == []
    assert guarded.nft("table", "inet", "lbguard-counters") == []


def neighbor(guarded: Guarded, ip: str) -> dict[str, object]:
    return next((entry for entry in guarded.json("neigh") if entry["dst"] == ip), {})


@pytest.mark.parametrize("mode", ["enforce", "companion"])
def test_neighbor_entries_that_somebody_made_stay(guarded: Guarded, mode: str) -> None:
    [link] = json.loads(guarded.proxies.ip("-j", "link", "show", "lb-1"))
    made = {
        "172.16.1.11": ["nud", "permanent"],
        "fd00:1::b": ["nud", "permanent"],
        "172.16.1.12": ["extern_learn"],
        "fd00:1::c": ["nud", "reachable", "protocol", "static"],
    }

    def make() -> None:
        for ip, how in made.items():
            guarded.lb.ip("neigh", "replace", ip, "lladdr", link["address"], "dev", "nse-a", *how)

    def shown() -> dict[str, tuple[object, ...]]:
        keys = ("lladdr", "extern_learn", "protocol")
        found = {ip: neighbor(guarded, ip) for ip in made}
        return {
            ip: (*(entry.get(key, "-") for key in keys), "PERMANENT" in str(entry.get("state")))
            for ip, entry in found.items()
        }

    if mode == "companion":
        for identifier, ips in ((1, ("172.16.1.11", "fd00:1::b")), (2, ("172.16.1.12", "fd00:1::c"))):
            for ip in ips:
                family = "-6" if ":" in ip else "-4"
                guarded.lb.ip(family, "rule", "add", "fwmark", str(5000 + identifier), "table", str(5000 + identifier))
                guarded.lb.ip(family, "route", "add", "default", "via", ip, "table", str(5000 + identifier))
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
        guarded.lb.ip("link", "set", "nse-a", "down")
        guarded.lb.ip("link", "set", "nse-a", "up")
        wait_until(lambda: "UP" in guarded.lb.ip("-br", "link", "show", "nse-a"), "nse-a is up")
        make()
        time.sleep(0.5)
        assert shown() == before


def test_a_route_in_our_place_stays_and_ours_comes_when_it_is_gone(guarded: Guarded) -> None:
    other = "default via 172.16.1.99 dev nse-a table 5001 metric 2048 proto static"
    guarded.lb.ip("route", "add", *other.split())
    with guarded.process(PATIENT) as service:
        service.wait_until_ready()
        service.wait_until_admitted(3)
        assert guarded.states()[1] == "pending"
        assert "172.16.1.99" in guarded.lb.ip("route", "show", "table", "5001")
        # So do those of a kind that is never ours.
        several = "default table 5002 metric 2048 proto static nexthop via 172.16.1.98 nexthop via 172.16.1.99"
        refusing = "prohibit default table 5003 metric 2048 proto static"
        guarded.lb.ip("route", "replace", *several.split())
        guarded.lb.ip("route", "replace", *refusing.split())
        guarded.wait_for(t2="held", t3="held")
        assert "172.16.1.98" in guarded.lb.ip("route", "show", "table", "5002")
        assert "prohibit" in guarded.lb.ip("route", "show", "table", "5003")
        for gone in (other, several.split(" nexthop")[0], refusing):
            guarded.lb.ip("route", "del", *gone.split())
        guarded.wait_for(t1="active", t2="active", t3="active")
        assert guarded.gateways(1) == set(ips_of(1))
        assert guarded.gateways(3) == set(ips_of(3))


def test_a_link_with_an_excluded_name_is_left_alone_from_then_on(guarded: Guarded) -> None:
    with guarded.service({**PATIENT, "LBGUARD_LINKS__EXCLUDE": "lo,old*"}):
        for name, state in (("old-a", "held"), ("nse-a", "active")):
            guarded.lb.ip("link", "set", "nse-a" if name == "old-a" else "old-a", "name", name)
            guarded.wait_for(t1=state, t2=state)


def second_link(guarded: Guarded) -> None:
    """A newer link of the first proxy's subnet appears, and targets 1 and 2 are behind it as well."""
    connect(guarded.lb, "nse-n", guarded.proxies, "lb-n")
    guarded.proxies.ip("link", "add", "br1", "type", "bridge")
    for port in ("lb-1", "lb-n"):
        guarded.proxies.ip("link", "set", port, "master", "br1")
    guarded.proxies.ip("link", "set", "br1", "up")
    guarded.proxies.ip("addr", "flush", "dev", "lb-1")
    for identifier in (1, 2):
        for ip in ips_of(identifier):
            length, nodad = (64, ["nodad"]) if ":" in ip else (24, [])
            guarded.proxies.ip("addr", "add", f"{ip}/{length}", "dev", "br1", *nodad)
    guarded.lb.batch(["addr add 172.16.1.2/24 dev nse-n", "addr add fd00:1::2/64 dev nse-n nodad"])


def links_up(guarded: Guarded) -> set[str]:
    return {link["ifname"] for link in guarded.json("link") if "UP" in link["flags"]}


def test_an_older_link_stays_up_unless_told_otherwise(guarded: Guarded) -> None:
    with guarded.service():
        second_link(guarded)
        wait_until(lambda: {route[4] for route in guarded.routes("5001")} >= {"nse-n"}, "the routes move")
        wait_until(lambda: neighbor(guarded, "172.16.1.11").get("state"), "the neighbour is asked for")
        assert "nse-a" in links_up(guarded)


def test_an_older_link_is_set_down_and_back_with_its_addresses_when_the_newer_goes(guarded: Guarded) -> None:
    with guarded.service({**PATIENT, "LBGUARD_LINKS__SUPERSEDED": "down"}) as service:
        before = guarded.lb.ip("-o", "-6", "addr", "show", "dev", "nse-a", "scope", "global")
        second_link(guarded)
        service.wait_for_log("superseded link set down", link="nse-a")
        assert "nse-a" not in links_up(guarded)
        assert set(guarded.states().values()) == {"active"}
        guarded.delete_link("nse-n")
        service.wait_for_log("link set up again: it is superseded no more", link="nse-a")
        guarded.wait_for(t1="active", t2="active")
        assert guarded.lb.ip("-o", "-6", "addr", "show", "dev", "nse-a", "scope", "global") == before


def test_an_older_link_that_something_rides_on_is_left_up(guarded: Guarded) -> None:
    guarded.lb.ip("link", "add", "mv0", "link", "nse-a", "type", "macvlan", "mode", "private")
    with guarded.service({"LBGUARD_LINKS__SUPERSEDED": "down"}) as service:
        second_link(guarded)
        told = service.wait_for_log("superseded link left up", link="nse-a")
        assert told["reason"] == "mv0 rides on it"
        assert "nse-a" in links_up(guarded)


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
            lines = set(guarded.everything()[name].splitlines())
            if name in ("rules4", "rules6", "ruleset"):
                assert lines == set(before[name].splitlines()) == set(after_loss[name].splitlines())
        assert guarded.routes() == []
        # Nobody asked for a target's address either.
        assert not {entry["dst"] for entry in guarded.json("neigh")} & {ip for n in (1, 2, 3, 4) for ip in ips_of(n)}
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
    """The kernel takes any bytes for a name; as an argument of `ip` they are surrogates."""
    early, late = "\udcff\udcfe", "late\udc80"
    guarded.lb.ip("link", "add", "name", early, "type", "veth", "peer", "name", "p-early")
    with guarded.service() as service:
        guarded.lb.ip("link", "add", "name", late, "type", "veth", "peer", "name", "p-late")
        for name in (early, late):
            # Both are read, in each second, for what they say of packets of targets.
            guarded.lb.ip("addr", "add", "172.16.1.200/24", "dev", name)
            guarded.lb.ip("link", "set", name, "up")
        guarded.lb.ip("link", "set", "p-late", "up")
        wait_until(lambda: r"late\\x80" in guarded.http("/metrics")[1], "the counters of the link")
        assert guarded.http("/healthz")[0] == 200
        assert service.log("started")
