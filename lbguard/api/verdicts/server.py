"""VerdictService: receives reports, and answers each after the core's decision.

The policy is checked before a call gets a place and before its content is read. Then every request passes the same
steps: size and rate (before any other work), its fields, the policy on its addresses, the state that it would take up,
and last the core. A request is accepted whole or refused whole. A stream handles one request at a time. So a reporter
that does not read its answers is not read either, and HTTP/2's flow control bounds its waiting requests.
"""

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from lbguard.api.calls import RequestMissing, Requests
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.verdicts.convert import LEASE_S_MAX, InvalidField, verdict_from_proto
from lbguard.api.verdicts.policy import Denied, Policy, Subnets, check_subject, reporter_of
from lbguard.api.verdicts.queue import Accounts, Limit, LimitExceeded
from lbguard.core.effects import VerdictAnswered
from lbguard.core.model import Verdict
from lbguard.rpc.channels import REPORTER_KEY
from lbguard.rpc.security import names_of
from lbguard.settings.peers import UNIX_PEER
from lbguard.settings.verdicts import VerdictLimits

SERVICE = "lbguard.v1.VerdictService"


REPLACED = "replaced by a newer stream of the same reporter"

IDLE_MAX_S = 2 * LEASE_S_MAX
"""A stream that is silent for so long has no verdict left that counts; it gives its place back."""

IDLE = f"nothing was reported for {IDLE_MAX_S:g} s"


Submit = Callable[[str, Verdict], Awaitable[VerdictAnswered]]
"""Hands a verdict of a reporter to the core; resolves to what became of it. May be cancelled."""

_REPORTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VERDICTS_A_TURN = 32

_Context = grpc.aio.ServicerContext[Any, Any]
_Request = TypeVar("_Request", pb.ReportRequest, pb.ReportOnceRequest)


@dataclass(slots=True)
class VerdictCounters:
    """Counters that only grow. Requests: denied, limited, invalid. Verdicts: received, ignored."""

    received: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    denied: Counter[str] = field(default_factory=Counter)
    limited: Counter[str] = field(default_factory=Counter)
    invalid: int = 0
    replaced: int = 0


class _Peer(NamedTuple):
    identity: str
    reporter: str
    subnets: Subnets


@dataclass(slots=True, eq=False)
class _Stream:
    replaced: "asyncio.Future[None]"
    received_at: float
    answers: "asyncio.Future[list[VerdictAnswered]] | None" = None

    def give_up(self) -> None:
        """Stop waiting for the core's answer to the current request."""
        if self.answers is not None:
            self.answers.cancel()


@dataclass(frozen=True, slots=True)
class _Unread:
    """A message that was not taken apart: too large, or no message at all."""

    refusal: Exception


class VerdictIntake:
    """State that all listeners share: accounts, streams, counters and the way into the core.

    Args:
        submit: receives each accepted verdict.
        policy: peers and their subnets.
        limits: bounds of reporters.
        clock: seconds, monotonic.
        idle_max_s: a stream without a request for this long is ended.
    """

    def __init__(
        self,
        submit: Submit,
        policy: Policy,
        limits: VerdictLimits,
        clock: Callable[[], float] = time.monotonic,
        *,
        idle_max_s: float = IDLE_MAX_S,
    ) -> None:
        self.idle_max_s = idle_max_s
        self.counters = VerdictCounters()
        # What gRPC itself refuses has no name of ours; so it takes a little more, which is then refused unread.
        self.message_bytes_read = 2 * limits.message_bytes_max
        self._message_bytes_max = limits.message_bytes_max
        self._submit = submit
        self._policy = policy
        self._accounts = Accounts(limits)
        self._clock = clock
        self._streams: dict[str, _Stream] = {}

    @property
    def streams(self) -> int:
        """Return the number of open streams."""
        return len(self._streams)

    @property
    def reporters(self) -> int:
        """Return the number of known reporters."""
        return self._accounts.reporters

    @property
    def subjects(self) -> int:
        """Return the number of subjects of all reporters."""
        return self._accounts.subjects

    def handlers(self, names: "Callable[[_Context], tuple[str, ...]]") -> "grpc.GenericRpcHandler[Any, Any]":
        """Return the service for one listener.

        Args:
            names: what the listener's transport proved of the peer of a call.
        """
        service = _VerdictService(self, names)
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Report": grpc.stream_stream_rpc_method_handler(
                    service.report, self._reader(pb.ReportRequest), pb.ReportResponse.SerializeToString
                ),
                # For a peer it is a call of one request; served so, the policy is asked before that is read.
                "ReportOnce": grpc.stream_unary_rpc_method_handler(
                    service.report_once, self._reader(pb.ReportOnceRequest), pb.ReportOnceResponse.SerializeToString
                ),
            },
        )

    def admit(self, names: tuple[str, ...], context: _Context) -> _Peer:
        """Return a peer that may report: its identity, its reporter and its subnets.

        Raises:
            Denied, InvalidField: it may not report, or its reporter name is invalid.
        """
        identity, subnets = self._policy.admit(names)
        metadata = dict(context.invocation_metadata() or ())
        name = metadata.get(REPORTER_KEY, "")
        if name and (not isinstance(name, str) or _REPORTER_NAME.fullmatch(name) is None):
            raise InvalidField(f"metadata {REPORTER_KEY}", name, f"a match of {_REPORTER_NAME.pattern}")
        # Many proxies share one identity, so without a name the address tells them apart.
        return _Peer(identity, reporter_of(identity, name, _host(context.peer())), subnets)

    @contextlib.contextmanager
    def call(self, peer: _Peer) -> Iterator[None]:
        """Count a call of a reporter while it lasts.

        Raises:
            LimitExceeded: too many reporters, or too many calls of this one.
        """
        self._accounts.enter(peer.identity, peer.reporter, self._clock())
        try:
            yield
        finally:
            self._accounts.leave(peer.reporter)

    @contextlib.contextmanager
    def stream(self, reporter: str) -> Iterator[_Stream]:
        """Become the one stream of a reporter; an earlier one is ended as replaced."""
        old = self._streams.get(reporter)
        if old is not None and not old.replaced.done():
            old.replaced.set_result(None)
            self.counters.replaced += 1
        stream = self._streams[reporter] = _Stream(asyncio.get_running_loop().create_future(), self._clock())
        try:
            yield stream
        finally:
            if self._streams[reporter] is stream:
                del self._streams[reporter]

    def idle_for_s(self, stream: _Stream) -> float:
        """Return for how long a stream has been silent."""
        return self._clock() - stream.received_at

    async def take(
        self, peer: _Peer, request: "_Request | _Unread", stream: _Stream | None = None
    ) -> tuple[int, list[pb.IgnoredVerdict]]:
        """Let a request in; return how many verdicts were accepted, and the others with their reasons.

        Raises:
            InvalidField, Denied, LimitExceeded: nothing of it was taken.
        """
        if stream is not None:
            stream.received_at = self._clock()
        if isinstance(request, _Unread):
            self._accounts.charge(peer.reporter, 1, self._clock())
            raise request.refusal
        messages = request.verdicts
        self._accounts.charge(peer.reporter, len(messages), self._clock())
        verdicts: list[Verdict] = []
        for index, message in enumerate(messages):
            verdict = verdict_from_proto(message, index)
            check_subject(verdict.subject, peer.subnets, f"verdicts[{index}].subject")
            verdicts.append(verdict)
            if len(verdicts) % _VERDICTS_A_TURN == 0:
                # Others have the loop in between: link events must not wait for a long list.
                await asyncio.sleep(0)
        self._accounts.hold(peer.reporter, verdicts, self._clock())
        for verdict in verdicts:
            self.counters.received[verdict.state] += 1
        answers = asyncio.gather(*(self._submit(peer.reporter, verdict) for verdict in verdicts))
        if stream is not None:
            stream.answers = answers
        ignored = [
            pb.IgnoredVerdict(index=index, reason=answer.reason, generation=answer.generation)
            for index, answer in enumerate(await answers)
            if answer.reason
        ]
        self.counters.ignored.update(item.reason for item in ignored)
        return len(verdicts) - len(ignored), ignored

    async def refuse(self, context: _Context, refusal: Exception, place: str = "") -> None:
        """Count a refusal and end the call with it; always raises."""
        match refusal:
            case InvalidField():
                self.counters.invalid += 1
                code = grpc.StatusCode.INVALID_ARGUMENT
            case Denied():
                self.counters.denied[refusal.reason] += 1
                code = grpc.StatusCode.PERMISSION_DENIED
            case LimitExceeded():
                self.counters.limited[refusal.limit] += 1
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
            case _:
                raise refusal
        await context.abort(code, f"{place}{refusal}")

    def _reader(self, kind: type[_Request]) -> "Callable[[bytes], _Request | _Unread]":
        """Return a deserializer. It must not raise: gRPC would answer with UNKNOWN and log a trace for each."""
        allowed = self._message_bytes_max

        def read(data: bytes) -> _Request | _Unread:
            if len(data) > allowed:
                return _Unread(LimitExceeded(Limit.MESSAGE, f"{len(data)} bytes; at most {allowed}"))
            try:
                return kind.FromString(data)
            except DecodeError:
                return _Unread(InvalidField("request", f"{len(data)} bytes", f"a {kind.DESCRIPTOR.full_name}"))

        return read


class _VerdictService:
    """The two calls on one listener."""

    def __init__(self, intake: VerdictIntake, names: Callable[[_Context], tuple[str, ...]]) -> None:
        self._intake = intake
        self._names = names
        self._requests = Requests()

    async def report(self, requests: AsyncIterator[Any], context: _Context) -> None:
        """Serve a stream.

        A separate task reads and writes, and is never cancelled: gRPC does not survive the end of a task during a read
        or a write. After the end of a call, on either side, gRPC ends its reads and writes by itself.
        """
        place = ""
        try:
            peer = self._intake.admit(self._names(context), context)
            with self._intake.call(peer):
                # Sent together with the first answer, the metadata would stand in the way of a status meanwhile.
                await context.send_initial_metadata(())
                with self._intake.stream(peer.reporter) as stream:
                    work = asyncio.create_task(self._answer_all(peer, stream, context))
                    try:
                        await self._until_over(work, stream)
                    finally:
                        stream.give_up()
                if not work.done():
                    try:
                        await context.abort(grpc.StatusCode.ABORTED, REPLACED if stream.replaced.done() else IDLE)
                    finally:
                        await asyncio.wait({work})
                refused = work.result()
                if refused is not None:
                    place, refusal = refused
                    raise refusal
        except (InvalidField, Denied, LimitExceeded) as refusal:
            await self._intake.refuse(context, refusal, place)

    async def _until_over(self, work: "asyncio.Task[Any]", stream: _Stream) -> None:
        """Wait until a stream has ended, is replaced, or has been silent for too long."""
        ends: set[asyncio.Future[Any]] = {work, stream.replaced}
        while (left_s := self._intake.idle_max_s - self._intake.idle_for_s(stream)) > 0:
            done, _ = await asyncio.wait(ends, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return

    async def _answer_all(self, peer: _Peer, stream: _Stream, context: _Context) -> tuple[str, Exception] | None:
        """Answer requests until the stream ends; return why it is refused, and where, if it is."""
        ticket = 0
        try:
            while (request := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                ticket = 0 if isinstance(request, _Unread) else request.ticket
                accepted, ignored = await self._intake.take(peer, request, stream)
                await context.write(pb.ReportResponse(ticket=ticket, accepted=accepted, ignored=ignored))
        except (InvalidField, Denied, LimitExceeded) as refusal:
            return f"ticket {ticket}: " if ticket else "", refusal
        except grpc.aio.BaseError:
            pass  # The reporter is gone, or the stream was ended while an answer was on its way.
        except asyncio.CancelledError:
            pass  # The stream was given up while the core was thinking.
        return None

    async def report_once(self, requests: Any, context: _Context) -> pb.ReportOnceResponse:
        """Serve one batch."""
        try:
            peer = self._intake.admit(self._names(context), context)
            with self._intake.call(peer):
                request = await self._requests.read(context)
                accepted, ignored = await self._intake.take(peer, request)
        except RequestMissing as missing:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(missing))
        except (InvalidField, Denied, LimitExceeded) as refusal:
            await self._intake.refuse(context, refusal)
        return pb.ReportOnceResponse(accepted=accepted, ignored=ignored)


def unix_names(context: _Context) -> tuple[str, ...]:
    """Return the name of any peer on the unix socket: gRPC knows nothing of the process at the other end."""
    return (UNIX_PEER,)


def certificate_names(context: _Context) -> tuple[str, ...]:
    """Return the names in the certificate of a peer."""
    return names_of(context.auth_context())


def peer_of(context: _Context) -> str:
    """Return a name for the peer of a call over TCP: the first name in its certificate, or else its address."""
    names = certificate_names(context)
    return names[0] if names else _host(context.peer())


def _host(peer: str) -> str:
    """Return the address in gRPC's name of a peer, such as `ipv6:%5B::1%5D:50000`; empty for a unix socket."""
    kind, _, rest = peer.partition(":")
    return unquote(rest).rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else ""
