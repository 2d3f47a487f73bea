"""What is decided, refused, lost and found again reaches log, decision log and metrics, in few words."""

import logging
import time
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry

from lbguard.announce.sender import Announcer
from lbguard.api.feeds import AvailabilityState, DecisionLog
from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.model import Route, RouteKind, Rule, StreamSpec, TargetSpec
from lbguard.distributor.base import CommitResult
from lbguard.kernel.batches import NeighborFailure
from lbguard.kernel.mirror import MirrorCounters
from lbguard.service.event_reporter import EventReporter
from lbguard.telemetry.metrics.guard import Metrics
from tests.unit.examples import IPV4, decision

ROUTES = [Route(5001 + n, True, RouteKind.UNICAST, 2048, bytes([10, 0, 0, n]), 3) for n in range(3)]
LINK = ev.LinkSeen(ifindex=3, name="a", up=True, mac=b"\x02\0\0\0\0\1")


class Nowhere:
    """Takes frames and sends none."""

    def send(self, ifindex: int, frame: bytes) -> int:
        return 0

    def close(self) -> None:
        pass


class World:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.log = DecisionLog()
        self.availability = AvailabilityState()
        self.event_reporter = EventReporter(
            Metrics(self.registry), self.log, observe=False, inbox_depth=lambda: 7, availability=self.availability
        )

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    caplog.set_level(logging.INFO)
    return World()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = record.__dict__["fields"]
    return found


def test_a_decision_is_dated_by_when_it_was_taken(world: World) -> None:
    now = time.time()
    world.event_reporter.reported(fx.Record(decision=decision(at=100.0)), 160.0)
    [(kept, wall_time)] = world.log.last(None, 10)
    assert kept.at == 100.0
    assert now - 60.0 <= wall_time <= time.time() - 60.0


def test_decisions_of_one_moment_have_one_date_and_later_ones_no_earlier_one(world: World) -> None:
    # Between the engine's clock and the wall clock something else may run: half a second here.
    for at, now in ((100.0, 160.0), (100.0, 160.5), (100.2, 161.0), (100.2, 160.2)):
        world.event_reporter.reported(fx.Record(decision=decision(at=at)), now)
    first, same, later, last = (logged.wall_time for logged in world.log.last(None, 10))
    assert first == same <= later == last


def test_a_wall_clock_that_is_set_back_is_believed(world: World) -> None:
    world.event_reporter.reported(fx.Record(decision=decision(at=100.0)), 160.0)
    world.event_reporter.reported(fx.Record(decision=decision(at=101.0)), 160.0 + 3600.0)
    before, after = (logged.wall_time for logged in world.log.last(None, 10))
    assert 3590.0 < before - after < 3600.0


def test_many_refusals_are_one_line_and_all_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    rule = ev.RuleFailed(rule=Rule(5001, True, 5001), reason="EPERM: no")
    refused: list[ev.Event] = [ev.RouteFailed(route=route, reason="ENETUNREACH: no way") for route in ROUTES]
    world.event_reporter.refused([ev.RoutesProgrammed(), *refused, rule])
    [record] = caplog.records
    assert fields_of(record)["count"] == 4
    assert fields_of(record)["reason"] == "ENETUNREACH: no way"
    assert "5001" in str(fields_of(record)["what"])
    samples = {
        tuple(sample.labels.values()): sample.value
        for family in world.registry.collect()
        for sample in family.samples
        if sample.name == "lbguard_route_errors_total"
    }
    assert sorted(samples.values()) == [1, 3]


def test_what_went_well_is_no_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.event_reporter.refused([ev.RoutesProgrammed(added=tuple(ROUTES)), ev.RuleSeen(rule=Rule(5001, True, 5001))])
    assert said(caplog) == []


async def test_what_never_happened_yet_is_counted_as_0(world: World) -> None:
    announcer = Announcer(owns=lambda link, ip: True, frame_socket=Nowhere())
    world.event_reporter.counted(announcer, MirrorCounters())
    for kind in ("arp_request", "arp_reply", "na", "arp_question", "ns"):
        assert world.metric("lbguard_announcements_total", kind=kind) == 0
    for reason in ("not_owned", "not_ethernet", "queue_full", "superseded", "closed"):
        assert world.metric("lbguard_announcements_suppressed_total", reason=reason) == 0
    for reason in ("overrun", "truncated", "dump_timeout", "dump_refused", "dump_interrupted", "inbox_full"):
        assert world.metric("lbguard_kernel_resyncs_total", reason=reason) == 0
    announcer.close()


async def test_what_did_happen_is_counted_beside_what_did_not(world: World) -> None:
    world.event_reporter.counted(None, MirrorCounters(resyncs=Counter(overrun=2)))
    assert world.metric("lbguard_kernel_resyncs_total", reason="overrun") == 2
    assert world.metric("lbguard_kernel_resyncs_total", reason="inbox_full") == 0


def test_refused_neighbours_are_counted(world: World) -> None:
    failures = [NeighborFailure(ifindex=3, ip=IPV4, reason="ENODEV: gone")] * 2
    world.event_reporter.neighbors_refused(failures)
    [value] = [
        sample.value
        for family in world.registry.collect()
        for sample in family.samples
        if sample.name == "lbguard_neighbor_errors_total"
    ]
    assert value == 2


def test_a_lost_view_of_the_kernel_and_its_return_are_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.event_reporter.kernel_observed([ev.KernelSnapshot()], in_sync=True)
    world.event_reporter.kernel_observed([LINK], in_sync=True)
    assert said(caplog) == []
    world.event_reporter.kernel_observed([LINK, ev.KernelOutOfSync(reason="overrun")], in_sync=False)
    assert fields_of(caplog.records[0])["reason"] == "overrun"
    world.event_reporter.kernel_observed([ev.KernelSnapshot(), LINK], in_sync=True)
    world.event_reporter.kernel_observed([LINK], in_sync=True)
    assert said(caplog) == ["kernel view lost: nothing is withdrawn", "kernel view whole again"]


def test_the_source_is_told_of(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.event_reporter.source_observed(ev.SourceLost(reason="line 3: what is this?"))
    targets = (TargetSpec(identifier=1, ips=(IPV4,)), TargetSpec(identifier=2, ips=()))
    world.event_reporter.source_observed(ev.SourceSnapshot(streams=(StreamSpec(name="a", targets=targets),)))
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert fields_of(caplog.records[0])["reason"] == "line 3: what is this?"
    assert fields_of(caplog.records[1]) == {"streams": 1, "targets": 2}


def test_availability_reaches_whoever_asks(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.event_reporter.reported(fx.SetAvailability(stream="a", available=False, reason="no_usable_path"), 1.0)
    world.event_reporter.reported(fx.SetAvailability(stream="a", available=True, reason="ok"), 2.0)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "stream unavailable"),
        ("INFO", "stream available"),
    ]


def test_rounds_and_commits_are_measured(world: World) -> None:
    world.event_reporter.stepped(3, 0.25, 0.01)
    world.event_reporter.committed(CommitResult(stream="a", slots_changed=5, slots_total=97, duration_s=0.1))
    world.event_reporter.committed(CommitResult(stream="a", error="refused"))
    assert world.metric("lbguard_inbox_depth") == 7
    assert world.metric("lbguard_slots_changed_total", stream="a") == 5
    assert world.metric("lbguard_commit_errors_total", stream="a") == 1


def test_what_the_service_waits_for_is_said_from_time_to_time(world: World, caplog: pytest.LogCaptureFixture) -> None:
    now = time.monotonic()
    for after_s in range(0, 100, 5):
        world.event_reporter.waited("source_not_read: no such file", now + after_s)
    assert said(caplog) == ["not ready: waiting"] * 3
    assert fields_of(caplog.records[0])["reason"] == "source_not_read: no such file"
    caplog.clear()
    world.event_reporter.waited("", now + 1000)
    world.event_reporter.waited("kernel_not_in_sync: overrun", now + 1001)
    assert said(caplog) == []
    world.event_reporter.waited("kernel_not_in_sync: overrun", now + 1031)
    assert said(caplog) == ["not ready: waiting"]


def test_targets_that_cannot_drain_are_told_once_with_a_remedy(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        world.event_reporter.reported(fx.Ignored(reason="draining_without_affinity", count=2), time.monotonic())
    assert said(caplog) == ["targets are listed as draining, but flow affinity is off: they get new connections"]
    assert "affinity.mode" in str(fields_of(caplog.records[0])["remedy"])
    assert world.metric("lbguard_events_ignored_total", reason="draining_without_affinity") == 6
