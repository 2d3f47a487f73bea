"""gRPC server of the running service on its unix socket: status, decisions, intake of verdicts, and commands."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lbguard.api.calls import CallRooms
from lbguard.api.control_server import ControlService
from lbguard.api.convert.decisions import decision_to_proto
from lbguard.api.convert.status import status_to_proto
from lbguard.api.convert.targets import target_to_proto
from lbguard.api.feeds import KEPT_OVERALL, KEPT_PER_TARGET, Subscription
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.settings_server import SettingsService, SettingsView
from lbguard.api.targets import TargetUnclear, find_target, identifier_of, only
from lbguard.api.verdicts.server import SERVICE, VerdictIntake, unix_names
from lbguard.core.model import ADMITTED, Decision, TargetKey
from lbguard.core.status import GuardStatus, TargetStatus
from lbguard.errors import StartError
from lbguard.rpc.unix_socket import ServedSocket, SocketError
from lbguard.settings.peers import UNIX_PEER
from lbguard.telemetry.outlook import connections_outlook
from lbguard.telemetry.target_story import target_story

SOCKET_MODE = 0o660
LIVENESS, READINESS = "Liveness", "Readiness"

_REQUEST_BYTES_MAX = 64 * 1024
_CALLS_PER_CONNECTION = 100


class ApiError(StartError):
    """The API cannot be served; the text names the setting and what to do."""


class GuardView(Protocol):
    """View of the service that the server reads. Called in the thread of the event loop; it must not block."""

    async def status(self) -> GuardStatus:
        """Return the whole state at this moment."""

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        """Return the last decisions with wall time, oldest first; of one target, or (None) of all."""


class DecisionFeed(Protocol):
    """Source of new decisions (`DecisionLog`)."""

    def subscribe(self) -> Subscription:
        """Return a feed of the decisions from now on."""


class _GuardService(pb_grpc.GuardServiceServicer):
    def __init__(self, view: GuardView, feed: DecisionFeed) -> None:
        self._view = view
        self._feed = feed

    async def GetStatus(  # noqa: N802 (the name is the protocol's)
        self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext[pb.GetStatusRequest, pb.GetStatusResponse]
    ) -> pb.GetStatusResponse:
        # Values are immutable, so the slow part, thousands of messages, can be made beside the loop.
        status = await self._view.status()
        return pb.GetStatusResponse(status=await asyncio.to_thread(status_to_proto, status))

    async def ExplainTarget(  # noqa: N802
        self,
        request: pb.ExplainTargetRequest,
        context: grpc.aio.ServicerContext[pb.ExplainTargetRequest, pb.ExplainTargetResponse],
    ) -> pb.ExplainTargetResponse:
        status = await self._view.status()
        limit = min(request.history or KEPT_PER_TARGET, KEPT_PER_TARGET)
        try:
            key = self._find(request.target, status.targets)
        except TargetUnclear as unclear:
            key = await _refuse(context, unclear)
        recent = self._view.decisions(key, limit)
        response = pb.ExplainTargetResponse(
            stream=key.stream,
            identifier=key.identifier,
            now_s=status.now,
            decisions=[decision_to_proto(decision, wall_time) for decision, wall_time in recent],
            story=f"{key} is no longer listed by the source; these were its last decisions.",
        )
        for target in status.targets:
            if (target.stream, target.identifier) == key:
                response.target.CopyFrom(target_to_proto(target))
                response.story = target_story(
                    target,
                    status.now,
                    recent,
                    observe=status.observe,
                    affinity=status.affinity,
                    parking=status.parking,
                    wall_time=status.wall_time,
                )
                if not status.observe:
                    in_table = [
                        each for each in status.targets if each.state in ADMITTED and each.stream == target.stream
                    ]
                    alone = all(each.identifier == target.identifier for each in in_table)
                    outlook = connections_outlook(target, status.now, status.affinity, alone=alone)
                    response.story = "\n".join([response.story, *outlook])
        return response

    async def WatchDecisions(  # noqa: N802
        self,
        request: pb.WatchDecisionsRequest,
        context: grpc.aio.ServicerContext[pb.WatchDecisionsRequest, pb.WatchDecisionsResponse],
    ) -> AsyncIterator[pb.WatchDecisionsResponse]:
        # Subscribing and reading the past happen in one turn of the loop, so nothing is missed and nothing repeated.
        with self._feed.subscribe() as feed:
            past = self._view.decisions(None, min(request.history, KEPT_OVERALL))
            for decision, wall_time in past:
                yield pb.WatchDecisionsResponse(decision=decision_to_proto(decision, wall_time))
            if request.follow:
                async for lost, (decision, wall_time) in feed:
                    yield pb.WatchDecisionsResponse(decision=decision_to_proto(decision, wall_time), lost=lost)

    def _find(self, text: str, targets: Sequence[TargetStatus]) -> TargetKey:
        """Find the target that a text names; removed targets are considered if no current one has the name.

        Raises:
            TargetUnclear: none or several are meant.
        """
        try:
            return find_target(text, targets)
        except TargetUnclear as unclear:
            gone = [] if unclear.found else self._gone(text)
            if not gone:
                raise
            return only(text, gone)

    def _gone(self, text: str) -> list[TargetKey]:
        """Return the targets of a name, or of an identifier alone, that decisions are kept of."""
        stream, slash, number = text.rpartition("/")
        identifier = identifier_of(number)
        if identifier is None:
            return []
        if slash:
            key = TargetKey(stream, identifier)
            return [key] if self._view.decisions(key, 1) else []
        kept = (decision.target for decision, _ in self._view.decisions(None, KEPT_OVERALL))
        return list(dict.fromkeys(key for key in kept if key.identifier == identifier))


async def _refuse(
    context: grpc.aio.ServicerContext[pb.ExplainTargetRequest, pb.ExplainTargetResponse], unclear: TargetUnclear
) -> TargetKey:
    code = grpc.StatusCode.INVALID_ARGUMENT if unclear.found else grpc.StatusCode.NOT_FOUND
    await context.abort(code, str(unclear))
    raise AssertionError("abort raises")


class ApiServer:
    """Serves the services of the API and the standard health service on a unix socket.

    Args:
        path: the socket; its directory is made when missing.
        view: what to show.
        feed: new decisions.
        verdicts: where verdicts go; None: VerdictService is not served.
        control: takes the commands of operators; None: ControlService is not served.
        settings: the settings in force; None: SettingsService is not served.
    """

    def __init__(
        self,
        path: Path,
        view: GuardView,
        feed: DecisionFeed,
        *,
        verdicts: VerdictIntake | None = None,
        control: ControlService | None = None,
        settings: SettingsView | None = None,
    ) -> None:
        self._verdicts = verdicts
        self._control = control
        self._settings = None if settings is None else SettingsService(settings)
        self._service = _GuardService(view, feed)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self.socket = ServedSocket(path, "socket", SOCKET_MODE, self._make_server)

    async def start(self) -> None:
        """Listen. The health service reports alive, and not ready.

        Raises:
            ApiError: another process serves the socket, or it cannot be made.
        """
        try:
            await self.socket.serve()
        except SocketError as error:
            raise ApiError(str(error)) from None
        for name in ("", LIVENESS):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self.set_ready(False)

    def _make_server(self) -> grpc.aio.Server:
        verdicts = self._verdicts
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", verdicts.message_bytes_read if verdicts else _REQUEST_BYTES_MAX),
                ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
            ],
            # No common bound of calls: the health service has to answer independent of other calls.
            interceptors=[CallRooms(lambda _context: UNIX_PEER, except_for=SERVICE)],
        )
        if verdicts is not None:
            server.add_generic_rpc_handlers((verdicts.handlers(unix_names),))
        pb_grpc.add_GuardServiceServicer_to_server(self._service, server)
        if self._control is not None:
            pb_grpc.add_ControlServiceServicer_to_server(self._control, server)
        if self._settings is not None:
            pb_grpc.add_SettingsServiceServicer_to_server(self._settings, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    async def set_ready(self, ready: bool) -> None:
        """Set whether the service is ready (health service, name `Readiness`)."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(READINESS, serving if ready else not_serving)

    async def stop(self, grace_s: float = 0.2) -> None:
        """End open calls after `grace_s` seconds and remove the socket; safe to call twice."""
        await self._health.enter_graceful_shutdown()
        await self.socket.stop(grace_s)
