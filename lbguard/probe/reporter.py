"""Reporter of verdicts to every load balancer that should receive them, each over a stream of its own.

A load balancer at a fixed address receives every verdict. One at the far end of a monitored link receives the verdicts
on its own links, and all verdicts on targets.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lbguard.core.addr import Ip, format_ip
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, Verdict, VerdictState
from lbguard.probe.connections import Connection, far_ends
from lbguard.probe.metrics import ProbeMetrics
from lbguard.probe.report_stream import ReporterSettings, ReportStream
from lbguard.rpc.channels import Dialer
from lbguard.settings.notation import Endpoint
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.probe.reporter")

LINGER_S = 3.0
"""Time for which reports go to a load balancer whose links are gone."""

NAME_MAX = 63

FarEnd = tuple[Ip, ...]
"""The addresses of one load balancer at the far end of links."""


class Reporter:
    """Reporter of verdicts. It never waits for a load balancer.

    Args:
        addresses: where to report; of those that stand for the far end of each link (`link:PORT`) only the port counts.
        dialer: makes channels.
        settings: how to report.
        metrics: counts.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        addresses: Sequence[Endpoint],
        dialer: Dialer,
        settings: ReporterSettings,
        metrics: ProbeMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dialer = dialer
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._ports = tuple(dict.fromkeys(address.port for address in addresses if address.of_links))
        fixed = dict.fromkeys(address for address in addresses if not address.of_links)
        self._fixed = [self._stream(str(address), (address,), settings.name) for address in fixed]
        self._by_link: dict[tuple[FarEnd, int], ReportStream] = {}
        self._standing: dict[Subject, Verdict] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[ReportStream, asyncio.Task[None]] = {}

    @property
    def streams(self) -> tuple[ReportStream, ...]:
        """The ways to all load balancers."""
        return (*self._fixed, *self._by_link.values())

    def submit(self, verdict: Verdict) -> None:
        """Apply a verdict, in the thread of the loop; return at once."""
        if verdict.state is VerdictState.ENDED:
            self._standing.pop(verdict.subject, None)
        else:
            # Removed first: in a dict an equal key keeps its old position and its old addresses.
            self._standing.pop(verdict.subject, None)
            self._standing[verdict.subject] = verdict
        for stream in self._fixed:
            stream.submit(verdict)
        for (far_end, _port), stream in self._by_link.items():
            if _concerns(far_end, verdict) or (verdict.state is VerdictState.ENDED and stream.knows(verdict.subject)):
                stream.submit(verdict)

    def follow(self, connections: Iterable[Connection]) -> None:
        """Report to the far ends of these connections, beside the fixed addresses."""
        if not self._ports:
            return
        wanted = {(far_end, port) for far_end in map(far_ends, connections) if far_end for port in self._ports}
        for key in [key for key in self._by_link if key not in wanted]:
            self._retire(self._by_link.pop(key))
        for far_end, port in sorted(wanted - self._by_link.keys()):
            endpoints = tuple(Endpoint(host=format_ip(ip), port=port) for ip in far_end)
            stream = self._stream(str(endpoints[0]), endpoints, self._name_towards(far_end))
            self._by_link[far_end, port] = stream
            for verdict in self._standing.values():
                if _concerns(far_end, verdict):
                    stream.submit(verdict)
            self._start(stream)

    async def run(self) -> None:
        """Report until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for stream in self.streams:
                self._start(stream)
            await asyncio.Event().wait()

    def _stream(self, name: str, endpoints: tuple[Endpoint, ...], reporter: str) -> ReportStream:
        settings = replace(self._settings, name=reporter)
        return ReportStream(name, endpoints, self._dialer, settings, self._metrics, self._clock)

    def _name_towards(self, far_end: FarEnd) -> str:
        """Return a name that differs from stream to stream: two links may end at one load balancer."""
        if not self._settings.name:
            return ""
        suffix = "." + format_ip(far_end[0]).replace(":", "-").strip("-")
        return self._settings.name[: NAME_MAX - len(suffix)] + suffix

    def _start(self, stream: ReportStream) -> None:
        if self._tasks is not None and stream not in self._running:
            self._running[stream] = self._tasks.create_task(stream.run())

    def _retire(self, stream: ReportStream) -> None:
        if self._tasks is not None:
            self._tasks.create_task(self._end(stream))

    async def _end(self, stream: ReportStream) -> None:
        """End a stream after its last verdicts are sent, or after a time limit."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stream.quiet.wait(), LINGER_S)
        _log.info("no longer reporting", extra=fields(to=stream.name))
        self._running.pop(stream).cancel()


def _concerns(far_end: FarEnd, verdict: Verdict) -> bool:
    match verdict.subject:
        case ConnectionSubject(lb_ips=lb_ips):
            return not set(far_end).isdisjoint(lb_ips)
        case LinkSubject(lb_ip=lb_ip):
            return lb_ip in far_end
    return True
