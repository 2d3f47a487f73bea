"""The service on a real kernel: start, hold, repair, withdraw, re-admit."""

import pytest

from tests.netns.service.guarded import PATIENT, Guarded, ips_of, wait_until

pytestmark = pytest.mark.netns


def test_start(guarded: Guarded) -> None:
    with guarded.service():
        rules = guarded.rules()
        assert {(rule.mark, rule.table, rule.protocol) for rule in rules} == {(n, n, 152) for n in range(5001, 5005)}
        assert len(rules) == 8
        for identifier in (1, 2, 3, 4):
            assert guarded.gateways(identifier) == set(ips_of(identifier))
        fallbacks = {(route.table, route.ipv4) for route in guarded.routes() if route.kind == "blackhole"}
        assert fallbacks == {(table, ipv4) for table in range(5001, 5005) for ipv4 in (True, False)}
        assert set(guarded.slots().values()) == {5001, 5002, 5003, 5004}
        assert guarded.states() == dict.fromkeys((1, 2, 3, 4), "active")
        with guarded.client() as client:
            assert client.explain("stream-a/3").key.identifier == 3
            assert client.explain("172.16.1.11").key.identifier == 1
        assert [decision.action.value for decision in guarded.decisions()] == ["admit"] * 4
        assert guarded.http("/healthz")[0] == 200
        assert guarded.http("/readyz")[0] == 200
        assert guarded.socket.stat().st_mode & 0o777 == 0o660
        wait_until(lambda: guarded.metric('lbguard_target_states{state="active",stream="stream-a"}') == 4, "the gauge")


def test_drops_are_counted_for_targets_that_are_lost(guarded: Guarded) -> None:
    def suspected() -> set[int]:
        [found] = [
            thing["set"] for thing in guarded.nft("set", "inet", "lbguard-counters", "suspected") if "set" in thing
        ]
        return set(found.get("elem", ()))

    with guarded.service(PATIENT):
        wait_until(lambda: suspected() == set(), "no target is lost")
        guarded.delete_link("nse-a")
        wait_until(lambda: suspected() == {5001, 5002}, "drops of the lost targets are counted")
        guarded.make_link("nse-a")
        wait_until(lambda: suspected() == set(), "all are active again")


def test_a_link_that_comes_back_changes_no_slot(guarded: Guarded) -> None:
    with guarded.service(PATIENT):
        slots, routes, rules = guarded.slots(), guarded.routes(), guarded.rules()
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held", t3="active", t4="active")
        assert guarded.gateways(1) == set()
        assert guarded.slots() == slots
        guarded.make_link("nse-a")
        guarded.wait_for(t1="active", t2="active")
        assert guarded.slots() == slots
        assert guarded.routes() == routes
        assert guarded.rules() == rules
        actions = [decision.action.value for decision in guarded.decisions()]
        assert actions == ["admit"] * 4 + ["hold"] * 2 + ["recover"] * 2


def test_a_link_that_is_gone_for_good(guarded: Guarded) -> None:
    with guarded.service() as service:
        slots, routes = guarded.slots(), guarded.routes()
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="withdrawn", t2="withdrawn", t3="active", t4="active")
        wait_until(lambda: set(guarded.active()) == {3, 4}, "targets 1 and 2 out of the table")
        others = {slot: mark for slot, mark in slots.items() if mark in (5003, 5004)}
        assert others.items() <= guarded.slots().items()
        assert len(guarded.slots()) == len(slots)
        withdrawal = next(line for line in service.log("decision") if line["action"] == "withdraw")
        assert withdrawal["cause"] == "no_link"
        guarded.make_link("nse-a")
        guarded.wait_for(t1="active", t2="active")
        wait_until(lambda: guarded.slots() == slots, "the slots as they were")
        wait_until(lambda: guarded.routes() == routes, "the routes as they were")


def test_the_loss_of_one_family_keeps_the_other_familys_connections(guarded: Guarded) -> None:
    with guarded.service():
        slots = guarded.slots()
        guarded.lb.flush_addresses("nse-a", ipv6_only=True)
        guarded.wait_for(t1="held", t2="held", t3="active", t4="active")
        assert "172.16.1.11" in guarded.gateways(1)
        # A window that begins later ends, so this one has ended.
        guarded.delete_link("nse-b")
        guarded.wait_for(t1="held", t2="held", t3="withdrawn", t4="withdrawn")
        wait_until(lambda: set(guarded.active()) == {1, 2}, "targets 3 and 4 out of the table")
        kept = {slot: mark for slot, mark in slots.items() if mark in (5001, 5002)}
        assert kept.items() <= guarded.slots().items()
        with guarded.client() as client:
            story = client.explain("stream-a/1").story
        assert "IPv6 is withdrawn; IPv4 serves." in story
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="withdrawn", t2="withdrawn")


def test_every_link_gone_makes_the_stream_unavailable(guarded: Guarded) -> None:
    with guarded.service(PATIENT) as service:
        slots = guarded.slots()
        for link in ("nse-a", "nse-b"):
            guarded.delete_link(link)
        service.wait_for_log("stream unavailable", stream="stream-a")
        assert guarded.slots() == slots
        for link in ("nse-a", "nse-b"):
            guarded.make_link(link)
        guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        service.wait_for_log("stream available", count=2, stream="stream-a")
        assert guarded.slots() == slots
