"""What others made stays as they made it; and in observe mode everything does."""

import pytest

from tests.netns.service.guarded import OURS, Guarded, ips_of, stream, targets_yaml, wait_until

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
