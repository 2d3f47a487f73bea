"""Server that reports to Meridio's frontend whether this load balancer can forward, in place of Meridio's own.

The frontend beside the load balancer announces the VIPs to its gateways while the reported target has its own host
name. One answer covers the whole load balancer: it can forward while any stream can.

Unknown states are not reported: until every stream's state is known, or one is available, a watch has no answer.
Otherwise a restart of this service would withdraw the VIPs from the gateways for a moment. When it ends, the frontend
keeps the last report.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from google.protobuf import empty_pb2

from lbguard.api.calls import CallRooms
from lbguard.api.feeds import AvailabilityState
from lbguard.api.gen.meridio.loadbalancer.v1 import loadbalancer_pb2 as pb
from lbguard.api.gen.meridio.loadbalancer.v1 import loadbalancer_pb2_grpc as pb_grpc
from lbguard.rpc.unix_socket import ServedSocket

SOCKET_MODE = 0o666
"""Mode of the socket: the frontend runs under another user and shares only the volume; the report is not secret."""

SETTING = "availability.socket"

_IDENTIFIER_KEY = "identifier"
_REQUEST_BYTES_MAX = 4096
_WATCHES_MAX = 40  # of which one peer, the frontend, gets four fifths


class _Service(pb_grpc.StreamAvailabilityServiceServicer):
    def __init__(self, state: AvailabilityState, identifier: str) -> None:
        self._state = state
        self._identifier = identifier

    async def Watch(  # noqa: N802 (the name is the protocol's)
        self, request: empty_pb2.Empty, context: grpc.aio.ServicerContext[empty_pb2.Empty, pb.Response]
    ) -> AsyncIterator[pb.Response]:
        async for available in self._state.changes():
            target = pb.Target(context={_IDENTIFIER_KEY: self._identifier} if available else {})
            yield pb.Response(targets=[target])


class AvailabilityServer:
    """Serves Meridio's StreamAvailabilityService on a unix socket.

    Args:
        path: the socket; its directory is made when missing.
        identifier: the host name, by which the frontend knows its own load balancer.
        state: the state to report.
        credentials: with them, clients have to show a certificate, as Meridio's frontend does where it has SPIFFE.
    """

    def __init__(
        self,
        path: Path,
        identifier: str,
        state: AvailabilityState,
        *,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._state = state
        self._service = _Service(state, identifier)
        self.socket = ServedSocket(path, SETTING, SOCKET_MODE, self._make_server, credentials)

    async def start(self) -> None:
        """Listen.

        Raises:
            SocketError: another process serves the socket, or it cannot be made.
        """
        await self.socket.serve()

    def _make_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _REQUEST_BYTES_MAX),
                # The frontend pings each 30 s on a stream that is silent for days; gRPC takes that for abuse.
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
            interceptors=[CallRooms(lambda _context: "frontend", at_once=_WATCHES_MAX)],
        )
        pb_grpc.add_StreamAvailabilityServiceServicer_to_server(self._service, server)
        return server

    async def stop(self, *, unavailable: bool = False, grace_s: float = 0.2) -> None:
        """End the watches after `grace_s` seconds and remove the socket; safe to call twice.

        Args:
            unavailable: first report the end of forwarding; otherwise the frontend keeps the last state.
            grace_s: how long watchers may take to read it.
        """
        if unavailable:
            self._state.stop()
        await self.socket.stop(grace_s)
