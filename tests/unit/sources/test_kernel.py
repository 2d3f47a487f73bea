import asyncio
import contextlib

import pytest

from lbguard.core import events as ev
from lbguard.core.addr import Ip
from lbguard.core.events import SourceSnapshot
from lbguard.core.model import ROUTE_PROTOCOL, Route, RouteKind, Rule, StreamSpec, TargetSpec
from lbguard.service.foreign_routes import TargetRoutes
from lbguard.settings.model import SettingsError, load
from lbguard.settings.surroundings import MarkRange, parse_range
from lbguard.sources.flavour import Flavour
from lbguard.sources.kernel import KernelSource
from tests.unit.core.harness import ip
from tests.unit.kernel.fake_kernel import eventually

RANGE = MarkRange("stream-a", 5001, 5100)
FOREIGN = 3
KEEP_S = 100.0


def v4(target: int) -> Ip:
    return ip(f"172.16.0.{10 + target}")


def v6(target: int) -> Ip:
    return ip(f"fd00::{10 + target:x}")


def rule(mark: int, *, ipv4: bool = True, protocol: int = FOREIGN, table: int = 0) -> Rule:
    return Rule(mark, ipv4, table or mark, 100, protocol)


def route(mark: int, gateway: Ip, *, oif: int = 7, protocol: int = FOREIGN) -> Route:
    return Route(mark, len(gateway) == 4, RouteKind.UNICAST, 0, gateway, oif, protocol)


class Balancer:
    """What a load balancer does in the kernel, and what the source makes of it."""

    def __init__(self, *ranges: MarkRange, flavour: Flavour = Flavour.MERIDIO) -> None:
        self.told: list[SourceSnapshot] = []
        self.now = 1000.0
        self.lost: set[int] = set()
        self.routes = TargetRoutes()
        self.source = KernelSource(
            ranges,
            KEEP_S,
            self.told.append,
            flavour=flavour,
            routes=self.routes,
            path_lost=lambda mark, _: mark in self.lost,
            clock=lambda: self.now,
        )

    def hear(self, *events: ev.Event) -> None:
        self.routes.observe(events)
        self.source.observe_kernel(events)

    def add(self, mark: int, *gateways: Ip) -> None:
        for gateway in gateways:
            self.hear(ev.RuleSeen(rule=rule(mark, ipv4=len(gateway) == 4)), ev.RouteSeen(route=route(mark, gateway)))

    def remove(self, mark: int, *gateways: Ip) -> None:
        for gateway in gateways:
            self.hear(ev.RuleGone(rule=rule(mark, ipv4=len(gateway) == 4)), ev.RouteGone(route=route(mark, gateway)))

    def targets(self, after_s: float = 0.0) -> dict[str, dict[int, tuple[Ip, ...]]]:
        """Let time pass; return the addresses by stream and identifier, as they were told last."""
        self.now += after_s
        self.source.settle()
        return {s.name: {t.identifier: t.ips for t in s.targets} for s in self.told[-1].streams} if self.told else {}


def test_nothing_is_told_before_the_kernel_was_read() -> None:
    balancer = Balancer(RANGE)
    balancer.add(5001, v4(1))
    assert balancer.targets() == {}
    balancer.hear(ev.KernelSnapshot(rules=(rule(5001),), routes=(route(5001, v4(1)),)))
    assert balancer.targets() == {"stream-a": {1: (v4(1),)}}


def test_a_full_view_shows_all_targets_and_their_stream() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(
        ev.KernelSnapshot(
            rules=(rule(5001), rule(5001, ipv4=False), rule(5003)),
            routes=(route(5001, v4(1)), route(5001, v6(1)), route(5003, v4(3))),
        )
    )
    balancer.targets()
    targets = (TargetSpec(identifier=1, ips=(v4(1), v6(1))), TargetSpec(identifier=3, ips=(v4(3),)))
    assert balancer.told == [
        SourceSnapshot(
            streams=(
                StreamSpec(
                    name="stream-a",
                    max_targets=100,
                    identifier_offset=5000,
                    shm_name="tshm-stream-a",
                    targets=targets,
                ),
            )
        )
    ]


def test_identifiers_and_memory_of_meridio_2() -> None:
    balancer = Balancer(RANGE, flavour=Flavour.MERIDIO_2)
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1))
    balancer.add(5003, v4(3))
    assert balancer.targets() == {"stream-a": {0: (v4(1),), 2: (v4(3),)}}
    stream = balancer.told[-1].streams[0]
    assert (stream.shm_name, stream.identifiers, stream.mark(2)) == ("stream-a", range(100), 5003)


def test_a_target_is_listed_while_it_has_a_rule() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1))
    balancer.hear(ev.RouteGone(route=route(5001, v4(1))))
    assert balancer.targets(10 * KEEP_S) == {"stream-a": {1: (v4(1),)}}
    balancer.hear(ev.RuleGone(rule=rule(5001)))
    assert balancer.targets(0.5) == {"stream-a": {1: (v4(1),)}}
    assert balancer.targets(1.0) == {"stream-a": {}}


def test_marks_of_no_stream_are_targets_under_their_mark() -> None:
    balancer = Balancer()
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1))
    assert balancer.targets() == {"kernel": {5001: (v4(1),)}}
    assert balancer.told[-1].streams[0].mark(5001) == 5001


@pytest.mark.parametrize(
    "events",
    [
        (ev.RuleSeen(rule=rule(5001)),),
        (ev.RouteSeen(route=route(5001, v4(1))),),
        (ev.RuleSeen(rule=rule(5001, table=4096)), ev.RouteSeen(route=route(4096, v4(1)))),
        (ev.RuleSeen(rule=rule(5001, protocol=ROUTE_PROTOCOL)), ev.RouteSeen(route=route(5001, v4(1)))),
        (ev.RuleSeen(rule=rule(5001)), ev.RouteSeen(route=route(5001, v4(1), protocol=ROUTE_PROTOCOL))),
    ],
    ids=["rule alone", "route alone", "another table", "our own rule", "our own route"],
)
def test_a_target_is_a_foreign_rule_with_a_foreign_route_in_the_table_of_its_mark(events: tuple[ev.Event, ...]) -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot())
    balancer.hear(*events)
    assert balancer.targets() == {"stream-a": {}}


def test_a_gateway_that_no_target_can_have_is_named_and_not_listed(caplog: pytest.LogCaptureFixture) -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot(links=(), addresses=(), neighbors=(), routes=(), rules=()))
    balancer.add(5001, ip("fe80::1"))
    balancer.add(5002, v4(2), ip("fe80::1"))
    balancer.hear(ev.RouteSeen(route=route(5001, ip("fe80::1"))))
    assert balancer.targets() == {"stream-a": {2: (v4(2),)}}
    assert [record.getMessage() for record in caplog.records] == ["gateway is no target"] * 2


def test_a_target_that_is_removed_with_a_good_path_goes() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1))
    balancer.targets()
    balancer.remove(5001, v4(1))
    assert balancer.targets(0.5) == {"stream-a": {1: (v4(1),)}}
    assert balancer.targets(1.0) == {"stream-a": {}}


def test_a_target_that_is_taken_away_and_added_at_once_never_goes() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1))
    balancer.targets()
    for _ in range(5):
        balancer.remove(5001, v4(1))
        balancer.targets(0.3)
        balancer.add(5001, v4(1))
        balancer.targets(2.0)
    assert len(balancer.told) == 1


def test_a_target_that_vanished_with_its_path_broken_is_kept_for_a_while() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1))
    balancer.targets()
    balancer.lost = {5001}
    balancer.remove(5001, v4(1))
    assert balancer.targets(2.0) == {"stream-a": {1: (v4(1),)}}
    # The path is back, the load balancer has not tried again yet.
    balancer.lost = set()
    assert balancer.targets(10.0) == {"stream-a": {1: (v4(1),)}}
    assert balancer.targets(KEEP_S) == {"stream-a": {}}


def test_a_kept_target_that_comes_back_begins_anew() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1))
    balancer.lost = {5001}
    balancer.remove(5001, v4(1))
    balancer.targets(2.0)
    balancer.lost = set()
    balancer.add(5001, v4(1))
    assert balancer.targets(KEEP_S) == {"stream-a": {1: (v4(1),)}}
    balancer.remove(5001, v4(1))
    balancer.targets()
    assert balancer.targets(2.0) == {"stream-a": {}}


def test_a_family_without_a_route_for_the_moment_is_still_the_targets() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1), v6(1))
    balancer.hear(ev.RouteGone(route=route(5001, v6(1))))
    assert balancer.targets(5.0) == {"stream-a": {1: (v4(1), v6(1))}}


def test_a_new_gateway_replaces_the_one_of_its_family() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot())
    balancer.add(5001, v4(1), v6(1))
    balancer.hear(ev.RouteSeen(route=route(5001, v4(2))))
    assert balancer.targets() == {"stream-a": {1: (v4(2), v6(1))}}


def test_a_full_view_without_a_target_is_its_end_as_well() -> None:
    balancer = Balancer(RANGE)
    balancer.hear(ev.KernelSnapshot(rules=(rule(5001),), routes=(route(5001, v4(1)),)))
    balancer.targets()
    balancer.hear(ev.KernelSnapshot())
    balancer.targets()
    assert balancer.targets(2.0) == {"stream-a": {}}


async def test_many_targets_are_told_in_one_list_and_again_when_asked() -> None:
    balancer = Balancer(RANGE)
    task = asyncio.create_task(balancer.source.run())
    try:
        balancer.hear(ev.KernelSnapshot())
        for target in range(1, 51):
            balancer.add(5000 + target, v4(target))
        await eventually(lambda: bool(balancer.told))
        assert [len(told.streams[0].targets) for told in balancer.told] == [50]
        balancer.source.reload()
        await eventually(lambda: len(balancer.told) == 2)
        assert balancer.told[0] == balancer.told[1]
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_ranges_are_read() -> None:
    assert parse_range(" stream-a=5001-5100 ") == RANGE


@pytest.mark.parametrize(
    "text", ["", "stream-a", "stream-a=5001", "a=0-5", "a=9-5", "a=1-x", "-=1-2", "a=1-4294967296"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as stream-a=5001-5100"):
        parse_range(text)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"kernel_source.streams": "a=1-5,b=5-9"}, "kernel_source.streams"),
        ({"kernel_source.streams": "a=1-5,a=6-9"}, "kernel_source.streams"),
        ({"mode": "enforce"}, "mode"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(flags: dict[str, object], name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(flags={"source": "kernel", "mode": "companion"} | flags)
    assert [problem.setting for problem in refused.value.problems] == [name]
