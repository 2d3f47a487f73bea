"""Routes and rules on the real kernel; what is expected is written out, and read back by pyroute2."""

from typing import Any

import pytest

from lbguard.core.addr import parse_ip
from lbguard.core.effects import ProgramRoutes, ProgramRules
from lbguard.core.events import RouteFailed, RoutesProgrammed, RuleGone, RuleSeen
from lbguard.core.model import BLACKHOLE_METRIC, ROUTE_METRIC, Route, RouteKind, Rule
from lbguard.kernel.batches import RouteTable
from tests.netns.kernel.conftest import Bench

GATEWAYS = {True: "172.16.0.2", False: "fd00::2"}
STATIC, OURS = 4, 152
"""Protocols of routes and rules."""

BOTH_FAMILIES = pytest.mark.parametrize("ipv4", [True, False], ids=["ipv4", "ipv6"])


def unicast(bench: Bench, ipv4: bool, *, link: str = "nse-a", gateway: str = "", table: int = 5001) -> Route:
    ip = parse_ip(gateway or GATEWAYS[ipv4])
    return Route(table, ipv4, RouteKind.UNICAST, ROUTE_METRIC, ip, bench.lb.index(link))


def blackhole(ipv4: bool, table: int = 5001) -> Route:
    return Route(table, ipv4, RouteKind.BLACKHOLE, BLACKHOLE_METRIC)


def shown(bench: Bench, ipv4: bool, table: int = 5001) -> list[tuple[Any, ...]]:
    routes = bench.lb.routes(table, ipv4=ipv4)
    assert not any(route.next_hops for route in routes), "routes were merged into a multipath route"
    return sorted(
        (route.metric, route.kind, route.gateway, route.protocol) + ((route.link,) if route.kind == "unicast" else ())
        for route in routes
    )


def second_link(bench: Bench) -> None:
    bench.lb.add_veth("nse-b", "nse-b-peer")
    bench.lb.add_addresses("nse-b", "172.16.0.3/24", "fd00::3/64")


@BOTH_FAMILIES
async def test_route_and_fallback(bench: Bench, ipv4: bool) -> None:
    table = RouteTable(bench.channel)
    routes = (unicast(bench, ipv4), blackhole(ipv4))
    assert await table.program(ProgramRoutes(replace=routes)) == [RoutesProgrammed(added=routes)]
    both = [(2048, "unicast", GATEWAYS[ipv4], OURS, "nse-a"), (4294967295, "blackhole", "", OURS)]
    assert shown(bench, ipv4) == both
    assert await table.program(ProgramRoutes(replace=routes)) == [RoutesProgrammed(added=routes)]
    assert shown(bench, ipv4) == both
    bench.lb.delete_link("nse-a")
    assert shown(bench, ipv4) == [(4294967295, "blackhole", "", OURS)]
    assert await table.program(ProgramRoutes(delete=routes)) == [RoutesProgrammed(deleted=routes)]
    assert shown(bench, ipv4) == []
    assert await table.program(ProgramRoutes(delete=routes)) == [RoutesProgrammed(deleted=routes)]


@BOTH_FAMILIES
async def test_replacing_moves_the_route_and_leaves_one(bench: Bench, ipv4: bool) -> None:
    """IPv6 would add an equal-cost sibling for a second gateway of the same metric, but not on replace."""
    second_link(bench)
    table = RouteTable(bench.channel)
    other = "172.16.0.77" if ipv4 else "fd00::77"
    old = unicast(bench, ipv4)
    await table.program(ProgramRoutes(replace=(old, blackhole(ipv4))))
    for new in (
        unicast(bench, ipv4, link="nse-b"),
        unicast(bench, ipv4, link="nse-b", gateway=other),
        unicast(bench, ipv4, gateway=other),
    ):
        await table.program(ProgramRoutes(replace=(new,)))
        link = "nse-b" if new.oif == bench.lb.index("nse-b") else "nse-a"
        gateway = other if new.gateway == parse_ip(other) else GATEWAYS[ipv4]
        assert shown(bench, ipv4) == [
            (2048, "unicast", gateway, OURS, link),
            (4294967295, "blackhole", "", OURS),
        ]
    # The late delete of a route that was replaced takes nothing away.
    assert await table.program(ProgramRoutes(delete=(old,))) == [RoutesProgrammed(deleted=(old,))]
    assert len(shown(bench, ipv4)) == 2


@BOTH_FAMILIES
async def test_foreign_routes_are_never_touched(bench: Bench, ipv4: bool) -> None:
    for metric in (10, 3000):
        bench.lb.add_route("default", GATEWAYS[ipv4], "nse-a", table=5001, metric=metric, protocol=STATIC)
    before = shown(bench, ipv4)
    table = RouteTable(bench.channel)
    routes = (unicast(bench, ipv4), blackhole(ipv4))
    await table.program(ProgramRoutes(replace=routes))
    assert len(shown(bench, ipv4)) == 4
    await table.program(ProgramRoutes(delete=routes))
    assert shown(bench, ipv4) == before
    # A foreign route that looks like ours but for its protocol stays as well.
    bench.lb.add_route("default", GATEWAYS[ipv4], "nse-a", table=5001, metric=2048, protocol=STATIC)
    await table.program(ProgramRoutes(delete=routes))
    assert len(shown(bench, ipv4)) == 3


@BOTH_FAMILIES
@pytest.mark.parametrize("other", ["unicast", "several next hops", "unreachable"])
async def test_a_route_is_not_added_over_somebody_elses(bench: Bench, ipv4: bool, other: str) -> None:
    leads: dict[str, dict[str, Any]] = {
        "unicast": {"via": GATEWAYS[ipv4], "link": "nse-a"},
        "several next hops": {"next_hops": (GATEWAYS[ipv4], "172.16.0.3" if ipv4 else "fd00::3")},
        "unreachable": {"kind": "unreachable"},
    }
    everywhere = "0.0.0.0/0" if ipv4 else "::/0"
    bench.lb.add_route(everywhere, table=5001, metric=2048, protocol=STATIC, **leads[other])
    before = bench.lb.routes(5001)
    [event] = await RouteTable(bench.channel).program(ProgramRoutes(add=(unicast(bench, ipv4),)))
    assert isinstance(event, RouteFailed)
    assert event.reason.startswith("EEXIST")
    assert bench.lb.routes(5001) == before


@BOTH_FAMILIES
async def test_a_gateway_counts_as_on_the_link_before_its_prefix_route_is_there(bench: Bench, ipv4: bool) -> None:
    bench.lb.add_addresses("nse-a", "172.16.7.1/24" if ipv4 else "fd07::1/64", dad=True, prefix_route=False)
    route = unicast(bench, ipv4, gateway="172.16.7.9" if ipv4 else "fd07::9")
    table = RouteTable(bench.channel)
    assert await table.program(ProgramRoutes(add=(route,))) == [RoutesProgrammed(added=(route,))]
    assert await table.program(ProgramRoutes(replace=(route,))) == [RoutesProgrammed(added=(route,))]
    assert await table.program(ProgramRoutes(delete=(route,))) == [RoutesProgrammed(deleted=(route,))]
    assert shown(bench, ipv4) == []


async def test_refused_route_names_the_reason_and_the_others_go_on(bench: Bench) -> None:
    table = RouteTable(bench.channel)
    good = unicast(bench, True)
    multicast = unicast(bench, True, gateway="224.0.0.9", table=5002)
    no_link = good._replace(oif=4242, table=5003)
    last = unicast(bench, False, table=5004)
    events = await table.program(ProgramRoutes(replace=(good, multicast, no_link, last)))
    assert events[0] == RoutesProgrammed(added=(good, last))
    failures = [event for event in events if isinstance(event, RouteFailed)]
    assert [event.route for event in failures] == [multicast, no_link]
    assert failures[0].reason == "EINVAL: Nexthop has invalid gateway"
    assert failures[1].reason.startswith("ENODEV")


async def test_two_thousand_routes(bench: Bench) -> None:
    table = RouteTable(bench.channel)
    families = {ipv4: unicast(bench, ipv4) for ipv4 in (True, False)}
    routes = tuple(families[ipv4]._replace(table=5001 + number) for number in range(1000) for ipv4 in (True, False))

    def defaults() -> tuple[int, ...]:
        shown = [route.ipv4 for route in bench.lb.routes() if route.destination == "default"]
        return shown.count(True), shown.count(False)

    assert await table.program(ProgramRoutes(replace=routes)) == [RoutesProgrammed(added=routes)]
    assert defaults() == (1000, 1000)
    assert await table.program(ProgramRoutes(delete=routes)) == [RoutesProgrammed(deleted=routes)]
    assert defaults() == (0, 0)


def rules_shown(bench: Bench, ipv4: bool) -> list[tuple[Any, ...]]:
    return [(rule.priority, rule.mark, rule.table, rule.protocol) for rule in bench.lb.rules(ipv4=ipv4) if rule.mark]


@BOTH_FAMILIES
async def test_rules(bench: Bench, ipv4: bool) -> None:
    table = RouteTable(bench.channel)
    rule = Rule(5001, ipv4, 5001)
    for _ in range(2):
        assert await table.program_rules(ProgramRules(add=(rule,))) == [RuleSeen(rule=rule)]
        assert rules_shown(bench, ipv4) == [(3000, 5001, 5001, OURS)]
        assert rules_shown(bench, not ipv4) == []
    for _ in range(2):
        assert await table.program_rules(ProgramRules(delete=(rule,))) == [RuleGone(rule=rule)]
        assert rules_shown(bench, ipv4) == []


async def test_foreign_rules_are_never_touched(bench: Bench) -> None:
    bench.lb.add_rule(5001, 5001, priority=3000, protocol=STATIC)
    table = RouteTable(bench.channel)
    rule = Rule(5001, True, 5001)
    await table.program_rules(ProgramRules(add=(rule,)))
    assert [shown[3] for shown in rules_shown(bench, True)] == [STATIC, OURS]
    await table.program_rules(ProgramRules(delete=(rule,)))
    await table.program_rules(ProgramRules(delete=(rule,)))
    assert [shown[3] for shown in rules_shown(bench, True)] == [STATIC]


async def test_packets_follow_mark_and_fallback(bench: Bench) -> None:
    table = RouteTable(bench.channel)
    await table.program_rules(ProgramRules(add=(Rule(5001, True, 5001),)))
    await table.program(ProgramRoutes(replace=(unicast(bench, True), blackhole(True))))
    found = bench.lb.route_to("192.0.2.1", mark=5001)
    assert found is not None
    assert (found.gateway, found.link) == ("172.16.0.2", "nse-a")
    bench.lb.set_link("nse-a", up=False)
    assert bench.lb.route_to("192.0.2.1", mark=5001) is None
