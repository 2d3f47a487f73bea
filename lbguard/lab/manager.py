"""A small stand-in for a network service manager, so that real monitors can follow connections in the lab."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.api.gen.nsm.connection import connection_pb2_grpc as pb_grpc


class StandInManager(pb_grpc.MonitorConnectionServicer):
    """Stand-in for a mesh manager: sends every monitor the connections, and then each change."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._connections: dict[str, pb.Connection] = {}
        self._watchers: set[asyncio.Queue[pb.ConnectionEvent]] = set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve the unix socket."""
        self._server = grpc.aio.server()
        pb_grpc.add_MonitorConnectionServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()

    async def stop(self) -> None:
        """End all streams and the server."""
        if self._server is not None:
            await self._server.stop(None)

    def update(self, id: str, ours: Sequence[str], theirs: Sequence[str], *, healing: bool = False) -> None:
        """Report a connection: a proxy's addresses (`ours`), the load balancer's, and whether the mesh repairs it."""
        connection = pb.Connection(id=id, network_service="lb", state=pb.DOWN if healing else pb.UP)
        connection.context.ip_context.src_ip_addrs.extend(ours)
        connection.context.ip_context.dst_ip_addrs.extend(theirs)
        connection.path.path_segments.add(name=id, id=id)
        self._connections[id] = connection
        self._tell(pb.ConnectionEvent(type=pb.UPDATE, connections={id: connection}))

    def close(self, id: str) -> None:
        """Close a connection."""
        self._tell(pb.ConnectionEvent(type=pb.DELETE, connections={id: self._connections.pop(id)}))

    async def MonitorConnections(  # noqa: N802 (the name is the protocol's)
        self,
        request: pb.MonitorScopeSelector,
        context: grpc.aio.ServicerContext[pb.MonitorScopeSelector, pb.ConnectionEvent],
    ) -> AsyncIterator[pb.ConnectionEvent]:
        """Serve one monitor."""
        watcher: asyncio.Queue[pb.ConnectionEvent] = asyncio.Queue()
        self._watchers.add(watcher)
        try:
            yield pb.ConnectionEvent(type=pb.INITIAL_STATE_TRANSFER, connections=self._connections)
            while True:
                yield await watcher.get()
        finally:
            self._watchers.discard(watcher)

    def _tell(self, event: pb.ConnectionEvent) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(event)
