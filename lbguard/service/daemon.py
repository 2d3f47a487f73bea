"""Life of `lbguard run`: starts the parts of the service, polls what sends no notifications, and ends them."""

import asyncio
import contextlib
import importlib
import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbguard import __version__
from lbguard.core.events import HoldsRemembered, OpenHold, SourceLost
from lbguard.service.actuators import PollDistributor, withdraw_everything
from lbguard.service.packet_counts import read_traffic
from lbguard.service.parts import ServiceParts
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.interface_counts import labels_of

if TYPE_CHECKING:
    from lbguard.service.build_nsm import MeshEvents
    from lbguard.service.servers import Servers

_log = logging.getLogger("lbguard.service.daemon")

_POLL_S = 1.0
_POLL_BEFORE_READY_S = 0.01
_COUNT_EVERY = 5
_LOSSES_TOGETHER_S = 0.005
_STOP_LIMIT_S = 0.8
_WITHDRAW_LIMIT_S = 10.0
_SERVERS_LATEST_S = 1.0
_SERVERS_LATEST_WHILE_ADOPTING_S = 5.0


class Daemon(ServiceParts):
    """One running service."""

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
                if self.settings.readiness.directory is not None:
                    tasks.append(group.create_task(self._keep_readiness(self.settings.readiness.directory)))
                if self.live_settings is not None:
                    tasks.append(group.create_task(self.live_settings.run()))
                await self._stop.wait()
                await self._announce_end()
                _log.info("stopping", extra=fields(withdraw=self.settings.withdraw_on_exit))
                for task in tasks:
                    task.cancel()
        finally:
            await self._shut_down()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._end)
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
        self._garbage.prepare()
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

    def _end(self) -> None:
        """Begin to stop; a second signal ends the wait before it."""
        (self._stop_at_once if self._stop.is_set() else self._stop).set()

    async def _announce_end(self) -> None:
        """Report that this load balancer is unavailable, and give others the time to take its traffic over."""
        wait_s = self.settings.availability.lame_duck
        if wait_s <= 0:
            return
        _log.info("unavailable until the stop", extra=fields(lame_duck_s=wait_s))
        self.availability.stop()
        await self._report_health()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._stop_at_once.wait()

    def _reload(self) -> None:
        _log.info("reloading targets and settings")
        if self.live_settings is not None:
            self.live_settings.reload()
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
        await asyncio.sleep(_POLL_S)
        if self._affinity is None:
            affinity = await asyncio.to_thread(importlib.import_module, "lbguard.service.affinity")
            await affinity.end_earlier_affinity(self.settings)
        rounds = 0
        while True:
            await self._packets.follow(self.engine.keys_by_mark(), self.engine.suspected_marks())
            # Later readings are compared with the first one: the counts of an earlier run continue.
            if rounds % _COUNT_EVERY == 0:
                await self._packets.read()
            rounds += 1
            await self._follow_losses(time.monotonic() + _POLL_S)

    async def _follow_losses(self, until: float) -> None:
        """Let the kernel count what it drops of lost targets, soon after each loss: packets before are not counted."""
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._target_lost.wait()
            if self._target_lost.is_set():
                await asyncio.sleep(_LOSSES_TOGETHER_S)
                self._target_lost.clear()
                await self._packets.suspect(self.engine.suspected_marks())

    async def _keep_readiness(self, directory: Path) -> None:
        """Keep the files by which the router of Meridio-2 learns what is ready."""
        readiness = await asyncio.to_thread(importlib.import_module, "lbguard.service.readiness")
        known = self.availability
        available = known.of if self._enforcing else lambda stream: None
        balancer = self.settings.readiness.balancer
        files = readiness.ReadinessFiles(
            directory, balancer, available, at_end=lambda stream: False if known.stopped else None
        )
        await files.run()

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
        self.metrics.record_readiness(self.unready_reason() or self.gate_reason())
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
                lost_at=counters.lost_at,
            )

    async def _report_health(self) -> None:
        unready = self.unready_reason()
        if self._servers is not None:
            await self._servers.report_readiness(unready or self.gate_reason())
        elif not unready or time.monotonic() - self._started_at > self._servers_latest_s():
            self._servers = await self._open_servers()
            await self._servers.report_readiness(unready or self.gate_reason())
        self._event_reporter.waited(unready, time.monotonic())
        if not self._ready_told and not unready:
            self._ready_told = True
            after_s = round(time.monotonic() - self._started_at, 3)
            streams, targets = len(self.engine.stream_names()), len(self.engine.keys_by_mark())
            _log.info("ready", extra=fields(streams=streams, targets=targets, after_s=after_s))
            self._garbage.start()

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
