"""The composition of `lbguard probe`: a source of connections, the monitor, the reporter, and their life."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from prometheus_client import CollectorRegistry

from lbguard import __version__
from lbguard.core.model import Subject, TargetSubject, Verdict, VerdictState
from lbguard.kernel.mirror import MirrorError
from lbguard.printable import printable
from lbguard.probe.build import (
    ProbeError,
    judge_settings,
    make_kernel_view,
    make_monitor,
    make_reporting,
    make_source,
)
from lbguard.probe.connections import Connection, ConnectionList, ConnectionsLost
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.kernel_view import KernelView
from lbguard.probe.metrics import ProbeMetrics
from lbguard.probe.verdict_message import subject_name
from lbguard.settings.model import Settings
from lbguard.settings.notation import parse_listen
from lbguard.telemetry.httpd import Health, HttpEndpoint, ListenError
from lbguard.telemetry.log import fields, setup_logging

_log = logging.getLogger("lbguard.probe")

_BEAT_S = 1.0
_BEAT_BEFORE_READY_S = 0.05
_LEFT_OUT_SHOWN = 5


def resolve_links(connections: tuple[Connection, ...], view: KernelView) -> tuple[Connection, ...]:
    """Add the kernel's data of the local end: the link with the first local address, and its link-layer address.

    The link-layer address belongs to the subject unless the subject is the far end. When it changes, the link was
    re-created, and the load balancer's neighbour entry for it is out of date.
    """
    resolved = []
    macs: dict[str, bytes] = {}
    for connection in connections:
        ifname = connection.ifname or view.link_of(connection.pairs[0].source)
        if ifname not in macs:
            macs[ifname] = view.mac_of(ifname)
        mac = connection.mac or (macs[ifname] if _judges_our_end(connection) else b"")
        resolved.append(replace(connection, ifname=ifname, mac=mac))
    return tuple(resolved)


def _judges_our_end(connection: Connection) -> bool:
    subject = connection.subject
    return not isinstance(subject, TargetSubject) or any(pair.source == subject.ip for pair in connection.pairs)


class ProbeService:
    """One running probe. Sockets are opened by the constructor and `run`, in the caller's network namespace.

    Raises:
        ProbeError: it cannot work with these settings or rights.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        probe = settings.probe
        self._monitor = make_monitor(judge_settings(probe), self._emit)
        self.metrics = ProbeMetrics(CollectorRegistry(), self._monitor.counters)
        self._reporting = make_reporting(probe, socket.gethostname(), self.metrics)
        self._view: KernelView = make_kernel_view(settings)
        self._source = make_source(probe, self._view, self._take)
        self._last: ConnectionList | None = None
        self._left_out: tuple[str, ...] = ()
        self._states: dict[Subject, VerdictState] = {}
        self._lost = ""
        self._health = Health()
        self._http: HttpEndpoint | None = None
        self._stop = asyncio.Event()
        self._view.when_changed(self._look_again)

    def stop(self) -> None:
        """Request the running service to end."""
        self._stop.set()

    async def run(self) -> None:
        """Probe until a signal or `stop` ends it.

        Raises:
            ExceptionGroup: a part failed that the probe cannot do without.
            ListenError, OSError: it could not start.
        """
        _on_signals(self._stop, self._reload)
        address = parse_listen(self.settings.metrics.listen)
        try:
            if address is not None:
                self._http = HttpEndpoint(address, self.metrics.registry, self._health)
            await self._view.start()
            _log.info(
                "probing",
                extra=fields(
                    version=__version__,
                    connections=self.settings.probe.connections,
                    report_to=",".join(self.settings.probe.report_to) or "nobody",
                ),
            )
            async with asyncio.TaskGroup() as group:
                parts = (
                    self._monitor.run(),
                    self._view.wait(),
                    self._source.run(),
                    self._reporting.reporter.run(),
                    self._beat(),
                )
                tasks = [group.create_task(part) for part in parts]
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self._reporting.close()
            await self._view.stop()
            self._monitor.close()
            if self._http is not None:
                self._http.close()
            _log.info("stopped")

    def unready_reason(self) -> str:
        """Return why the probe is not ready; empty when it is. A source that was read once may be lost again."""
        if not self._view.complete:
            return "kernel_not_read"
        if self._last is None:
            return f"connections_not_read: {self._lost or 'waiting'}"
        return ""

    def _take(self, listed: ConnectionList | ConnectionsLost) -> None:
        """Apply an event of the source."""
        if isinstance(listed, ConnectionsLost):
            self.metrics.source(ok=False)
            if listed.reason != self._lost:
                _log.warning("connections cannot be read; what is known stays", extra=fields(reason=listed.reason))
            self._lost = listed.reason
            return
        if self._lost:
            _log.info("connections are read again")
        self._lost = ""
        self.metrics.source(ok=True)
        self._last = listed
        self._apply(listed)

    def _apply(self, listed: ConnectionList) -> None:
        limit = self.settings.probe.max_connections
        connections = resolve_links(listed.connections[:limit], self._view)
        left_out = listed.left_out
        if len(listed.connections) > limit:
            left_out += (f"{len(listed.connections) - limit} connections more than probe.max_connections",)
        if left_out != self._left_out:
            self._left_out = left_out
            if left_out:
                shown = "; ".join(left_out[:_LEFT_OUT_SHOWN])
                _log.warning("connections left out", extra=fields(count=len(left_out), first=shown))
        # The monitor goes first, so that a removed load balancer still receives ENDED for its connection.
        self._monitor.set_connections(connections)
        self._reporting.reporter.follow(connections)
        self.metrics.listed(len(connections), len(left_out))

    def _look_again(self) -> None:
        """Links, addresses or neighbours changed: connections may have another link, or become ours."""
        if self.settings.probe.connections != "file":
            self._source.reload()
        elif self._last is not None:
            self._apply(self._last)

    def _reload(self) -> None:
        _log.info("reading connections again")
        self._source.reload()

    def _emit(self, verdict: Verdict) -> None:
        before = self._states.get(verdict.subject)
        if verdict.state is VerdictState.ENDED:
            self._states.pop(verdict.subject, None)
        else:
            self._states[verdict.subject] = verdict.state
        if verdict.state is not before:
            bad = verdict.state in {VerdictState.DOWN, VerdictState.DEGRADED, VerdictState.HEALING}
            _log.log(
                logging.WARNING if bad else logging.INFO,
                "verdict",
                extra=fields(
                    about=subject_name(verdict.subject),
                    state=str(verdict.state),
                    before=str(before or "unknown"),
                    generation=verdict.generation,
                    replies=" ".join(f"{family.received}/{family.sent}" for family in verdict.evidence),
                ),
            )
        self._reporting.submit(verdict)

    async def _beat(self) -> None:
        while True:
            unready = self.unready_reason()
            self._health.beat(unready)
            self.metrics.standing(Counter(self._states.values()))
            await asyncio.sleep(_BEAT_BEFORE_READY_S if unready else _BEAT_S)


async def _idle(settings: Settings) -> None:
    """Report health and do nothing else, so that a sidecar can run before the probe is enabled."""
    stop = asyncio.Event()
    _on_signals(stop, lambda: None)
    health = Health()
    address = parse_listen(settings.metrics.listen)
    metrics = ProbeMetrics(CollectorRegistry(), ProbeCounters())
    metrics.source(ok=True)  # No source is read, so none is lost, and no alert is needed.
    http = HttpEndpoint(address, metrics.registry, health) if address is not None else None
    _log.warning("not enabled: nothing is pinged", extra=fields(remedy="set probe.enabled (LBGUARD_PROBE__ENABLED)"))
    try:
        while not stop.is_set():
            health.beat("")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _BEAT_S)
    finally:
        if http is not None:
            http.close()


def _on_signals(stop: asyncio.Event, reload: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)


async def _serve(settings: Settings) -> list[Exception]:
    """Run the probe, or its idle replacement; return the reason of its end."""
    problems: list[Exception] = []
    try:
        if settings.probe.enabled:
            await ProbeService(settings).run()
        else:
            await _idle(settings)
    except* Exception as group:
        problems += group.exceptions
    return problems


def run(settings: Settings) -> int:
    """Probe until stopped; return the exit status (0 stopped, 1 failed)."""
    logging_ = setup_logging(settings.log.format, settings.log.level)
    try:
        problems = asyncio.run(_serve(settings))
        # Only after the loop has ended: from here on a signal ends the process, even if standard error is not read.
        for problem in problems:
            if isinstance(problem, ProbeError | ListenError | MirrorError | OSError):
                sys.stderr.write(f"lbguard: {printable(str(problem))}\n")
            else:
                _log.critical("a part of the probe failed", exc_info=problem)
        return 1 if problems else 0
    finally:
        logging_.close()
