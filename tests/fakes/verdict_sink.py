"""A working verdict service that keeps what it is told, with one-shot faults by name."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import grpc

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc

FAULTS = frozenset({"end_stream", "ignore", "refuse", "never_answer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """One verdict as it came. `at` is the monotonic time, `stream` counts the streams from 1."""

    at: float
    stream: int
    ticket: int
    verdict: pb.Verdict

    @property
    def state(self) -> str:
        """The state's short name, such as `DOWN`."""
        return pb.VerdictState.Name(self.verdict.state).removeprefix("VERDICT_STATE_")


class VerdictSink(pb_grpc.VerdictServiceServicer):
    """Keeps every verdict in order of arrival.

    Faults, each once: `end_stream` ends the stream in place of the next answer; `ignore` answers the next request with
    every verdict ignored as `late`; `refuse` ends the next stream with PERMISSION_DENIED; `never_answer` leaves the
    next request unanswered, while the stream stays open.
    """

    def __init__(self) -> None:
        self.arrived: list[Arrived] = []
        self.streams = 0
        self.port = 0
        self._faults: set[str] = set()
        self._server: grpc.aio.Server | None = None

    def fail_once(self, fault: str) -> None:
        """Arm a fault."""
        assert fault in FAULTS, fault
        self._faults.add(fault)

    async def start(self, address: str = "127.0.0.1:0", *, credentials: grpc.ServerCredentials | None = None) -> str:
        """Serve `unix:PATH` or `HOST:PORT` in this thread's network; return the address to dial."""
        server = grpc.aio.server()
        pb_grpc.add_VerdictServiceServicer_to_server(self, server)
        if credentials is not None:
            self.port = server.add_secure_port(address, credentials)
        else:
            self.port = server.add_insecure_port(address)
        await server.start()
        self._server = server
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{self.port}"

    async def stop(self) -> None:
        """End the server and its streams."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    def states(self, subject: str) -> list[str]:
        """Return the states told of a subject, in order, without repetitions."""
        told = [item.state for item in self.arrived if name_of(item.verdict.subject) == subject]
        return [state for n, state in enumerate(told) if n == 0 or told[n - 1] != state]

    def last(self, subject: str) -> Arrived | None:
        """Return the last verdict of a subject."""
        return next((item for item in reversed(self.arrived) if name_of(item.verdict.subject) == subject), None)

    async def Report(  # noqa: N802 (the name is the protocol's)
        self,
        request_iterator: AsyncIterator[pb.ReportRequest],
        context: grpc.aio.ServicerContext[pb.ReportRequest, pb.ReportResponse],
    ) -> AsyncIterator[pb.ReportResponse]:
        self.streams += 1
        if self._take("refuse"):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this reporter may not speak of anything")
        async for request in request_iterator:
            if self._take("end_stream"):
                return
            self._keep(request.verdicts, request.ticket)
            if self._take("never_answer"):
                await asyncio.Event().wait()
            ignored = range(len(request.verdicts)) if self._take("ignore") else range(0)
            yield pb.ReportResponse(
                ticket=request.ticket,
                accepted=len(request.verdicts) - len(ignored),
                ignored=[pb.IgnoredVerdict(index=index, reason="late") for index in ignored],
            )

    async def ReportOnce(  # noqa: N802
        self,
        request: pb.ReportOnceRequest,
        context: grpc.aio.ServicerContext[pb.ReportOnceRequest, pb.ReportOnceResponse],
    ) -> pb.ReportOnceResponse:
        self._keep(request.verdicts, 0)
        return pb.ReportOnceResponse(accepted=len(request.verdicts))

    def _keep(self, verdicts: Iterable[pb.Verdict], ticket: int) -> None:
        now = time.monotonic()
        for verdict in verdicts:
            self.arrived.append(Arrived(at=now, stream=self.streams, ticket=ticket, verdict=verdict))

    def _take(self, fault: str) -> bool:
        armed = fault in self._faults
        self._faults.discard(fault)
        return armed


def name_of(subject: pb.Subject) -> str:
    """Return a subject's name: a connection's id, a target's address, or `LB IP>proxy IP` of a link."""
    match subject.WhichOneof("kind"):
        case "connection":
            return subject.connection.id
        case "target_ip":
            return subject.target_ip
        case "link":
            return f"{subject.link.lb_ip}>{subject.link.proxy_ip}"
    return ""
