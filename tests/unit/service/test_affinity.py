"""Keeper of flow affinity over a working model of the table."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum

import pytest
from prometheus_client import CollectorRegistry

from lbguard.affinity.names import AffinityOptions
from lbguard.affinity.table import AffinityCounts
from lbguard.core.effects import SteerFlows
from lbguard.core.events import AffinityReported, Event, TargetsIdle
from lbguard.core.model import StreamSteering
from lbguard.distributor.base import DistributorError
from lbguard.service.affinity import FlowAffinity
from lbguard.telemetry.metrics.guard import Metrics
from tests.steering import steering

LIMIT_S = 90.0
IDLE_S = 0.05


class Fault(StrEnum):
    """What goes wrong, each until it is taken away."""

    REFUSED = "nftables: no memory"
    NO_SOCKET = "no such device"
    UNREADABLE = "nftables: reading the ruleset: no memory"


class FakeTable:
    """A table that exists in the test alone; `held` is what it was brought to, None when there is none."""

    def __init__(self) -> None:
        self.options = AffinityOptions(max_flows=100)
        self.held: dict[str, StreamSteering] | None = None
        self.counts = AffinityCounts(flows={("tcp", 4): 0})
        self.faults: set[Fault] = set()
        self.calls: Counter[str] = Counter()
        self.disturbed = False
        self.busy: asyncio.Event | None = None

    async def apply(self, streams: Iterable[StreamSteering]) -> None:
        wanted = {each.stream: each for each in streams}
        self._begin("apply", Fault.REFUSED)
        if self.busy is not None:
            await self.busy.wait()
        self.held = wanted

    async def look(self) -> bool:
        self._begin("look", Fault.UNREADABLE)
        in_order, self.disturbed = not self.disturbed, False
        return in_order

    async def read(self) -> AffinityCounts:
        self._begin("read", Fault.UNREADABLE)
        return self.counts

    async def remove(self) -> None:
        self._begin("remove", Fault.REFUSED)
        self.held = None

    async def close(self) -> None:
        self.calls["close"] += 1

    def _begin(self, call: str, fault: Fault) -> None:
        self.calls[call] += 1
        if fault in self.faults:
            raise DistributorError(fault)
        if Fault.NO_SOCKET in self.faults:
            raise OSError(Fault.NO_SOCKET)


class Kept:
    """A keeper that looks all the time, its table and its metrics."""

    def __init__(self) -> None:
        self.table = FakeTable()
        self.registry = CollectorRegistry()
        self.packets: dict[int, int] = {}
        self.readings = 0
        self.events: list[Event] = []
        self.keeper = FlowAffinity(
            self.table,
            Metrics(self.registry),
            packets=self._read,
            post=self.events.extend,
            drain_idle_s=IDLE_S,
            look_s=0.001,
        )

    async def _read(self) -> dict[int, int]:
        self.readings += 1
        return dict(self.packets)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"lbguard_affinity_{name}", labels)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def looks(self, count: int = 12) -> None:
        """Wait until the keeper has looked some times more."""
        goal = self.table.calls["look"] + count
        await self.until(lambda: self.table.calls["look"] >= goal)


@asynccontextmanager
async def running() -> AsyncIterator[Kept]:
    kept = Kept()
    task = asyncio.create_task(kept.keeper.run())
    yield kept
    assert not task.done(), "the keeper ended by itself"
    task.cancel()


def effect(*streams: StreamSteering, gone: tuple[str, ...] = ()) -> SteerFlows:
    return SteerFlows(streams=streams, gone=gone)


async def test_what_is_desired_is_carried_out_and_the_rest_kept() -> None:
    async with running() as kept:
        one, two = steering("one"), steering("two", (7001,))
        await kept.keeper.perform(effect(one, two))
        await kept.until(lambda: kept.table.held == {"one": one, "two": two})
        changed = replace(one, learning=False)
        await kept.keeper.perform(effect(changed))
        await kept.until(lambda: kept.table.held == {"one": changed, "two": two})
        await kept.keeper.perform(effect(gone=("one", "unknown")))
        await kept.until(lambda: kept.table.held == {"two": two})
        assert kept.metric("in_force") == 1


async def test_without_streams_nothing_is_touched() -> None:
    async with running() as kept:
        await asyncio.sleep(0.02)
        assert kept.table.held is None
        assert not kept.table.calls
        assert kept.metric("in_force") == 0


async def test_what_comes_while_the_table_is_busy_is_done_at_once() -> None:
    async with running() as kept:
        kept.table.busy = asyncio.Event()
        await kept.keeper.perform(effect(steering("s0")))
        await kept.until(lambda: kept.table.calls["apply"] == 1)
        for number in range(1, 50):
            await kept.keeper.perform(effect(steering(f"s{number}")))
        kept.table.busy.set()
        await kept.until(lambda: kept.table.held is not None and len(kept.table.held) == 50)
        assert kept.table.calls["apply"] == 2


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.NO_SOCKET])
async def test_what_is_refused_is_said_once_and_tried_until_it_is_done(
    fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running() as kept:
        kept.table.faults.add(fault)
        await kept.keeper.perform(effect(steering()))
        await kept.until(lambda: kept.table.calls["apply"] >= 5)
        assert kept.metric("in_force") == 0
        said = [record.message for record in caplog.records]
        assert said == ["flow affinity is not in force"]
        assert (kept.metric("errors_total") or 0) >= 5
        kept.table.faults.clear()
        await kept.until(lambda: kept.metric("in_force") == 1)
        assert kept.table.held == {"stream-a": steering()}
        assert caplog.records[-1].message == "flow affinity is in force again"


async def test_the_status_says_whether_it_is_in_force_and_how_many_flows_are_remembered() -> None:
    async with running() as kept:
        status = kept.keeper.status()
        assert (status.mode, status.in_force, status.problem, status.maps) == ("incident", False, "", ())
        kept.table.faults.add(Fault.REFUSED)
        kept.table.counts = replace(kept.table.counts, flows={("tcp", 6): 2, ("tcp", 4): 7})
        await kept.keeper.perform(effect(steering()))
        await kept.until(lambda: kept.keeper.status().problem == Fault.REFUSED)
        assert not kept.keeper.status().in_force
        kept.table.faults.clear()
        await kept.until(lambda: kept.keeper.status().maps)
        status = kept.keeper.status()
        assert (status.in_force, status.problem, status.flows_max) == (True, "", 100)
        assert [(each.protocol, each.ipv4, each.flows) for each in status.maps] == [("tcp", True, 7), ("tcp", False, 2)]


async def test_what_others_changed_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as kept:
        await kept.keeper.perform(effect(steering()))
        await kept.looks()
        assert kept.metric("mended_total") == 0
        kept.table.disturbed = True
        await kept.until(lambda: kept.metric("mended_total") == 1)
        await kept.looks()
        assert kept.metric("mended_total") == 1
        assert [r.message for r in caplog.records] == ["affinity table was changed by others, and is written again"]


async def test_a_table_that_cannot_be_read_is_not_in_force_until_it_can() -> None:
    async with running() as kept:
        await kept.keeper.perform(effect(steering()))
        await kept.looks(1)
        kept.table.faults.add(Fault.UNREADABLE)
        await kept.until(lambda: kept.metric("in_force") == 0)
        applied = kept.table.calls["apply"]
        kept.table.faults.clear()
        await kept.until(lambda: kept.metric("in_force") == 1)
        assert kept.table.calls["apply"] > applied, "what is not known is written again"


async def test_the_counts_are_those_of_the_kernel() -> None:
    async with running() as kept:
        await kept.keeper.perform(effect(steering()))
        flows = {("tcp", 4): 7, ("tcp", 6): 0}
        kept.table.counts = AffinityCounts(flows=flows, steered=5, learned=9, observed=4, orphaned=3, refused=2)
        await kept.until(lambda: kept.metric("flows", protocol="tcp", family="ipv4") == 7)
        await kept.looks()
        assert kept.metric("flows", protocol="tcp", family="ipv6") == 0
        assert kept.metric("flows_max") == 100
        assert kept.metric("steered_total") == 5
        assert kept.metric("orphaned_total") == 3
        assert kept.metric("refused_total") == 2
        assert kept.metric("remembered_total", reason="new") == 9
        assert kept.metric("remembered_total", reason="observed") == 4
        # The table was made anew, and counts from the beginning.
        kept.table.counts = AffinityCounts(flows=flows, steered=1, orphaned=3, refused=2)
        await kept.until(lambda: kept.metric("steered_total") == 6)


async def test_a_full_map_is_said_once_until_it_has_room_again(caplog: pytest.LogCaptureFixture) -> None:
    def full() -> list[str]:
        said = [vars(record)["fields"] for record in caplog.records if "map is full" in record.message]
        return [f"{each['protocol']} {each['family']} {each['max_flows']}" for each in said]

    async def filled(tcp: int, sctp: int) -> None:
        kept.table.counts = AffinityCounts(flows={("tcp", 4): tcp, ("sctp", 6): sctp})
        await kept.looks()

    async with running() as kept:
        await kept.keeper.perform(effect(steering()))
        await filled(99, 0)
        assert full() == []
        await filled(100, 3)
        await filled(99, 100)
        await filled(100, 100)
        assert full() == ["tcp ipv4 100", "sctp ipv6 100"]
        await filled(90, 100)
        await filled(100, 100)
        assert full() == ["tcp ipv4 100", "sctp ipv6 100", "tcp ipv4 100"]


async def test_a_draining_target_without_packets_is_told_once() -> None:
    async with running() as kept:
        kept.packets = {5001: 7, 5002: 3, 5003: 1}
        await kept.keeper.perform(effect(steering(draining=(5001, 5002))))
        await kept.until(lambda: kept.events)
        await kept.looks(200)
        told = [mark for event in kept.events if isinstance(event, TargetsIdle) for mark in event.marks]
        assert sorted(told) == [5001, 5002]
        assert len(told) == len({*told})


async def test_packets_of_no_draining_target_are_not_read() -> None:
    async with running() as kept:
        await kept.keeper.perform(effect(steering()))
        await kept.looks()
        assert kept.readings == 0
        await kept.keeper.perform(effect(steering(draining=(5001,))))
        await kept.until(lambda: kept.readings)
        await kept.keeper.perform(effect(gone=("stream-a",)))
        await kept.looks(2)
        readings = kept.readings
        await kept.looks()
        assert kept.readings == readings


@pytest.mark.parametrize("remove", [False, True])
async def test_the_table_goes_only_where_that_is_asked_for(remove: bool) -> None:
    async with running() as kept:
        await kept.keeper.perform(effect(steering()))
        await kept.looks(1)
    await kept.keeper.close(remove=remove)
    assert (kept.table.held is None) is remove
    assert kept.table.calls["close"] == 1


async def test_a_table_that_cannot_be_removed_stops_nothing() -> None:
    kept = Kept()
    kept.table.faults.add(Fault.REFUSED)
    await kept.keeper.close(remove=True)
    assert kept.table.calls["close"] == 1


async def test_the_engine_is_told_when_the_kernel_refuses_and_when_it_takes_the_rules_again() -> None:
    async with running() as kept:
        kept.table.faults.add(Fault.REFUSED)
        await kept.keeper.perform(effect(steering("one")))
        await kept.until(lambda: kept.table.calls["apply"] > 2)
        assert kept.events == [AffinityReported(in_force=False)]
        kept.table.faults.clear()
        await kept.until(lambda: len(kept.events) > 1)
        assert kept.events[1:] == [AffinityReported(in_force=True)]


async def test_rules_that_are_taken_at_once_are_not_reported() -> None:
    async with running() as kept:
        await kept.keeper.perform(effect(steering("one")))
        await kept.until(lambda: kept.table.held is not None)
        await kept.looks()
        assert kept.events == []
        kept.table.faults.add(Fault.UNREADABLE)
        await kept.until(lambda: kept.events)
        assert kept.events[0] == AffinityReported(in_force=False)
