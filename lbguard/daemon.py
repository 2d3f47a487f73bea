"""The composition root: builds the adapters, wires them to the engine, and sees the service through its life."""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from lbguard import __version__
from lbguard.actuators import (
    DistributorActuator,
    DistributorEffect,
    KernelActuator,
    KernelEffect,
    Lane,
    NeighborActuator,
    NeighborEffect,
    PollDistributor,
)
from lbguard.announce.sender import Announcer
from lbguard.core.effects import Announce, ProgramRoutes, ProgramRules
from lbguard.core.engine import Engine
from lbguard.core.events import Event
from lbguard.core.model import TargetKey
from lbguard.core.status import GuardStatus
from lbguard.dataplane.instance import InstanceLock, InstanceRunning
from lbguard.dataplane.links import NeighborTimers
from lbguard.decisions import DecisionLog
from lbguard.distributor.base import Distributor, DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb_cli import NfqlbCliDistributor
from lbguard.distributor.nfqlb_shm import NfqlbShmDistributor
from lbguard.distributor.nft import NftDistributor
from lbguard.distributor.nft_counters import FallbackCounters
from lbguard.distributor.observe import ObserveDistributor
from lbguard.distributor.select import AutoDistributor
from lbguard.journal import ServiceJournal
from lbguard.log import fields, setup_logging
from lbguard.metrics import Metrics
from lbguard.netlink.mirror import KernelMirror, MirrorSettings
from lbguard.netlink.socket import NetlinkChannel
from lbguard.runner import Runner
from lbguard.settings import Settings, engine_config
from lbguard.sources.file import FileSource

_log = logging.getLogger("lbguard.daemon")

_LOCAL_TABLES = frozenset({0, 253, 254, 255})
_POLL_S = 1.0
_COUNTERS_EVERY = 5
_STOP_LIMIT_S = 0.8


def make_distributor(settings: Settings) -> Distributor:
    """Build the distributor that the settings ask for.

    Raises:
        DistributorError: a combination that cannot work.
    """
    wanted = settings.distributor
    table = TableKind(wanted.table)
    observing = settings.mode == "observe" or wanted.kind == "observe"

    def embedded() -> Distributor:
        return NftDistributor(table, wanted.hash_seed, wanted.slots_per_target)

    def memory() -> Distributor:
        return NfqlbShmDistributor(table, wanted.shm_dir, read_only=observing)

    match wanted.kind:
        case "nftables":
            chosen: Distributor = embedded()
        case "nfqlb-shm":
            chosen = memory()
        case "nfqlb-cli":
            chosen = NfqlbCliDistributor(table, wanted.nfqlb_binary, wanted.shm_dir)
        case "auto" | "observe":
            chosen = AutoDistributor(wanted.shm_dir, memory(), embedded)
    return ObserveDistributor(chosen) if observing else chosen


class Daemon:
    """One running service."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = Engine(engine_config(settings))
        self.decisions = DecisionLog()
        self.metrics = Metrics(CollectorRegistry())
        self.journal = ServiceJournal(
            self.metrics,
            self.decisions,
            observe=settings.mode == "observe",
            inbox_depth=lambda: self.runner.inbox_depth,
        )
        self._stop = asyncio.Event()
        self._started_at = time.monotonic()
        self._ready_told = False
        self._channel = NetlinkChannel()
        self._distributor = make_distributor(settings)
        self._counters = FallbackCounters()
        self._counted_marks: dict[int, TargetKey] = {}
        self._counters_problem = ""
        self._announcer = self._make_announcer()
        kernel = KernelActuator(self._channel)
        neighbors = NeighborActuator(self._channel, self._timers())
        self._tables = DistributorActuator(self._distributor, self.journal.committed)
        self.kernel_lane: Lane[KernelEffect] = Lane("kernel", kernel.perform, self._post)
        self.neighbor_lane: Lane[NeighborEffect] = Lane("neighbors", neighbors.perform, self._post, limit=256)
        self.distributor_lane: Lane[DistributorEffect] = Lane("distributor", self._tables.perform, self._post)
        self.mirror = KernelMirror(
            lambda events, received_at: self.runner.post_kernel(events, received_at),
            lambda table: table not in _LOCAL_TABLES,
            MirrorSettings(
                reconcile_interval_s=settings.kernel.reconcile_interval,
                receive_buffer_bytes=settings.kernel.receive_buffer,
            ),
        )
        self.runner = Runner(
            self.engine,
            announce=self._announce,
            kernel=self.kernel_lane,
            neighbors=self.neighbor_lane,
            distributor=self.distributor_lane,
            journal=self.journal,
            resync=self.mirror.request_resync,
            inbox_limit=settings.kernel.inbox_limit,
        )
        self.source = self._make_source()

    # What the API and the health checks see

    def status(self) -> GuardStatus:
        """Return the whole state of the moment."""
        return self.engine.status(time.monotonic())

    def unready_reason(self) -> str:
        """Return why the service is not ready; empty when it is."""
        if not self.engine.running:
            return f"kernel: {self.engine.sync_reason}" if self.engine.sync_reason else "targets file not read yet"
        if not self.engine.in_sync:
            return f"kernel: {self.engine.sync_reason}"
        waiting = [name for name, stream in self.engine.roster.streams.items() if not stream.adopted]
        return f"distributor tables not read: {', '.join(waiting)}" if waiting else ""

    # Life

    async def run(self) -> None:
        """Serve until a signal says stop.

        Raises:
            ExceptionGroup: a part failed that the service cannot do without.
        """
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        await self.mirror.start()
        try:
            async with asyncio.TaskGroup() as group:
                parts = [
                    self.kernel_lane.run(),
                    self.neighbor_lane.run(),
                    self.distributor_lane.run(),
                    self.runner.run(),
                    self.mirror.wait(),
                    self._poll(),
                ]
                if self.source is not None:
                    parts.append(self.source.run())
                tasks = [group.create_task(part) for part in parts]
                _log.info("started", extra=fields(version=__version__, mode=self.settings.mode))
                await self._stop.wait()
                _log.info("stopping", extra=fields(withdraw=self.settings.withdraw_on_exit))
                for task in tasks:
                    task.cancel()
        finally:
            await self._shut_down()

    async def _shut_down(self) -> None:
        await self.mirror.stop()
        if self._announcer is not None:
            self._announcer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_LIMIT_S):
                if self.settings.withdraw_on_exit and self.settings.mode == "enforce":
                    await self._withdraw_everything()
                await self._distributor.close()
                await self._counters.close()
        self._channel.close()
        _log.info("stopped")

    async def _withdraw_everything(self) -> None:
        """Take every target out, then remove what is ours: first no packet is marked, then no route is needed."""
        for stream in list(self._tables.attached.values()):
            try:
                await self._distributor.detach(stream, withdraw=True)
            except DistributorError as error:
                _log.error("stream not withdrawn", extra=fields(stream=stream.name, reason=str(error)))
        kernel = KernelActuator(self._channel)
        await kernel.perform(ProgramRules(delete=tuple(self.engine.tables.rules.actual.values())))
        await kernel.perform(ProgramRoutes(delete=tuple(self.engine.tables.routes.actual.values())))
        with contextlib.suppress(DistributorError):
            await self._counters.remove()

    def _reload(self) -> None:
        _log.info("reloading targets")
        if self.source is not None:
            self.source.reload()
        self.mirror.request_reconcile()

    async def _poll(self) -> None:
        """Look after what tells nothing by itself: tables that others replace, packet counters, gauges."""
        rounds = 0
        every = max(1, round(self.settings.kernel.reconcile_interval / _POLL_S))
        while True:
            await asyncio.sleep(_POLL_S if self._ready_told else 0.05)
            self._tell_ready()
            if not self._ready_told:
                continue
            rounds += 1
            if not len(self.distributor_lane):
                self.distributor_lane.put(PollDistributor(read_back=rounds % every == 0))
            self.metrics.record_status(self.engine.summary(time.monotonic()))
            self.journal.counted(self._announcer, self.mirror.counters)
            await self._count_packets(read=rounds % _COUNTERS_EVERY == 0)

    def _tell_ready(self) -> None:
        if not self._ready_told and not self.unready_reason():
            self._ready_told = True
            targets = len(self.engine.roster.by_mark)
            after = round(time.monotonic() - self._started_at, 3)
            _log.info("ready", extra=fields(streams=len(self.engine.roster.streams), targets=targets, after_s=after))

    async def _count_packets(self, *, read: bool) -> None:
        marks = {mark: target.key for mark, target in self.engine.roster.by_mark.items()}
        try:
            if marks != self._counted_marks and self.settings.mode == "enforce":
                await self._counters.ensure(marks)
                self._counted_marks = marks
            if read and self._counted_marks:
                hits, held = await self._counters.read_hits(), await self._counters.read()
                self.metrics.record_packets(
                    {marks[mark]: count for mark, count in hits.items() if mark in marks},
                    {marks[mark]: count for mark, count in held.items() if mark in marks},
                )
            self._counters_problem = ""
        except (DistributorError, OSError) as error:
            # Counters are worth much, but not a service that stops for want of them.
            if str(error) != self._counters_problem:
                self._counters_problem = str(error)
                _log.warning("packets are not counted", extra=fields(reason=str(error)))

    # Wiring

    def _post(self, events: Sequence[Event]) -> None:
        for event in events:
            self.journal.refused(event)
        self.runner.post(events)

    def _announce(self, effect: Announce) -> None:
        if self._announcer is not None:
            self._announcer.announce(effect)

    def _make_announcer(self) -> Announcer | None:
        if self.settings.mode == "observe":
            return None
        announce = self.settings.announce
        return Announcer(owns=self.engine.view.holds, repeats_s=announce.repeats, addresses_max=announce.max_pending)

    def _make_source(self) -> FileSource | None:
        path = self.settings.targets_file
        return FileSource(path, lambda event: self.runner.post((event,))) if path is not None else None

    def _timers(self) -> NeighborTimers:
        neighbors = self.settings.neighbors
        return NeighborTimers(
            retrans_ms=round(neighbors.retrans * 1000),
            delay_probe_ms=round(neighbors.delay_probe * 1000),
            base_reachable_ms=round(neighbors.base_reachable * 1000),
            ucast_probes=neighbors.ucast_probes,
            mcast_probes=neighbors.mcast_probes,
            mcast_reprobes=neighbors.mcast_reprobes,
        )


async def _serve(settings: Settings) -> int:
    failed = False
    try:
        await Daemon(settings).run()
    except* Exception as group:
        failed = True
        for error in group.exceptions:
            _log.critical("a part of the service failed", exc_info=error)
    return 1 if failed else 0


def run(settings: Settings) -> int:
    """Run the service until it is told to stop; returns the exit status (0 stopped, 1 failed)."""
    logging_ = setup_logging(settings.log.format, settings.log.level)
    try:
        with InstanceLock():
            return asyncio.run(_serve(settings))
    except InstanceRunning as error:
        print(f"lbguard: {error}", file=sys.stderr)
        return 1
    finally:
        logging_.close()
