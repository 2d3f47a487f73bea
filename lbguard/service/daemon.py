"""Composition root of `lbguard run`: connects the adapters with the engine, and runs the service from start to end."""

import asyncio
import gc
import importlib
import logging
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from lbguard import __version__
from lbguard.api.feeds import AvailabilityState, DecisionLog
from lbguard.api.verdicts.queue import VerdictQueue
from lbguard.core.effects import Announce, AttachStream, ParkPackets, SolicitNeighbors, SteerFlows
from lbguard.core.events import Event, HoldsRemembered, OpenHold, RouteFailed, SourceLost
from lbguard.core.model import Decision, Route, TargetKey
from lbguard.core.status import GuardStatus
from lbguard.distributor.base import CommitResult, Distributor
from lbguard.distributor.nftables.counters import FallbackCounters
from lbguard.kernel.batches import NetlinkChannel
from lbguard.kernel.links import LinkOperations
from lbguard.kernel.requests import KernelRequests
from lbguard.recording.recorder import ServiceRecording
from lbguard.service.actuators import (
    DistributorActuator,
    DistributorEffect,
    KernelActuator,
    KernelEffect,
    NeighborActuator,
    NeighborEffect,
    PollDistributor,
    WorkQueue,
    withdraw_everything,
)
from lbguard.service.build import (
    Source,
    SourceEvent,
    make_announcer,
    make_distributor,
    make_mirror,
    make_source,
    neighbor_timers,
)
from lbguard.service.control import OperatorControl
from lbguard.service.event_reporter import EventReporter
from lbguard.service.foreign_routes import LocalVips, TargetRoutes
from lbguard.service.garbage import GarbageCalmer
from lbguard.service.hold_file import HoldFile
from lbguard.service.override_file import OverrideFile
from lbguard.service.packet_counts import PacketCounts, read_traffic
from lbguard.service.runner import Runner
from lbguard.settings.model import Settings
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.guard import Metrics
from lbguard.telemetry.metrics.interface_counts import labels_of
from lbguard.telemetry.tracing import make_trace_export

if TYPE_CHECKING:
    from lbguard.nsm import WatchEvent
    from lbguard.service.affinity import FlowAffinity
    from lbguard.service.build_nsm import MeshEvents
    from lbguard.service.parking import PacketParking
    from lbguard.service.servers import Servers
    from lbguard.sources.interposer.source import InterposerSource
    from lbguard.sources.kernel import KernelSource

_log = logging.getLogger("lbguard.service.daemon")

_POLL_S = 1.0
_POLL_BEFORE_READY_S = 0.01
_COUNT_EVERY = 5
_STOP_LIMIT_S = 0.8
_WITHDRAW_LIMIT_S = 10.0
_SERVERS_LATEST_S = 1.0
_SERVERS_LATEST_WHILE_ADOPTING_S = 5.0


class Daemon:
    """One running service. `make` builds its distributor."""

    def __init__(self, settings: Settings, make: Callable[[Settings], Distributor] = make_distributor) -> None:
        self.settings = settings
        self._recording = ServiceRecording(settings)
        self.engine = self._recording.make_engine()
        self.decision_log = DecisionLog()
        labels = {"trench": settings.nsp.trench, "conduit": settings.nsp.conduit}
        place = {name: value for name, value in labels.items() if value}
        self.metrics = Metrics(CollectorRegistry(), place, settings.metrics.per_target)
        self._traces = make_trace_export(settings.tracing.endpoint, place) if settings.tracing.endpoint else None
        self.availability = AvailabilityState()
        self._enforcing = settings.mode == "enforce"
        self._event_reporter = EventReporter(
            self.metrics,
            self.decision_log,
            observe=not self._enforcing,
            inbox_depth=lambda: self.runner.inbox_depth,
            availability=self.availability,
            tracer=None if self._traces is None else self._traces.incidents,
        )
        self._stop = asyncio.Event()
        self._started_at = time.monotonic()
        self._ready_told = False
        self.started = False
        self.stuck = False
        self._channel = NetlinkChannel()
        self._requests = KernelRequests()
        self._links = links = LinkOperations(self._requests)
        self._distributor = make(settings)
        self._packets = PacketCounts(
            self.metrics,
            FallbackCounters(parking=settings.parks_packets),
            on_read=self._recording.packets_read,
        )
        self._announcer = make_announcer(settings, self.engine.holds_address)
        self._kernel = KernelActuator(self._channel, links)
        neighbors = NeighborActuator(
            self._channel,
            links,
            neighbor_timers(settings),
            self._event_reporter.neighbors_refused,
            self.engine.foreign_neighbor,
            lambda: self.runner.inbox_depth > 0 or not self.mirror.caught_up(),
        )
        self._tables = DistributorActuator(self._distributor, self._committed)
        kernel_queue: WorkQueue[KernelEffect] = WorkQueue("kernel", self._kernel.perform, self._post)
        neighbor_queue: WorkQueue[NeighborEffect] = WorkQueue("neighbors", neighbors.perform, self._post, limit=256)
        # All streams are adopted in one decision: one decision for each would take longer than reading their tables.
        self._distributor_queue: WorkQueue[DistributorEffect] = WorkQueue(
            "distributor", self._tables.perform, self._post, together=AttachStream
        )
        self._affinity = self._make_affinity()
        affinity_queue: WorkQueue[SteerFlows] | None = None
        self._parking = self._make_parking()
        self._work_queues: list[WorkQueue[Any]] = [kernel_queue, neighbor_queue, self._distributor_queue]
        if self._affinity is not None:
            affinity_queue = WorkQueue("affinity", self._affinity.perform, self._post)
            self._work_queues.append(affinity_queue)
        self.mirror = make_mirror(settings, self._observe_kernel)
        self.runner = Runner(
            self.engine,
            announce=self._announce,
            kernel=kernel_queue,
            neighbors=neighbor_queue,
            distributor=self._distributor_queue,
            event_reporter=self._event_reporter,
            affinity=affinity_queue,
            park=self._park,
            resync=self.mirror.request_resync,
            caught_up=self.mirror.caught_up,
            answer=lambda effect: self.verdicts.answered(effect),
            answer_operator=lambda effect: self.control.answered(effect),
            inbox_limit=settings.kernel.inbox_limit,
        )
        self.verdicts = VerdictQueue(self.runner.post_verdict)
        self._hold_file = HoldFile(settings.socket)
        self.control = OperatorControl(self.engine, self.runner.post, OverrideFile(settings.socket))
        self._routes = TargetRoutes()
        self._interposer: InterposerSource | None = None
        self._kernel_source: KernelSource | None = None
        self._source = self._make_source()
        self._local_vips = LocalVips(lambda: [stream.spec for stream in self.engine.streams()])
        self._servers: Servers | None = None
        self._servers_opened = asyncio.Event()
        self._mesh: MeshEvents | None = None

    # Parts that are imported only where they are used, because every start would wait for them

    def _make_affinity(self) -> "FlowAffinity | None":
        if not self.settings.steers_flows:
            return None
        from lbguard.service.affinity import make_affinity

        return make_affinity(self.settings, self.metrics, self._packets.read_marks, self._post)

    def _make_parking(self) -> "PacketParking | None":
        if not self.settings.parks_packets:
            return None
        from lbguard.service.parking import PacketParking

        return PacketParking(self.settings, self.metrics, self._channel, self._requests)

    def _make_source(self) -> Source | None:
        settings = self.settings
        if settings.source not in {"interposer", "kernel"}:
            return make_source(settings, self._observe_source, self._routes_in_force)
        from lbguard.service.build_interposer import make_interposer_source, make_kernel_source

        if settings.source == "interposer":
            self._interposer = make_interposer_source(
                settings, self._observe_source, self.engine, lambda: self.runner.inbox_depth, self._routes
            )
            return self._interposer
        self._kernel_source = make_kernel_source(settings, self._observe_source, self.engine, self._routes)
        return self._kernel_source

    # Queries of the API and of the health checks

    async def status(self) -> GuardStatus:
        """Return the whole current state; events are processed while it is built."""
        for status in self.engine.status_in_parts(time.monotonic()):
            if status is not None:
                affinity = None if self._affinity is None else self._affinity.status()
                return replace(self._local_vips.add_to(status), affinity=affinity)
            await asyncio.sleep(0)
        raise AssertionError("a status that never ends")

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        """Return the last decisions with wall time, oldest first; of one target, or (None) of all."""
        return self.decision_log.last(target, limit)

    def unready_reason(self) -> str:
        """Return why the service is not ready; empty when it is."""
        engine = self.engine
        if self._interposer is not None and self._interposer.problem:
            return f"calls_not_taken: {self._interposer.problem}"
        if not engine.in_sync:
            return f"kernel_not_in_sync: {engine.sync_reason}"
        if not engine.running:
            return f"source_not_read: {engine.source_reason}"
        waiting = [stream.spec.name for stream in engine.streams() if not (stream.adopted or stream.removed)]
        if waiting:
            return f"tables_not_read: {', '.join(waiting)}"
        return (
            f"socket_not_served: {self._servers.problem}" if self._servers is not None and self._servers.problem else ""
        )

    # Life

    async def run(self) -> None:
        """Serve until a signal ends it.

        Raises:
            ExceptionGroup: a required part failed.
            StartError, OSError: it could not start.
        """
        try:
            await self._start()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(queue.run()) for queue in self._work_queues]
                parts = (self.runner.run(), self.mirror.wait(), self._poll(), self._local_vips.run())
                tasks += map(group.create_task, parts)
                engine = self.engine
                keep = self._hold_file.keep(self._open_holds, engine.subnets_to_remember, engine.open_drains)
                tasks.append(group.create_task(keep))
                if self.settings.control.enabled:
                    tasks.append(group.create_task(self.control.keep()))
                if self.settings.mode != "observe":
                    tasks.append(group.create_task(self._count_packets()))
                if self._affinity is not None:
                    tasks.append(group.create_task(self._affinity.run()))
                if self._parking is not None:
                    tasks.append(group.create_task(self._parking.run()))
                if self.settings.nsm.enabled:
                    tasks.append(group.create_task(self._follow_mesh()))
                if self._source is not None:
                    tasks.append(group.create_task(self._source.run()))
                await self._stop.wait()
                _log.info("stopping", extra=fields(withdraw=self.settings.withdraw_on_exit))
                for task in tasks:
                    task.cancel()
        finally:
            await self._shut_down()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        if self._source is None:
            self._observe_source(SourceLost(reason="targets_file (LBGUARD_TARGETS_FILE) is not set"))
            _log.error("no targets: set targets_file (LBGUARD_TARGETS_FILE), or source to another kind")
        self._recording.start()
        holds = self._hold_file.load(time.monotonic())
        if holds:
            _log.info("open holds of an earlier run go on", extra=fields(targets=len(holds)))
        subnets, drains = self._hold_file.subnets, self._hold_file.drains
        if drains:
            _log.info("drains of an earlier run go on", extra=fields(targets=len(drains)))
        overrides = self.control.load(time.monotonic(), go_on=self.settings.control.enabled)
        if overrides:
            _log.info("overrides of an earlier run go on", extra=fields(targets=len(overrides)))
        if holds or subnets or drains or overrides:
            remembered = HoldsRemembered(holds=holds, subnets=subnets, drains=drains, overrides=overrides)
            self.runner.post((remembered,))
        await self.mirror.start()
        # The collector was off until here (see `cli_run.run`); objects created meanwhile stay, and it does not traverse
        # them.
        gc.freeze()
        gc.enable()
        self.started = True
        _log.info("started", extra=fields(version=__version__, mode=self.settings.mode))

    async def _shut_down(self) -> None:
        await self.mirror.stop()
        self.runner.flush()
        if self._announcer is not None:
            self._announcer.close()
        # Only a requested stop withdraws: a fault must not end the data path.
        withdraw = self.settings.withdraw_on_exit and self._enforcing and self._stop.is_set()
        try:
            async with asyncio.timeout(_WITHDRAW_LIMIT_S if withdraw else _STOP_LIMIT_S):
                if self._servers is not None:
                    await self._servers.close()
                if withdraw:
                    streams = list(self._tables.attached.values())
                    try:
                        await withdraw_everything(self.settings, self._distributor, streams, self._kernel)
                    except OSError as error:
                        _log.error("rules and routes not removed", extra=fields(reason=str(error)))
                    await self._packets.remove()
                    await self._links.restore()
                if (holds := self._open_holds()) is not None:
                    now, left = time.monotonic(), (holds, self.engine.subnets_to_remember())
                    holds, subnets = ((), ()) if withdraw else left
                    drains = () if withdraw else self.engine.open_drains(now)
                    await asyncio.to_thread(self._hold_file.save, holds, now, subnets, drains)
                if self._affinity is not None:
                    await self._affinity.close(remove=withdraw)
                await self._distributor.close()
                await self._packets.close()
                if self._traces is not None:
                    await asyncio.to_thread(self._traces.close)
        except TimeoutError:
            self.stuck = True
            _log.error("something hangs, and is left behind", extra=fields(withdrawing=withdraw))
        await self._recording.close()
        self._channel.close()
        self._requests.close()
        _log.info("stopped")

    def _open_holds(self) -> Sequence[OpenHold] | None:
        """Return the open holds; None while only those of an earlier run are known."""
        return self.engine.open_holds(time.monotonic()) if self.engine.running else None

    def _reload(self) -> None:
        _log.info("reloading targets")
        if self._source is not None:
            self._source.reload()
        self.mirror.request_reconcile()

    async def _poll(self) -> None:
        """Poll the parts that send no notifications: tables replaced by other programs, gauges, health."""
        rounds = 0
        interval_s = self.settings.kernel.reconcile_interval
        every = max(1, round(interval_s / _POLL_S))
        while True:
            await self._report_health()
            # One failing stream keeps the service unready, but the others are served.
            if self._servers is not None:
                rounds += 1
                if not len(self._distributor_queue):
                    self._distributor_queue.put(PollDistributor(read_back=interval_s > 0 and rounds % every == 0))
                self._record_counts()
                self.runner.post(read_traffic(self.engine.links_facing_targets()))
            await asyncio.sleep(_POLL_S if self._servers is not None else _POLL_BEFORE_READY_S)

    async def _count_packets(self) -> None:
        """Maintain the packet counters, in a separate task: nftables must not delay the heartbeat.

        They start after the first commits, which write their rules twice if nftables changes meanwhile.
        """
        await self._servers_opened.wait()
        rounds = 0
        while True:
            await asyncio.sleep(_POLL_S)
            rounds += 1
            if rounds == 1 and self._affinity is None:
                affinity = await asyncio.to_thread(importlib.import_module, "lbguard.service.affinity")
                await affinity.end_earlier_affinity(self.settings)
            await self._packets.follow(self.engine.keys_by_mark())
            # Later readings are compared with the first one: the counts of an earlier run continue.
            if rounds % _COUNT_EVERY == 1:
                await self._packets.read()

    async def _follow_mesh(self) -> None:
        """Follow a mesh manager after the repairs of the start: its library takes long to load."""
        await self._servers_opened.wait()
        build = await asyncio.to_thread(importlib.import_module, "lbguard.service.build_nsm")
        mesh: MeshEvents = build.MeshEvents(self.settings.nsm, self.engine, self._post_mesh)
        self._mesh = mesh
        await mesh.run()

    def _record_counts(self) -> None:
        """Update gauges, and record the counters that adapters keep themselves."""
        self.availability.retain(self.engine.stream_names())
        self.metrics.record_status(self.engine.summary(time.monotonic()))
        self.metrics.record_readiness(self.unready_reason())
        self._event_reporter.counted(self._announcer, self.mirror.counters)
        self.metrics.record_inbox_dropped(self.runner.inbox_dropped)
        self._recording.count(self.metrics)
        self.metrics.control.record(self.engine.stream_names(), self.engine.overrides(), self.control.requests)
        if self._parking is not None:
            self._parking.count()
        if self._servers is not None:
            self._servers.count(self.metrics)
        if self._mesh is not None:
            self.metrics.record_mesh(self._mesh.events, outdated=self._mesh.outdated, losses=self._mesh.losses)
        self.metrics.interfaces.follow(labels_of(self.engine.links_facing_targets()))
        if self._interposer is not None:
            self.metrics.record_interposer(self._interposer.counters.calls)
        counters = getattr(self._source, "counters", None) if self._interposer is None else None
        if counters is not None:
            self.metrics.record_source(
                sessions=counters.sessions,
                losses=counters.losses,
                waiting=counters.waiting,
                skipped=counters.skipped,
            )

    async def _report_health(self) -> None:
        unready = self.unready_reason()
        if self._servers is not None:
            await self._servers.report_readiness(unready)
        elif not unready or time.monotonic() - self._started_at > self._servers_latest_s():
            self._servers = await self._open_servers()
            await self._servers.report_readiness(unready)
        self._event_reporter.waited(unready, time.monotonic())
        if not self._ready_told and not unready:
            self._ready_told = True
            after_s = round(time.monotonic() - self._started_at, 3)
            streams, targets = len(self.engine.stream_names()), len(self.engine.keys_by_mark())
            _log.info("ready", extra=fields(streams=streams, targets=targets, after_s=after_s))
            GarbageCalmer().start()

    def _servers_latest_s(self) -> float:
        """Return when API and HTTP endpoint are opened at the latest, in seconds from the start.

        While tables are read and paths are programmed, loading their libraries would take the processor from that.
        """
        adopting = self.engine.in_sync and self.engine.running
        return _SERVERS_LATEST_WHILE_ADOPTING_S if adopting else _SERVERS_LATEST_S

    async def _open_servers(self) -> "Servers":
        """Open API and HTTP endpoint. Their libraries take long to load, so the repairs come first."""
        servers = await asyncio.to_thread(importlib.import_module, "lbguard.service.servers")
        opened: Servers = await servers.open_servers(self)
        self._servers_opened.set()
        return opened

    # Wiring

    def _observe_kernel(self, events: list[Event], received_at: float) -> None:
        self._event_reporter.kernel_observed(events, in_sync=self.mirror.in_sync)
        if self._interposer is not None or not self._enforcing:
            self._routes.observe(events)
        if self._kernel_source is not None:
            self._kernel_source.observe_kernel(events)
        if self._mesh is not None:
            self._mesh.observe_kernel(events)
        self.runner.post_kernel(events, received_at)

    def _observe_source(self, event: SourceEvent) -> None:
        self._event_reporter.source_observed(event)
        self.runner.post((event,))

    def _routes_in_force(self) -> Iterable[Route] | None:
        if not self.engine.in_sync:
            return None
        # Where the load balancer has its own routes, these show the offsets.
        return [*self.engine.routes(), *(self._routes.routes() or ())]

    def _post(self, events: Sequence[Event]) -> None:
        self._event_reporter.refused(events)
        if any(isinstance(event, RouteFailed) and event.reason.startswith("EEXIST") for event in events):
            # The mirror does not have the existing object: an ignored type of route, or a very recent one.
            self.mirror.request_reconcile()
        self.runner.post(events)
        if self._interposer is not None:
            self._interposer.observe(events)

    def _post_mesh(self, events: "Sequence[WatchEvent]") -> None:
        # Not through the inbox of verdicts: the mesh reports an event once, so none may be dropped for lack of room.
        self.runner.post(events)

    def _committed(self, result: CommitResult) -> None:
        self._event_reporter.committed(result)
        self._recording.committed(result)

    def _park(self, effect: ParkPackets) -> None:
        if self._parking is not None:
            self._parking.perform(effect)

    def _announce(self, effect: Announce | SolicitNeighbors) -> None:
        if self._announcer is None:
            return
        if isinstance(effect, Announce):
            self._announcer.announce(effect)
        else:
            self._announcer.solicit(effect)
