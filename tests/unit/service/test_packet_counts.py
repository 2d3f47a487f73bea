"""Packet counts, of targets as nftables counts them and of links as /proc/net/dev shows them."""

import logging
from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry

from lbguard.core.config import EngineConfig
from lbguard.core.events import LinkGone, LinkSeen
from lbguard.core.model import TargetKey
from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.counters import FallbackCounters, HeldCount
from lbguard.service.packet_counts import PacketCounts, read_traffic
from lbguard.telemetry.metrics.guard import Metrics
from tests.unit.core.harness import Guard

A, B = TargetKey("a", 1), TargetKey("a", 2)
MARKS = {5001: A, 5002: B}


class FakeCounters(FallbackCounters):
    """Counters of a kernel that exists in the test alone; `broken` is what every call fails with."""

    def __init__(self) -> None:
        self.marks: set[int] = set()
        self.suspected: set[int] = set()
        self.hits: dict[int, HeldCount] = {}
        self.broken = ""
        self.calls: list[str] = []

    def _begin(self, call: str) -> None:
        self.calls.append(call)
        if self.broken:
            raise DistributorError(self.broken)

    async def ensure(self, marks: Iterable[int], suspected: Iterable[int] | None = None) -> None:
        self._begin("ensure")
        self.marks = set(marks)
        self.suspected = self.marks if suspected is None else set(suspected)

    async def suspect(self, marks: Iterable[int]) -> None:
        self._begin("suspect")
        self.suspected = set(marks)

    async def read(self) -> dict[int, HeldCount]:
        self._begin("read")
        return {mark: HeldCount(0, 0) for mark in self.marks}

    async def read_hits(self) -> dict[int, HeldCount]:
        self._begin("read_hits")
        return {mark: self.hits.get(mark, HeldCount(0, 0)) for mark in self.marks}

    async def remove(self) -> None:
        self._begin("remove")
        self.marks = set()

    async def close(self) -> None:
        self.calls.append("close")


class World:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counters = FakeCounters()
        self.counts = PacketCounts(Metrics(self.registry), self.counters)

    def packets(self, key: TargetKey) -> float | None:
        for family in self.registry.collect():
            for sample in family.samples:
                labels = {"stream": key.stream, "identifier": str(key.identifier)}
                if sample.name == "lbguard_target_packets_total" and labels.items() <= sample.labels.items():
                    return sample.value
        return None


async def test_drops_are_counted_for_suspected_marks_only() -> None:
    world = World()
    await world.counts.suspect([5001])
    assert world.counters.calls == [], "nothing is counted yet"
    await world.counts.follow(MARKS, [5001])
    assert world.counters.suspected == {5001}
    await world.counts.follow(MARKS, [5001])
    await world.counts.suspect([5001])
    assert world.counters.calls == ["ensure"], "cheap when unchanged"
    await world.counts.suspect([5001, 5002])
    assert world.counters.suspected == {5001, 5002}
    await world.counts.follow(MARKS, [])
    assert world.counters.suspected == set()
    assert world.counters.calls == ["ensure", "suspect", "suspect"]


async def test_after_a_failure_everything_is_written_again() -> None:
    world = World()
    await world.counts.follow(MARKS, [])
    world.counters.broken = "no permission"
    await world.counts.suspect([5002])
    world.counters.broken = ""
    await world.counts.follow(MARKS, [5002])
    assert world.counters.calls == ["ensure", "suspect", "ensure"]
    assert world.counters.suspected == {5002}


async def test_counts_reach_the_metrics_and_leave_with_their_target() -> None:
    world = World()
    await world.counts.follow(MARKS, ())
    world.counters.hits[5001] = HeldCount(7, 700)
    await world.counts.read()
    assert world.packets(A) == 7
    assert world.packets(B) == 0
    await world.counts.follow({5002: B}, ())
    await world.counts.read()
    assert world.packets(A) is None
    await world.counts.follow({}, ())
    await world.counts.read()
    assert world.packets(B) is None
    assert world.counters.marks == set()


async def test_the_same_marks_are_asked_for_once() -> None:
    world = World()
    for _ in range(3):
        await world.counts.follow(dict(MARKS), ())
    assert world.counters.calls == ["ensure"]


async def test_a_failure_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.counters.broken = "nftables: Operation not permitted"
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            await world.counts.follow(MARKS, ())
            await world.counts.read()
        assert [record.message for record in caplog.records] == ["packets are not counted"]
        world.counters.broken = ""
        await world.counts.follow(MARKS, ())
        await world.counts.read()
        assert world.packets(A) == 0
        # What went well in between makes the same failure news again.
        world.counters.broken = "nftables: Operation not permitted"
        await world.counts.read()
        await world.counts.read()
        assert len(caplog.records) == 2
        world.counters.broken = ""
        await world.counts.read()
        world.counters.broken = "nftables: Operation not permitted"
        await world.counts.read()
    assert len(caplog.records) == 3


async def test_a_missing_library_costs_the_counters_alone(caplog: pytest.LogCaptureFixture) -> None:
    counts = PacketCounts(Metrics(CollectorRegistry()), FallbackCounters(library="libno-such-nftables.so.1"))
    with caplog.at_level(logging.WARNING):
        await counts.follow(MARKS, ())
        await counts.read()
        await counts.follow(MARKS, ())
        await counts.remove()
    await counts.close()
    [record] = caplog.records
    assert "libno-such-nftables.so.1 cannot be loaded" in str(record.__dict__["fields"])


def test_only_links_that_face_targets_are_read() -> None:
    """The loopback of this machine stands for a link: it is the one that every machine has."""
    guard = Guard(EngineConfig(excluded_links=()), targets=0, start=False)
    guard.link(7)
    guard.tell(
        LinkSeen(ifindex=1, name="lo", up=True, mac=bytes(6)),
        LinkSeen(ifindex=2, name="nobody-has-this", up=True, mac=bytes(6)),
        guard.address(1, "172.16.0.3/24"),
        guard.address(2, "172.16.0.4/24"),
    )
    assert read_traffic(guard.engine.links_facing_targets()) == []
    guard.register(1)
    [seen] = read_traffic(guard.engine.links_facing_targets())
    assert seen.ifindex == 1
    assert seen.rx_packets >= 0
    guard.tell(LinkGone(ifindex=1))
    assert read_traffic(guard.engine.links_facing_targets()) == []


async def test_the_packets_of_each_mark_are_those_of_the_kernel(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    assert await world.counts.read_marks() == {}
    assert world.counters.calls == [], "counters of an earlier run are touched before they are followed"
    await world.counts.follow(MARKS, ())
    world.counters.hits = {5001: HeldCount(7, 700)}
    assert await world.counts.read_marks() == {5001: 7, 5002: 0}
    world.counters.broken = "nftables: no memory"
    assert await world.counts.read_marks() == {}
    assert [record.message for record in caplog.records] == ["packets are not counted"]
