"""A small working model of Meridio's registry (NSP), with one-shot faults by name.

What it models of the real one: every watch answers at once with the full list and again at each change; the list of
targets is sent anew at each refresh of any target; a target that is not known yet is DISABLED whatever it says, and
ENABLED when it registers again; an entry's key is its addresses, kind and stream; a registry that has just started
knows no configuration until it has read it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf import empty_pb2

from lbguard.api.gen.meridio.nsp.v1 import nsp_pb2 as pb
from lbguard.api.gen.meridio.nsp.v1 import nsp_pb2_grpc as pb_grpc

FAULTS = frozenset({"abrupt_end", "empty_list", "duplicate_identifiers", "garbage_ips", "missing_identifier", "slow"})
GARBAGE_IPS = ("", "not an address", "300.1.1.1/24", "fd00::/999", "1.2.3.4/-1", "224.0.0.1/4", "x" * 10_000)

Response = TypeVar("Response", pb.StreamResponse, pb.VipResponse, pb.TargetResponse)
_Key = tuple[tuple[str, ...], int, str, str, str]


def conduit(name: str = "load-balancer", trench: str = "trench-a") -> pb.Conduit:
    return pb.Conduit(name=name, trench=pb.Trench(name=trench))


def stream(name: str, max_targets: int = 100, of: pb.Conduit | None = None) -> pb.Stream:
    return pb.Stream(name=name, conduit=of or conduit(), maxTargets=max_targets)


def vip(name: str, address: str, trench: str = "trench-a") -> pb.Vip:
    return pb.Vip(name=name, address=address, trench=pb.Trench(name=trench))


def target(
    identifier: int | str | None,
    *ips: str,
    of: str = "stream-a",
    status: "pb.Target.Status.ValueType" = pb.Target.ENABLED,
    kind: "pb.Target.Type.ValueType" = pb.Target.DEFAULT,
    place: pb.Conduit | None = None,
) -> pb.Target:
    """Return a target as its pod registers it: the stream stands there without its size."""
    context = {} if identifier is None else {"identifier": str(identifier)}
    in_stream = pb.Stream(name=of, conduit=place or conduit())
    return pb.Target(ips=ips, context=context, status=status, type=kind, stream=in_stream)


class FakeNsp(pb_grpc.ConfigurationManagerServicer, pb_grpc.TargetRegistryServicer):
    """Holds a configuration and targets, serves watches, and fails as told.

    Faults, each once and in place of, or in, the next list of targets to be sent to anybody: `abrupt_end` ends every
    watch; `empty_list` sends an empty list; `duplicate_identifiers` gives the second target the identifier of the
    first; `garbage_ips` spoils the addresses of the first target; `missing_identifier` takes its identifier; `slow`
    waits for `go_on` before it sends.
    """

    def __init__(self) -> None:
        self.streams: list[pb.Stream] = []
        self.vips: list[pb.Vip] = []
        self.targets: dict[_Key, pb.Target] = {}
        self.requests: list[pb.Stream | pb.Vip | pb.Target] = []
        self.go_on = asyncio.Event()
        self.address = ""
        self._faults: set[str] = set()
        self._watches: set[asyncio.Event] = set()
        self._ending = False
        self._server: grpc.aio.Server | None = None

    @property
    def watches(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    def fail_once(self, fault: str) -> None:
        """Arm a fault."""
        assert fault in FAULTS, fault
        self._faults.add(fault)

    async def start(
        self,
        address: str = "127.0.0.1:0",
        *,
        credentials: grpc.ServerCredentials | None = None,
        options: Sequence[tuple[str, int]] = (),
    ) -> str:
        """Serve a port of the loopback, or `unix:PATH`; return the address to dial."""
        server = grpc.aio.server(options=list(options))
        pb_grpc.add_ConfigurationManagerServicer_to_server(self, server)
        pb_grpc.add_TargetRegistryServicer_to_server(self, server)
        add = server.add_insecure_port
        port = add(address) if credentials is None else server.add_secure_port(address, credentials)
        await server.start()
        self._server, self._ending = server, False
        self.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        return self.address

    async def stop(self, *, forget: bool = False) -> None:
        """End the server and all its watches; `forget`: its database and its configuration are gone."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
        if forget:
            self.targets.clear()
            self.streams.clear()
            self.vips.clear()

    def configure(self, streams: Sequence[pb.Stream] = (), vips: Sequence[pb.Vip] = ()) -> None:
        """Take a configuration, and tell."""
        self.streams, self.vips = list(streams), list(vips)
        self.tell()

    def put(self, *targets: pb.Target) -> None:
        """Take targets as they are, and tell."""
        for item in targets:
            self.targets[_key(item)] = item
        self.tell()

    def remove(self, *targets: pb.Target) -> None:
        """Forget targets, and tell."""
        for item in targets:
            del self.targets[_key(item)]
        self.tell()

    def tell(self) -> None:
        """Send every list again, changed or not, as a refresh of a target does."""
        for watch in self._watches:
            watch.set()

    async def Register(  # noqa: N802 (the name is the protocol's)
        self, request: pb.Target, context: grpc.aio.ServicerContext[pb.Target, empty_pb2.Empty]
    ) -> empty_pb2.Empty:
        if _key(request) not in self.targets:
            request.status = pb.Target.DISABLED
        self.put(request)
        return empty_pb2.Empty()

    async def Unregister(  # noqa: N802
        self, request: pb.Target, context: grpc.aio.ServicerContext[pb.Target, empty_pb2.Empty]
    ) -> empty_pb2.Empty:
        self.targets.pop(_key(request), None)
        self.tell()
        return empty_pb2.Empty()

    async def WatchStream(  # noqa: N802
        self, request: pb.Stream, context: grpc.aio.ServicerContext[pb.Stream, pb.StreamResponse]
    ) -> AsyncIterator[pb.StreamResponse]:
        self.requests.append(request)

        def now() -> pb.StreamResponse:
            return pb.StreamResponse(streams=[s for s in self.streams if s.conduit == request.conduit])

        async for response in self._answers(now, context):
            yield response

    async def WatchVip(  # noqa: N802
        self, request: pb.Vip, context: grpc.aio.ServicerContext[pb.Vip, pb.VipResponse]
    ) -> AsyncIterator[pb.VipResponse]:
        self.requests.append(request)

        def now() -> pb.VipResponse:
            return pb.VipResponse(vips=[v for v in self.vips if v.trench == request.trench])

        async for response in self._answers(now, context):
            yield response

    async def Watch(  # noqa: N802
        self, request: pb.Target, context: grpc.aio.ServicerContext[pb.Target, pb.TargetResponse]
    ) -> AsyncIterator[pb.TargetResponse]:
        self.requests.append(request)
        async for response in self._answers(lambda: self._wanted(request), context):
            if self._take("abrupt_end"):
                self._ending = True
                self.tell()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the registry goes away")
            if self._take("slow"):
                await self.go_on.wait()
            yield self._spoilt(response)

    def _wanted(self, request: pb.Target) -> pb.TargetResponse:
        wanted = [
            item
            for item in self.targets.values()
            if request.status in (pb.Target.ANY, item.status)
            and item.type == request.type
            and request.stream.name in ("", item.stream.name)
            and item.stream.conduit == request.stream.conduit
        ]
        return pb.TargetResponse(targets=wanted)

    async def _answers(
        self, now: Callable[[], Response], context: grpc.aio.ServicerContext[Any, Response]
    ) -> AsyncIterator[Response]:
        watch = asyncio.Event()
        watch.set()
        self._watches.add(watch)
        try:
            while True:
                await watch.wait()
                watch.clear()
                if self._ending:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the registry goes away")
                yield now()
        finally:
            self._watches.discard(watch)
            if not self._watches:
                self._ending = False

    def _take(self, fault: str) -> bool:
        armed = fault in self._faults
        self._faults.discard(fault)
        return armed

    def _spoilt(self, response: pb.TargetResponse) -> pb.TargetResponse:
        spoilt = pb.TargetResponse()
        spoilt.CopyFrom(response)
        if self._take("empty_list"):
            del spoilt.targets[:]
        if len(spoilt.targets) > 1 and self._take("duplicate_identifiers"):
            spoilt.targets[1].context["identifier"] = spoilt.targets[0].context["identifier"]
        if spoilt.targets and self._take("garbage_ips"):
            spoilt.targets[0].ips[:] = GARBAGE_IPS
        if spoilt.targets and self._take("missing_identifier"):
            spoilt.targets[0].context.clear()
        return spoilt


def _key(item: pb.Target) -> _Key:
    place = item.stream.conduit
    return tuple(item.ips), item.type, item.stream.name, place.name, place.trench.name
