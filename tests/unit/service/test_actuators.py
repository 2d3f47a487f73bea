"""Lanes, and how the outcome of every adapter becomes events."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.model import Route, RouteKind, Rule, StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult
from lbguard.kernel.batches import NeighborFailure, NetlinkChannel
from lbguard.kernel.links import LinkOperations, NeighborTimers
from lbguard.kernel.requests import KernelRequests
from lbguard.service.actuators import (
    DistributorActuator,
    DistributorEffect,
    KernelActuator,
    NeighborActuator,
    PollDistributor,
    WorkQueue,
)
from tests.fakes.distributor import FakeDistributor
from tests.unit.kernel.fake_kernel import FakeKernel, eventually

A, B = StreamSpec(name="a"), StreamSpec(name="b", identifier_offset=6000)
ROUTES = tuple(Route(5001 + n, True, RouteKind.UNICAST, 2048, bytes([10, 0, 0, n]), 3) for n in range(3))
RULES = tuple(Rule(5001 + n, True, 5001 + n) for n in range(2))
NO_LINKS = LinkOperations(KernelRequests())
"""No request is made of it here; tests/netns/kernel/test_links.py has those that are."""
TIMERS = NeighborTimers(
    retrans_ms=200, delay_probe_ms=500, base_reachable_ms=10_000, ucast_probes=1, mcast_probes=15, mcast_reprobes=4
)


def table(stream: StreamSpec, *active: int) -> StreamTable:
    return StreamTable(stream=stream, registered=frozenset({1, 2}), active=frozenset(active))


@asynccontextmanager
async def running(*lanes: WorkQueue[str]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(lane.run()) for lane in lanes]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- lanes


async def test_a_lane_does_one_job_after_the_other_in_order() -> None:
    done: list[str] = []
    posted: list[ev.Event] = []

    async def work(job: str) -> Sequence[ev.Event]:
        done.append(f"begin {job}")
        await asyncio.sleep(0)
        done.append(f"end {job}")
        return [ev.SourceLost(reason=job)] if job != "quiet" else ()

    lane = WorkQueue("lane", work, posted.extend)
    assert all(lane.put(job) for job in ("one", "quiet", "two"))
    assert len(lane) == 3
    async with running(lane):
        await eventually(lambda: len(done) == 6)
        lane.put("three")
        await eventually(lambda: len(done) == 8)
    assert done == [f"{when} {job}" for job in ("one", "quiet", "two", "three") for when in ("begin", "end")]
    assert posted == [ev.SourceLost(reason=job) for job in ("one", "two", "three")]


async def test_what_waits_together_is_told_of_at_once_and_nothing_else_is() -> None:
    posted: list[Sequence[ev.Event]] = []

    async def work(job: str | int) -> Sequence[ev.Event]:
        await asyncio.sleep(0)
        return [ev.SourceLost(reason=str(job))] if job != "quiet" else ()

    lane: WorkQueue[str | int] = WorkQueue("lane", work, posted.append, together=int)
    for job in ("one", 2, 3, "four", "five", "quiet", 7, 8, 9):
        lane.put(job)
    task = asyncio.create_task(lane.run())
    await eventually(lambda: len(posted) == 5)
    lane.put(10)
    await eventually(lambda: len(posted) == 6)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    told = [[event.reason for event in events if isinstance(event, ev.SourceLost)] for events in posted]
    assert told == [["one"], ["2", "3"], ["four"], ["five"], ["7", "8", "9"], ["10"]]


async def test_a_full_lane_drops_its_own_work_alone() -> None:
    async def never(job: str) -> Sequence[ev.Event]:
        await asyncio.Event().wait()
        return ()

    bounded, free = WorkQueue("neighbors", never, lambda _: None, limit=2), WorkQueue("kernel", never, lambda _: None)
    async with running(bounded, free):
        assert [bounded.put("x", droppable=True) for _ in range(3)] == [True, True, False]
        assert bounded.put("what does not come again")
        assert all(free.put("x") for _ in range(1000))
        assert (bounded.dropped, free.dropped) == (1, 0)


async def test_a_lane_that_hangs_delays_no_other() -> None:
    distributor = FakeDistributor()
    distributor.fault("hang")
    actuator = DistributorActuator(distributor, lambda _: None)
    events: list[ev.Event] = []
    slow: WorkQueue[DistributorEffect] = WorkQueue("distributor", actuator.perform, events.extend)
    kernel = FakeKernel()
    quick: WorkQueue[fx.ProgramRoutes | fx.ProgramRules | fx.SetLinkDown] = WorkQueue(
        "kernel", KernelActuator(NetlinkChannel(kernel), NO_LINKS).perform, events.extend
    )
    tasks = [asyncio.create_task(slow.run()), asyncio.create_task(quick.run())]
    slow.put(fx.AttachStream(stream=A))
    for route in ROUTES:
        quick.put(fx.ProgramRoutes(replace=(route,)))
    await eventually(lambda: len(events) == 3)
    assert events == [ev.RoutesProgrammed(added=(route,)) for route in ROUTES]
    distributor.release.set()
    await eventually(lambda: len(events) == 4)
    assert events[3] == ev.DistributorSeen(stream="a", active=frozenset())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    kernel.close()


async def test_an_unexpected_error_ends_the_lane_and_is_not_swallowed() -> None:
    distributor = FakeDistributor()
    distributor.fault("unexpected")
    lane: WorkQueue[DistributorEffect] = WorkQueue(
        "distributor", DistributorActuator(distributor, lambda _: None).perform, lambda _: None
    )
    lane.put(fx.AttachStream(stream=A))
    with pytest.raises(ValueError, match="a fault of the program"):
        await asyncio.wait_for(lane.run(), 20)


# --- the distributor's


class Tables:
    """A fake distributor behind the actuator, and what the actuator told."""

    def __init__(self) -> None:
        self.distributor = FakeDistributor()
        self.results: list[CommitResult] = []
        self.actuator = DistributorActuator(self.distributor, self.results.append)

    async def perform(self, effect: DistributorEffect) -> list[ev.Event]:
        return list(await self.actuator.perform(effect))

    async def attached(self, *streams: StreamSpec) -> "Tables":
        for stream in streams:
            await self.perform(fx.AttachStream(stream=stream))
        return self

    async def look(self, *, read_back: bool = False) -> list[ev.Event]:
        return await self.perform(PollDistributor(read_back=read_back))


async def test_attach_and_read_back() -> None:
    tables = Tables()
    tables.distributor.tables["a"] = (frozenset({1, 2}), frozenset({2}))
    assert await tables.perform(fx.AttachStream(stream=A)) == [ev.DistributorSeen(stream="a", active=frozenset({2}))]
    assert tables.actuator.attached == {"a": A}


@pytest.mark.parametrize("fault", ["attach", "read_active"])
async def test_a_failed_attach_is_told_as_a_failure(fault: str) -> None:
    tables = Tables()
    tables.distributor.fault(fault)
    assert await tables.perform(fx.AttachStream(stream=A)) == [ev.CommitFailed(stream="a", reason=f"{fault} refused")]
    assert tables.actuator.attached == {}


async def test_one_refused_table_fails_alone() -> None:
    tables = await Tables().attached(A, B)
    tables.distributor.fault("refuse_table")
    registered = frozenset({1, 2})
    assert await tables.perform(fx.CommitTables(tables=(table(A, 1), table(B, 2)))) == [
        ev.CommitFailed(stream="a", reason="refused"),
        ev.CommitDone(stream="b", registered=registered, active=frozenset({2})),
    ]
    assert [(result.stream, result.error) for result in tables.results] == [("a", "refused"), ("b", "")]


async def test_a_commit_that_fails_as_a_whole_fails_for_each() -> None:
    tables = await Tables().attached(A, B)
    tables.distributor.fault("commit")
    assert await tables.perform(fx.CommitTables(tables=(table(A, 1), table(B, 2)))) == [
        ev.CommitFailed(stream=name, reason="commit refused") for name in "ab"
    ]
    assert len(tables.results) == 2


async def test_a_failure_is_said_once_and_again_after_a_success(caplog: pytest.LogCaptureFixture) -> None:
    tables = await Tables().attached(A)
    commit = fx.CommitTables(tables=(table(A, 1),))
    with caplog.at_level(logging.ERROR):
        for fails in (True, True, False, True):
            if fails:
                tables.distributor.fault("commit")
            await tables.perform(commit)
    assert len(caplog.records) == 2


async def test_a_look_tells_of_lost_tables_of_attached_streams() -> None:
    tables = await Tables().attached(A, B)
    assert await tables.look() == []
    tables.distributor.lose("a", "removed")
    assert await tables.look() == [ev.DistributorLost(stream="a", reason="removed")]
    assert await tables.look(read_back=True) == [
        ev.DistributorLost(stream="a", reason="removed"),
        ev.DistributorSeen(stream="b", active=frozenset()),
    ]
    await tables.attached(A)
    assert await tables.look() == []


async def test_a_table_that_cannot_be_read_back_is_lost() -> None:
    tables = await Tables().attached(A)
    tables.distributor.fault("read_active")
    assert await tables.look(read_back=True) == [ev.DistributorLost(stream="a", reason="read_active refused")]


async def test_a_look_that_fails_tells_nothing() -> None:
    tables = await Tables().attached(A)
    tables.distributor.lose("a")
    tables.distributor.fault("lost_streams")
    assert await tables.look() == []
    assert await tables.look() == [ev.DistributorLost(stream="a", reason="removed")]


async def test_a_forgotten_stream_is_removed_and_looked_at_no_more() -> None:
    tables = await Tables().attached(A, B)
    assert await tables.perform(fx.ForgetStream(stream=A)) == []
    assert set(tables.distributor.tables) == {"b"}
    assert await tables.look(read_back=True) == [ev.DistributorSeen(stream="b", active=frozenset())]


async def test_a_refused_removal_is_tried_again_at_every_look(caplog: pytest.LogCaptureFixture) -> None:
    tables = await Tables().attached(A)
    with caplog.at_level(logging.WARNING):
        tables.distributor.fault("detach")
        assert await tables.perform(fx.ForgetStream(stream=A)) == []
        tables.distributor.fault("detach")
        await tables.look()
        assert "a" in tables.distributor.tables
        await tables.look()
        assert "a" not in tables.distributor.tables
        calls = len(tables.distributor.calls)
        await tables.look()
    assert tables.distributor.calls[calls:] == ["lost_streams"]
    assert len(caplog.records) == 1


async def test_a_stream_that_is_listed_again_is_removed_no_more() -> None:
    tables = await Tables().attached(A)
    tables.distributor.fault("detach")
    await tables.perform(fx.ForgetStream(stream=A))
    await tables.attached(A)
    await tables.look()
    assert "a" in tables.distributor.tables


async def test_leftovers_are_pruned_and_a_failure_answers_nothing() -> None:
    tables = await Tables().attached(A)
    tables.distributor.tables["old"] = (frozenset(), frozenset())
    tables.distributor.fault("prune")
    prune = fx.PruneStreams(known=("a",))
    assert await tables.perform(prune) == []
    assert await tables.perform(prune) == [ev.StreamsPruned()]
    assert set(tables.distributor.tables) == {"a"}


# --- the kernel's


async def test_each_refused_route_is_told_and_the_others_stand() -> None:
    kernel = FakeKernel()
    kernel.refusals = {1: (errno.ENOBUFS, "no way")}
    actuator = KernelActuator(NetlinkChannel(kernel), NO_LINKS)
    assert await actuator.perform(fx.ProgramRoutes(replace=ROUTES[:2], delete=ROUTES[2:])) == [
        ev.RoutesProgrammed(added=ROUTES[:1], deleted=ROUTES[2:]),
        ev.RouteFailed(route=ROUTES[1], reason="ENOBUFS: no way"),
    ]
    kernel.close()


async def test_a_broken_socket_fails_all_that_was_asked_for_and_nothing_after() -> None:
    kernel = FakeKernel()
    actuator = KernelActuator(NetlinkChannel(kernel), NO_LINKS)
    kernel.fault("break_socket")
    outcome = await actuator.perform(fx.ProgramRoutes(replace=ROUTES))
    assert [event.route for event in outcome if isinstance(event, ev.RouteFailed)] == list(ROUTES)
    kernel.fault("break_socket")
    outcome = await actuator.perform(fx.ProgramRules(add=RULES))
    assert [event.rule for event in outcome if isinstance(event, ev.RuleFailed)] == list(RULES)
    assert await actuator.perform(fx.ProgramRules(add=RULES)) == [ev.RuleSeen(rule=rule) for rule in RULES]
    kernel.close()


async def test_refused_neighbours_are_told_to_who_counts_them() -> None:
    kernel = FakeKernel()
    refused: list[NeighborFailure] = []
    actuator = NeighborActuator(NetlinkChannel(kernel), NO_LINKS, TIMERS, refused.extend)
    kernel.refusals = {1: (errno.EPERM, "")}
    entries = tuple((3, bytes([10, 0, 0, n])) for n in range(3))
    for effect in (fx.ResolveNeighbors(entries=entries), fx.FlushNeighbors(entries=entries)):
        assert await actuator.perform(effect) == []
    assert [(failure.ip, failure.reason[:5]) for failure in refused] == [(bytes([10, 0, 0, 1]), "EPERM")]
    kernel.close()


async def test_entries_that_somebody_made_since_the_decision_are_left_out() -> None:
    kernel = FakeKernel()
    made: set[tuple[int, bytes]] = set()
    heard: list[bool] = []

    def news_waits() -> bool:
        made.add((3, bytes([10, 0, 0, 2])))
        heard.append(len(heard) < 2)
        return heard[-1]

    actuator = NeighborActuator(
        NetlinkChannel(kernel),
        NO_LINKS,
        TIMERS,
        lambda failures: None,
        lambda ifindex, ip: (ifindex, ip) in made,
        news_waits,
    )
    entries = tuple((3, bytes([10, 0, 0, n])) for n in range(3))
    for effect in (
        fx.ProbeNeighbors(entries=entries),
        fx.ResolveNeighbors(entries=entries),
        fx.FlushNeighbors(entries=entries),
    ):
        await actuator.perform(effect)
    assert heard == [True, True, False]
    assert [len(batch) for batch in kernel.batches] == [2, 2, 2]
    kernel.close()


@pytest.mark.parametrize("reported", [True, False])
async def test_probes_that_reached_the_kernel_are_reported_where_they_are_awaited(reported: bool) -> None:
    kernel = FakeKernel()
    entries = ((3, bytes([10, 0, 0, 1])), (3, bytes([10, 0, 0, 2])))
    actuator = NeighborActuator(
        NetlinkChannel(kernel),
        NO_LINKS,
        TIMERS,
        lambda failures: None,
        lambda ifindex, ip: ip == bytes([10, 0, 0, 2]),
        report_probes=reported,
    )
    events = await actuator.perform(fx.ProbeNeighbors(entries=entries))
    assert events == ([ev.NeighborsProbed(entries=entries[:1])] if reported else [])
    assert await actuator.perform(fx.FlushNeighbors(entries=entries)) == []
    kernel.close()
