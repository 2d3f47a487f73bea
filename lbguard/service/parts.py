"""Parts of `lbguard run`: the adapters, how they are connected with the engine, and what the servers may ask.

`daemon.py` runs them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from lbguard.api.feeds import AvailabilityState, DecisionLog
from lbguard.api.verdicts.queue import VerdictQueue
from lbguard.core.effects import Announce, AttachStream, ParkPackets, SolicitNeighbors, SteerFlows
from lbguard.core.events import Event, RouteFailed, SettingsChanged
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
    WorkQueue,
)
from lbguard.service.build import (
    Source,
    SourceEvent,
    assumed_queue,
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
from lbguard.service.packet_counts import PacketCounts
from lbguard.service.runner import Runner
from lbguard.settings.model import Loaded, Settings, engine_config
from lbguard.telemetry.log import set_level
from lbguard.telemetry.metrics.guard import Metrics
from lbguard.telemetry.tracing import make_trace_export

if TYPE_CHECKING:
    from lbguard.nsm import WatchEvent
    from lbguard.service.affinity import FlowAffinity
    from lbguard.service.build_nsm import MeshEvents
    from lbguard.service.live_settings import LiveSettings
    from lbguard.service.parking import PacketParking
    from lbguard.service.servers import Servers
    from lbguard.sources.interposer.source import InterposerSource
    from lbguard.sources.kernel import KernelSource

_log = logging.getLogger("lbguard.service.daemon")


class ServiceParts:
    """Parts of one service.

    Args:
        settings: those in force at the start.
        make: builds the distributor.
        loaded: the settings with their sources, so that their file can be followed; None: it is not.
    """

    def __init__(
        self,
        settings: Settings,
        make: Callable[[Settings], Distributor] = make_distributor,
        loaded: Loaded | None = None,
    ) -> None:
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
            on_loss=lambda: self._target_lost.set(),
            tracer=None if self._traces is None else self._traces.incidents,
        )
        self._target_lost = asyncio.Event()
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self._started_at = time.monotonic()
        self._ready_told = False
        self._garbage = GarbageCalmer()
        self.started = False
        self.stuck = False
        self._channel = NetlinkChannel()
        self._requests = KernelRequests()
        self._links = LinkOperations(self._requests)
        self._distributor = make(settings)
        self._packets = PacketCounts(
            self.metrics,
            FallbackCounters(parking=settings.parks_packets, queue_at_least=assumed_queue(settings)),
            on_read=self._recording.packets_read,
        )
        self._announcer = make_announcer(settings, self.engine.holds_address)
        self._kernel = KernelActuator(self._channel, self._links)
        self._tables = DistributorActuator(self._distributor, self._committed)
        kernel_queue: WorkQueue[KernelEffect] = WorkQueue("kernel", self._kernel.perform, self._post)
        neighbors = self._make_neighbors().perform
        neighbor_queue: WorkQueue[NeighborEffect] = WorkQueue("neighbors", neighbors, self._post, limit=256)
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
        self.runner = self._make_runner(kernel_queue, neighbor_queue, affinity_queue)
        self.verdicts = VerdictQueue(self.runner.post_verdict)
        self._hold_file = HoldFile(settings.socket)
        self.control = OperatorControl(self.engine, self.runner.post, OverrideFile(settings.socket))
        self._routes = TargetRoutes(follow=settings.source == "interposer")
        self._interposer: InterposerSource | None = None
        self._kernel_source: KernelSource | None = None
        self._source = self._make_source()
        self._local_vips = LocalVips(lambda: [stream.spec for stream in self.engine.streams()])
        self._servers: Servers | None = None
        self._servers_opened = asyncio.Event()
        self._mesh: MeshEvents | None = None
        self.live_settings = self._make_live_settings(loaded)

    def _make_neighbors(self) -> NeighborActuator:
        return NeighborActuator(
            self._channel,
            self._links,
            neighbor_timers(self.settings),
            self._event_reporter.neighbors_refused,
            self.engine.foreign_neighbor,
            lambda: self.runner.inbox_depth > 0 or not self.mirror.caught_up(),
            report_probes=self.settings.parks_packets,
        )

    def _make_runner(
        self,
        kernel: WorkQueue[KernelEffect],
        neighbors: WorkQueue[NeighborEffect],
        affinity: WorkQueue[SteerFlows] | None,
    ) -> Runner:
        return Runner(
            self.engine,
            announce=self._announce,
            kernel=kernel,
            neighbors=neighbors,
            distributor=self._distributor_queue,
            event_reporter=self._event_reporter,
            affinity=affinity,
            park=self._park,
            resync=self.mirror.request_resync,
            caught_up=self.mirror.caught_up,
            answer=lambda effect: self.verdicts.answered(effect),
            answer_operator=lambda effect: self.control.answered(effect),
            inbox_limit=self.settings.kernel.inbox_limit,
        )

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

    def _make_live_settings(self, loaded: Loaded | None) -> "LiveSettings | None":
        if loaded is None:
            return None
        from lbguard.service.live_settings import LiveSettings

        return LiveSettings(loaded, self._apply_settings, self.metrics.config)

    def _make_source(self) -> Source | None:
        settings = self.settings
        if settings.source not in {"interposer", "kernel"}:
            return make_source(
                settings, self._observe_source, self._routes_in_force, lambda: self.settings.drain.window
            )
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
                parking = None if self._parking is None else self._parking.status()
                return replace(
                    self._local_vips.add_to(status),
                    affinity=affinity,
                    parking=parking,
                    settings_file=None if self.live_settings is None else self.live_settings.status(),
                    wall_time=time.time() + status.now - time.monotonic(),
                )
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

    def gate_reason(self) -> str:
        """Return why a service whose inputs are read asks for no traffic; empty when it does."""
        if self._stop.is_set():
            return "stopping: it ends soon"
        if self.settings.availability.readyz and self.availability.value is False:
            return "not_available: no stream can forward"
        return ""

    # Wiring

    def _apply_settings(self, before: Settings, after: Settings) -> None:
        """Make changed settings effective; they differ in live ones only."""
        self.settings = after
        config = engine_config(after)
        if config != engine_config(before):
            self.runner.post((SettingsChanged(config=config),))
        if self._announcer is not None:
            announce = after.announce
            self._announcer.configure(repeats_s=announce.repeats, addresses_max=announce.max_pending)
        if self._affinity is not None:
            self._affinity.configure(drain_idle_s=after.drain.idle)
        if self._parking is not None:
            self._parking.configure(after)
        set_level(after.log.level)

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
