"""VerdictService on TCP, with mutual TLS; plaintext TCP is not served."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lbguard.api.calls import CallRooms
from lbguard.api.server import LIVENESS, READINESS, ApiError
from lbguard.api.verdicts.server import SERVICE, VerdictIntake, certificate_names, peer_of
from lbguard.rpc.security import CertificateFiles, CredentialsError, WorkloadApi, server_credentials
from lbguard.settings.notation import ListenAddress
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.verdicts")

_HANDSHAKE_LIMIT_MS = 5000
_CALLS_PER_CONNECTION = 16
_AGE_GRACE_MS = 5000
_CLIENT_PING_MIN_MS = 5000
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """Options of the listener. `connection_age_s`: a connection ends after this, and its peer authenticates again."""

    keepalive_time_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    connection_age_s: float = 3600.0
    reflection: bool = False


class VerdictListener:
    """Listener of VerdictService and the health service on TCP.

    With certificate files it listens from `start`. With a Workload API, which may start later, it listens as soon as
    `run` has a certificate; the handling of links does not wait for either.

    Args:
        address: where; port 0 lets the kernel choose, and `port` is then what it chose.
        intake: takes the requests.
        certificates: what to show, and by whom peers must be vouched for.
        options: how it behaves.
    """

    def __init__(
        self,
        address: ListenAddress,
        intake: VerdictIntake,
        certificates: CertificateFiles | WorkloadApi,
        options: ListenerOptions,
    ) -> None:
        self.port = 0
        self._address = address
        self._intake = intake
        self._certificates = certificates
        self._options = options
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen, unless certificates come from a Workload API.

        Raises:
            ApiError: the certificates are not usable, or the port is not to be had.
        """
        for name in ("", LIVENESS):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self.set_ready(False)
        if isinstance(self._certificates, CertificateFiles):
            try:
                await self._serve()
            except CredentialsError as error:
                raise ApiError(f"verdicts.listen = {self._address}: {error}") from None

    async def run(self) -> None:
        """Follow the Workload API until cancelled; with files there is nothing to do.

        Raises:
            ApiError: the port is not to be had.
        """
        api = self._certificates
        if isinstance(api, CertificateFiles):
            return
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        reported = ""

        def on_change() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(changed.set)

        while True:
            try:
                if not api.following:
                    api.follow(on_change)
                await changed.wait()
                changed.clear()
                if api.ready and self._server is None:
                    await self._serve()
                problem = api.problem
            except CredentialsError as error:
                problem = str(error)
            if problem:
                if problem != reported:
                    _log.warning("no certificates from the Workload API; trying again", extra=fields(reason=problem))
                await asyncio.sleep(_RETRY_S)
            reported = problem

    async def set_ready(self, ready: bool) -> None:
        """Set whether the service is ready (health service, name `Readiness`)."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(READINESS, serving if ready else not_serving)

    async def stop(self, grace_s: float = 0.2) -> None:
        """End open calls after `grace_s` seconds; safe to call twice."""
        if isinstance(self._certificates, WorkloadApi):
            self._certificates.close()
        server, self._server = self._server, None
        if server is not None:
            await self._health.enter_graceful_shutdown()
            await server.stop(grace_s)

    async def _serve(self) -> None:
        credentials = server_credentials(self._certificates)
        # No common bound of calls: peers without permission could use it up for peers with permission.
        server = grpc.aio.server(options=self._channel_options(), interceptors=[CallRooms(peer_of, except_for=SERVICE)])
        server.add_generic_rpc_handlers((self._intake.handlers(certificate_names),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._options.reflection:
            from grpc_reflection.v1alpha import reflection

            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host or "[::]"
        try:
            self.port = server.add_secure_port(f"{host}:{self._address.port}", credentials)
            await server.start()
        except RuntimeError as error:
            raise ApiError(f"verdicts.listen = {self._address}: cannot listen: {error}") from None
        self._server = server
        _log.info("verdicts are taken", extra=fields(listen=f"{host}:{self.port}"))

    def _channel_options(self) -> list[tuple[str, int]]:
        options = self._options
        return [
            # Without this a second process could share the port and take half of the reporters.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._intake.message_bytes_read),
            ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_LIMIT_MS),
            ("grpc.keepalive_time_ms", round(options.keepalive_time_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PING_MIN_MS),
            ("grpc.max_connection_age_ms", round(options.connection_age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", _AGE_GRACE_MS),
        ]
