"""Actuators: carry out the engine's effects through the adapters, and return every result as events.

Three queues run in parallel, each strictly in order: the kernel's routes, rules and links; its neighbours; the
distributor. So a commit that takes milliseconds never delays a route, and the engine waits for none of them. An effect
that depends on another queue's success waits in the engine for that event.

At the end, with `withdraw_on_exit`, everything of ours is removed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Generic, TypeVar, assert_never

from lbguard.core.addr import Ip
from lbguard.core.effects import (
    AttachStream,
    CommitTables,
    FlushNeighbors,
    ForgetStream,
    ProbeNeighbors,
    ProgramRoutes,
    ProgramRules,
    PruneStreams,
    ResolveNeighbors,
    SetLinkDown,
    SetLinkUp,
    TuneLink,
)
from lbguard.core.events import (
    CommitDone,
    CommitFailed,
    DistributorLost,
    DistributorSeen,
    Event,
    KernelSnapshot,
    LinkSetDown,
    NeighborsProbed,
    RouteFailed,
    RuleFailed,
    StreamsPruned,
)
from lbguard.core.model import ROUTE_PROTOCOL, StreamSpec
from lbguard.distributor.base import CommitResult, Distributor, DistributorError
from lbguard.kernel.batches import NeighborFailure, Neighbors, NetlinkChannel, RouteTable
from lbguard.kernel.links import LinkOperations, NeighborTimers
from lbguard.service.build import make_mirror
from lbguard.settings.model import Settings
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.service.actuators")

T = TypeVar("T")

_NEWS_TURNS = 20
_NEWS_TURN_S = 0.001

KernelEffect = ProgramRoutes | ProgramRules | SetLinkDown | SetLinkUp
NeighborEffect = FlushNeighbors | ResolveNeighbors | ProbeNeighbors | TuneLink


@dataclass(frozen=True, slots=True, kw_only=True)
class PollDistributor:
    """Check whether tables were lost; with `read_back`, also read the active identifiers of each."""

    read_back: bool


DistributorEffect = AttachStream | CommitTables | ForgetStream | PruneStreams | PollDistributor


class WorkQueue(Generic[T]):
    """Queue of jobs that one task runs in order. Adding a job never blocks.

    When `limit` jobs wait, periodic ones (neighbour probes) are dropped. The engine bounds the others: it requests
    nothing twice before it has an answer.

    The results of consecutive jobs of the kind `together` are posted together, when the last of them is done.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[T], Awaitable[Sequence[Event]]],
        post: Callable[[Sequence[Event]], None],
        *,
        limit: int | None = None,
        together: type[object] = NoneType,
    ) -> None:
        self.name = name
        self.dropped = 0
        self._work = work
        self._post = post
        self._limit = limit
        self._together = together
        self._jobs: deque[T] = deque()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: T, *, droppable: bool = False) -> bool:
        """Add a job; false when the queue is full and the job was dropped."""
        if droppable and self._limit is not None and len(self._jobs) >= self._limit:
            self.dropped += 1
            return False
        self._jobs.append(job)
        self._arrived.set()
        return True

    async def run(self) -> None:
        """Run jobs until cancelled."""
        while True:
            while self._jobs:
                job = self._jobs.popleft()
                events = list(await self._work(job))
                while isinstance(job, self._together) and self._jobs and isinstance(self._jobs[0], self._together):
                    events += await self._work(self._jobs.popleft())
                if events:
                    self._post(events)
            self._arrived.clear()
            await self._arrived.wait()


class KernelActuator:
    """Actuator of routes, rules and links."""

    def __init__(self, channel: NetlinkChannel, links: LinkOperations) -> None:
        self._routes = RouteTable(channel)
        self._links = links

    async def perform(self, effect: KernelEffect) -> Sequence[Event]:
        """Carry out one effect; an operating error becomes a failure of all its requests."""
        match effect:
            case ProgramRoutes():
                try:
                    return await self._routes.program(effect)
                except OSError as error:
                    wanted = effect.put + effect.delete
                    return [RouteFailed(route=route, reason=str(error)) for route in wanted]
            case ProgramRules():
                try:
                    return await self._routes.program_rules(effect)
                except OSError as error:
                    return [RuleFailed(rule=rule, reason=str(error)) for rule in effect.add + effect.delete]
            case SetLinkDown():
                return [await self._set_down(effect)]
            case SetLinkUp():
                await self._set_up(effect)
                return []
            case _:
                assert_never(effect)

    async def _set_down(self, effect: SetLinkDown) -> LinkSetDown:
        try:
            outcome = await self._links.set_down(effect.link, effect.ifname)
        except OSError as error:
            outcome = LinkSetDown(link=effect.link, reason=str(error))
        what = "superseded link left up" if outcome.reason else "superseded link set down"
        _log.warning(what, extra=fields(link=effect.ifname, ifindex=effect.link.ifindex, reason=outcome.reason))
        return outcome

    async def _set_up(self, effect: SetLinkUp) -> None:
        reason = await self._links.set_up(effect.link, effect.ifname)
        what = "link could not be set up again" if reason else "link set up again: it is superseded no more"
        _log.warning(what, extra=fields(link=effect.ifname, ifindex=effect.link.ifindex, reason=reason))


class NeighborActuator:
    """Actuator of neighbour entries and timers. Results arrive through the mirror; `on_refused` receives refusals.

    The kernel has no request that changes an entry only if it is still the kernel's own. So an entry that another
    program created since the decision is left out right before execution: `foreign` returns that for an entry, by
    ifindex and address. Probes, which are not urgent, also wait briefly until the kernel's waiting notifications are
    read (`news_waits`). `report_probes`: report which entries the kernel was asked to verify.
    """

    def __init__(
        self,
        channel: NetlinkChannel,
        links: LinkOperations,
        timers: NeighborTimers,
        on_refused: Callable[[Sequence[NeighborFailure]], None],
        foreign: Callable[[int, Ip], bool] = lambda ifindex, ip: False,
        news_waits: Callable[[], bool] = lambda: False,
        *,
        report_probes: bool = False,
    ) -> None:
        self._report_probes = report_probes
        self._on_refused = on_refused
        self._neighbors = Neighbors(channel)
        self._links = links
        self._timers = timers
        self._foreign = foreign
        self._news_waits = news_waits

    async def perform(self, effect: NeighborEffect) -> Sequence[Event]:
        """Carry out one effect."""
        failures: list[NeighborFailure] = []
        probed: tuple[tuple[int, Ip], ...] = ()
        try:
            match effect:
                case FlushNeighbors():
                    failures = await self._neighbors.flush(replace(effect, entries=self._own(effect.entries)))
                case ResolveNeighbors():
                    failures = await self._neighbors.resolve(replace(effect, entries=self._own(effect.entries)))
                case ProbeNeighbors():
                    await self._wait_for_news()
                    own = self._own(effect.entries)
                    failures = await self._neighbors.probe(replace(effect, entries=own))
                    refused = {(failure.ifindex, failure.ip) for failure in failures}
                    probed = tuple(entry for entry in own if entry not in refused) if self._report_probes else ()
                case TuneLink():
                    reason = await self._links.tune(effect.link.ifindex, effect.ifname, self._timers)
                    if reason:
                        _log.warning("link not tuned", extra=fields(link=effect.ifname, reason=reason))
                case _:
                    assert_never(effect)
        except OSError as error:
            _log.warning("neighbour operation failed", extra=fields(reason=str(error)))
        if failures:
            self._on_refused(failures)
        return [NeighborsProbed(entries=probed)] if probed else []

    async def _wait_for_news(self) -> None:
        for _ in range(_NEWS_TURNS):
            if not self._news_waits():
                return
            await asyncio.sleep(_NEWS_TURN_S)

    def _own(self, entries: tuple[tuple[int, Ip], ...]) -> tuple[tuple[int, Ip], ...]:
        return tuple(entry for entry in entries if not self._foreign(*entry))


class DistributorActuator:
    """Actuator of the streams' tables. `attached`: the managed streams; `on_commit` receives every commit.

    A stream whose removal is refused would still match its VIPs, and the engine does not request it again: so every
    poll retries it.
    """

    def __init__(self, distributor: Distributor, on_commit: Callable[[CommitResult], None]) -> None:
        self.attached: dict[str, StreamSpec] = {}
        self._distributor = distributor
        self._on_commit = on_commit
        self._reported: dict[str, str] = {}
        self._leaving: dict[str, StreamSpec] = {}

    async def perform(self, effect: DistributorEffect) -> Sequence[Event]:
        """Carry out one effect."""
        match effect:
            case AttachStream():
                return [await self._attach(effect.stream)]
            case CommitTables():
                results = await self._commit(effect)
                return [
                    self._failed(result.stream, result.error)
                    if result.error
                    else CommitDone(stream=table.stream.name, registered=table.registered, active=table.active)
                    for table, result in zip(effect.tables, results, strict=True)
                ]
            case ForgetStream():
                await self._forget(effect.stream)
                return []
            case PruneStreams():
                return await self._prune(effect.known)
            case PollDistributor():
                return await self._poll(read_back=effect.read_back)
            case _:
                assert_never(effect)

    async def _attach(self, stream: StreamSpec) -> Event:
        self._leaving.pop(stream.name, None)
        try:
            await self._distributor.attach(stream)
            active = await self._distributor.read_active(stream)
        except (DistributorError, OSError) as error:
            return self._failed(stream.name, str(error))
        self.attached[stream.name] = stream
        self._reported.pop(stream.name, None)
        return DistributorSeen(stream=stream.name, active=active)

    async def _commit(self, effect: CommitTables) -> Sequence[CommitResult]:
        try:
            results = await self._distributor.commit(effect.tables)
        except (DistributorError, OSError) as error:
            results = [CommitResult(stream=table.stream.name, error=str(error)) for table in effect.tables]
        for result in results:
            if not result.error:
                self._reported.pop(result.stream, None)
            self._on_commit(result)
        return results

    async def _forget(self, stream: StreamSpec) -> None:
        self.attached.pop(stream.name, None)
        self._leaving[stream.name] = stream
        try:
            await self._distributor.detach(stream, withdraw=True)
        except (DistributorError, OSError) as error:
            reason = str(error)
            if self._reported.get(stream.name) != reason:
                self._reported[stream.name] = reason
                _log.warning("stream not removed from the distributor", extra=fields(stream=stream.name, reason=reason))
        else:
            del self._leaving[stream.name]
            self._reported.pop(stream.name, None)

    async def _poll(self, *, read_back: bool) -> Sequence[Event]:
        events: list[Event] = []
        for stream in list(self._leaving.values()):
            await self._forget(stream)
        try:
            lost = await self._distributor.lost_streams()
        except (DistributorError, OSError) as error:
            _log.warning("distributor cannot be looked at", extra=fields(reason=str(error)))
            return []
        for name, reason in lost.items():
            if name in self.attached:
                _log.warning("distributor table lost", extra=fields(stream=name, reason=reason))
                events.append(DistributorLost(stream=name, reason=reason))
        if read_back:
            for name, stream in list(self.attached.items()):
                if name not in lost:
                    try:
                        active = await self._distributor.read_active(stream)
                    except (DistributorError, OSError) as error:
                        events.append(DistributorLost(stream=name, reason=str(error)))
                    else:
                        events.append(DistributorSeen(stream=name, active=active))
        return events

    async def _prune(self, known: Sequence[str]) -> Sequence[Event]:
        try:
            for name in await self._distributor.prune(known):
                _log.warning("stream of an earlier run removed", extra=fields(stream=name, reason="not_listed"))
        except (DistributorError, OSError) as error:
            _log.warning("leftovers not removed", extra=fields(reason=str(error)))
            return []
        return [StreamsPruned()]

    def _failed(self, name: str, reason: str) -> CommitFailed:
        """Log a failure once, not at every retry."""
        if self._reported.get(name) != reason:
            self._reported[name] = reason
            _log.error("distributor failed", extra=fields(stream=name, reason=reason))
        return CommitFailed(stream=name, reason=reason)


_log = logging.getLogger("lbguard.service.actuators")


async def withdraw_everything(
    settings: Settings, distributor: Distributor, streams: Iterable[StreamSpec], kernel: KernelActuator
) -> None:
    """Withdraw every target, then remove our rules and routes: first no packet is marked, then no route is needed.

    The objects to remove are read from the kernel again, since a change may be in progress.

    Raises:
        OSError: the kernel cannot be read.
    """
    for stream in streams:
        try:
            await distributor.detach(stream, withdraw=True)
        except (DistributorError, OSError) as error:
            _log.error("stream not withdrawn", extra=fields(stream=stream.name, reason=str(error)))
    try:
        await distributor.prune(())
    except (DistributorError, OSError) as error:
        _log.error("leftovers not removed", extra=fields(reason=str(error)))
    held = await _read_kernel(settings)
    rules = tuple(rule for rule in held.rules if rule.protocol == ROUTE_PROTOCOL)
    routes = tuple(route for route in held.routes if route.protocol == ROUTE_PROTOCOL)
    outcome = [*await kernel.perform(ProgramRules(delete=rules)), *await kernel.perform(ProgramRoutes(delete=routes))]
    refused = [event.reason for event in outcome if isinstance(event, RuleFailed | RouteFailed)]
    if refused:
        _log.error("rules or routes not removed", extra=fields(count=len(refused), first=refused[0]))
    _log.info("withdrawn", extra=fields(rules=len(rules), routes=len(routes)))


async def _read_kernel(settings: Settings) -> KernelSnapshot:
    found: asyncio.Future[KernelSnapshot] = asyncio.get_running_loop().create_future()

    def take(events: Sequence[Event], _: float) -> None:
        for event in events:
            if isinstance(event, KernelSnapshot) and not found.done():
                found.set_result(event)

    mirror = make_mirror(settings, take)
    await mirror.start()
    try:
        return await found
    finally:
        await mirror.stop()
