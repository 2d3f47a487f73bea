"""A small working model of a network service manager's monitor service, with one-shot faults by name."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

import grpc

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.api.gen.nsm.connection import connection_pb2_grpc as pb_grpc

FAULTS = frozenset(
    {"abrupt_end", "repeated_initial", "reordered", "duplicate_ids", "huge", "garbage_addresses", "no_initial"}
)
HUGE_CONNECTIONS = 20_000
GARBAGE = ("", "not an address", "300.1.1.1/24", "fd00::/999", "\u0000", "1.2.3.4/-1", "::ffff::", "x" * 10_000)

_Watch = asyncio.Queue[pb.ConnectionEvent | None]


def connection(
    id: str,
    *,
    src: Sequence[str] = (),
    dst: Sequence[str] = (),
    service: str = "lb-fe",
    path: Sequence[tuple[str, str]] = (),
    index: int = 0,
    interface: str = "",
    state: "pb.State.ValueType" = pb.UP,
    extra: Mapping[str, str] | None = None,
) -> pb.Connection:
    """Return a connection as a manager tells of it; `path` holds (name, id) of each segment."""
    message = pb.Connection(id=id, network_service=service, state=state)
    message.context.ip_context.src_ip_addrs.extend(src)
    message.context.ip_context.dst_ip_addrs.extend(dst)
    message.context.extra_context.update(extra or {})
    message.path.index = index
    for name, segment_id in path or (("proxy-a", id),):
        message.path.path_segments.add(name=name, id=segment_id)
    if interface:
        message.mechanism.cls, message.mechanism.type = "LOCAL", "KERNEL"
        message.mechanism.parameters["name"] = interface
    return message


class FakeNsmgr(pb_grpc.MonitorConnectionServicer):
    """Holds connections, tells every watcher all of them first and then each change, and fails as told.

    Faults, each once: `abrupt_end` ends every stream in place of the next event; `repeated_initial` tells the next
    event as a full list; `reordered` holds the next event back until the one after it is out; `duplicate_ids` tells
    the connections of the next event twice, under a second key; `huge` adds very many connections to the next event;
    `garbage_addresses` spoils the addresses in the next event; `no_initial` starts the next stream without the list.
    """

    def __init__(self) -> None:
        self.connections: dict[str, pb.Connection] = {}
        self.selectors: list[pb.MonitorScopeSelector] = []
        self.port = 0
        self._watches: set[_Watch] = set()
        self._faults: set[str] = set()
        self._held_back: pb.ConnectionEvent | None = None
        self._server: grpc.aio.Server | None = None

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return len(self._watches)

    def fail_once(self, fault: str) -> None:
        """Arm a fault."""
        assert fault in FAULTS, fault
        self._faults.add(fault)

    async def start(
        self, socket: Path | None = None, *, port: int = 0, credentials: grpc.ServerCredentials | None = None
    ) -> str:
        """Serve a unix socket, or a port of the loopback; return the address to dial."""
        server = grpc.aio.server()
        pb_grpc.add_MonitorConnectionServicer_to_server(self, server)
        address = f"unix:{socket}" if socket is not None else f"127.0.0.1:{port}"
        if credentials is not None:
            self.port = server.add_secure_port(address, credentials)
        else:
            self.port = server.add_insecure_port(address)
        await server.start()
        self._server = server
        return address if socket is not None else f"127.0.0.1:{self.port}"

    async def stop(self, *, forget: bool = False) -> None:
        """End the server and all its streams; `forget`: a restarted manager knows no connection."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
        if forget:
            self.connections.clear()

    def update(self, *connections: pb.Connection) -> None:
        """Add or change connections, and tell."""
        for item in connections:
            self.connections[item.id] = item
        self._tell(pb.UPDATE, connections)

    def delete(self, *ids: str) -> None:
        """Close connections, and tell."""
        self._tell(pb.DELETE, [self.connections.pop(id) for id in ids])

    async def MonitorConnections(  # noqa: N802 (the name is the protocol's)
        self,
        request: pb.MonitorScopeSelector,
        context: grpc.aio.ServicerContext[pb.MonitorScopeSelector, pb.ConnectionEvent],
    ) -> AsyncIterator[pb.ConnectionEvent]:
        self.selectors.append(request)
        watch: _Watch = asyncio.Queue()
        self._watches.add(watch)
        try:
            if not self._take("no_initial"):
                yield _event(pb.INITIAL_STATE_TRANSFER, self.connections.values())
            while True:
                event = await watch.get()
                if event is None:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the manager goes away")
                    return
                yield event
        finally:
            self._watches.discard(watch)

    def _take(self, fault: str) -> bool:
        armed = fault in self._faults
        self._faults.discard(fault)
        return armed

    def _tell(self, kind: "pb.ConnectionEventType.ValueType", connections: Iterable[pb.Connection]) -> None:
        if self._take("abrupt_end"):
            for watch in self._watches:
                watch.put_nowait(None)
            return
        event = _event(kind, connections)
        if self._take("garbage_addresses"):
            for item in event.connections.values():
                _spoil(item)
        if self._take("duplicate_ids"):
            for key, item in list(event.connections.items()):
                event.connections[f"{key}-again"].CopyFrom(item)
        if self._take("huge"):
            for number in range(HUGE_CONNECTIONS):
                extra = connection(f"huge-{number}", src=[f"10.{number >> 8 & 255}.{number & 255}.1/32"])
                event.connections[extra.id].CopyFrom(extra)
        if self._take("repeated_initial"):
            event = _event(pb.INITIAL_STATE_TRANSFER, self.connections.values())
        if self._take("reordered"):
            self._held_back = event
            return
        late, self._held_back = self._held_back, None
        for watch in self._watches:
            watch.put_nowait(event)
            if late is not None:
                watch.put_nowait(late)


def _event(kind: "pb.ConnectionEventType.ValueType", connections: Iterable[pb.Connection]) -> pb.ConnectionEvent:
    return pb.ConnectionEvent(type=kind, connections={item.id: item for item in connections})


def _spoil(item: pb.Connection) -> None:
    addresses = item.context.ip_context
    for field in (addresses.src_ip_addrs, addresses.dst_ip_addrs):
        del field[:]
        field.extend(
            ["", "not an address", "300.1.1.1/24", "fd00::/999", "\u0000", "1.2.3.4/-1", "::ffff", "x" * 10_000]
        )
