"""Servers of the service: the gRPC API on its unix socket, the HTTP endpoint, and availability for Meridio.

The daemon loads this module after the first decisions: gRPC and the HTTP server take long to import, and after a crash
during an outage, the repair comes first.
"""

import asyncio
from typing import Protocol

from lbguard.api.availability_server import AvailabilityServer
from lbguard.api.commands import Control
from lbguard.api.control_server import ControlService
from lbguard.api.feeds import AvailabilityState, DecisionLog
from lbguard.api.server import ApiServer, GuardView
from lbguard.api.settings_server import SettingsView
from lbguard.api.verdicts.listener import ListenerOptions, VerdictListener
from lbguard.api.verdicts.policy import DenyReason, Policy
from lbguard.api.verdicts.queue import IGNORED_REASONS, Limit, VerdictQueue
from lbguard.api.verdicts.server import VerdictIntake
from lbguard.rpc.security import CertificateFiles, WorkloadApi
from lbguard.rpc.unix_socket import ServedSocket
from lbguard.settings.model import Settings
from lbguard.settings.notation import parse_listen
from lbguard.settings.verdicts import VerdictSettings
from lbguard.telemetry.httpd import Health, HttpEndpoint
from lbguard.telemetry.metrics.guard import Metrics

_KEEP_EVERY_S = 1.0


class ServiceContext(GuardView, Protocol):
    """The parts of the service that its servers expose."""

    settings: Settings
    decision_log: DecisionLog
    metrics: Metrics
    availability: AvailabilityState
    verdicts: VerdictQueue

    @property
    def control(self) -> Control:
        """Way of operators' commands to the core."""

    @property
    def live_settings(self) -> SettingsView | None:
        """Return the follower of the settings file; None where the sources of the settings are not known."""


class Servers:
    """The unix sockets and ports that the service serves."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._health = Health()
        settings = context.settings
        verdicts = settings.verdicts
        self._intake = VerdictIntake(context.verdicts.submit, Policy(verdicts.policy), verdicts.limits)
        control = (
            ControlService(context.status, context.control, settings.control) if settings.control.enabled else None
        )
        self._api = ApiServer(
            settings.socket,
            context,
            context.decision_log,
            verdicts=self._intake,
            control=control,
            settings=context.live_settings,
        )
        self._listener: VerdictListener | None = None
        self._following: asyncio.Task[None] | None = None
        self._http: HttpEndpoint | None = None
        self._frontend: AvailabilityServer | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str:
        """Return why a unix socket cannot be served; empty: all are served."""
        return next((socket.problem for socket in self._sockets() if socket.problem), "")

    def _sockets(self) -> list[ServedSocket]:
        return [self._api.socket] + ([self._frontend.socket] if self._frontend is not None else [])

    async def _keep_sockets(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_EVERY_S)
            for socket in self._sockets():
                await socket.keep()

    async def open(self) -> None:
        """Open the API and the other configured servers.

        Raises:
            StartError: an address is in use or cannot be bound, or certificates cannot be read.
        """
        settings = self._context.settings
        await self._api.start()
        address = parse_listen(settings.metrics.listen)
        if address is not None:
            self._http = HttpEndpoint(address, self._context.metrics.registry, self._health)
        await self._open_verdicts(settings.verdicts)
        if settings.availability.socket is not None:
            from lbguard.service.build_nsp import make_availability_server, nsp_certificates

            self._frontend = await asyncio.to_thread(
                make_availability_server, settings, self._context.availability, nsp_certificates(settings.nsp)
            )
            if self._frontend is not None:
                # Other programs may write to its directory: a fault there must not keep the other servers from running.
                await self._frontend.socket.keep()
        self._keeping = asyncio.create_task(self._keep_sockets())

    async def _open_verdicts(self, verdicts: VerdictSettings) -> None:
        address = parse_listen(verdicts.listen)
        if address is None:
            return
        if verdicts.spiffe_socket:
            certificates: CertificateFiles | WorkloadApi = WorkloadApi(verdicts.spiffe_socket)
        else:
            files = (verdicts.tls_cert, verdicts.tls_key, verdicts.tls_client_ca)
            assert all(files), "the settings see to that"
            certificates = CertificateFiles(*(path for path in files if path is not None))
        options = ListenerOptions(
            keepalive_time_s=verdicts.keepalive_time,
            keepalive_timeout_s=verdicts.keepalive_timeout,
            connection_age_s=verdicts.connection_age,
            reflection=verdicts.reflection,
        )
        self._listener = VerdictListener(address, self._intake, certificates, options)
        await self._listener.start()
        self._following = asyncio.create_task(self._listener.run())

    def count(self, metrics: Metrics) -> None:
        """Record the verdict service's counts."""
        counters = self._intake.counters
        # All names: rate() misses the first increment of a series that appears with it.
        metrics.record_verdicts(
            received=counters.received,
            ignored={**dict.fromkeys(IGNORED_REASONS, 0), **counters.ignored},
            denied={**dict.fromkeys(DenyReason, 0), **counters.denied},
            limited={**dict.fromkeys(Limit, 0), **counters.limited},
            invalid=counters.invalid,
            replaced=counters.replaced,
        )
        metrics.record_reporters(
            streams=self._intake.streams, reporters=self._intake.reporters, subjects=self._intake.subjects
        )

    async def report_readiness(self, unready: str) -> None:
        """Update the heartbeat and the reason why the service is not ready (empty: it is).

        Raises:
            StartError: the listener for verdicts ended with a permanent failure.
        """
        self._health.beat(unready)
        await self._api.set_ready(not unready)
        if self._listener is not None:
            await self._listener.set_ready(not unready)
        for task in (self._following, self._keeping):
            if task is not None and task.done():
                task.result()

    async def close(self) -> None:
        """Close all."""
        if self._http is not None:
            self._http.close()
        for task in (self._following, self._keeping):
            if task is not None:
                task.cancel()
        if self._listener is not None:
            await self._listener.stop()
        if self._frontend is not None:
            await self._frontend.stop(unavailable=self._context.settings.withdraw_on_exit)
        await self._api.stop()


async def open_servers(context: ServiceContext) -> Servers:
    """Open all servers; when one cannot be opened, none stays open.

    Raises:
        StartError: see `Servers.open`.
    """
    servers = Servers(context)
    try:
        await servers.open()
    except BaseException:
        await servers.close()
        raise
    return servers
