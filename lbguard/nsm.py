"""Network service manager (NSM) of this node: client of its connection events, and their translation for the core.

A target reaches its proxy by a connection of which it is the client, and the load balancer resolves the target's
addresses through the proxy's bridge. So when such a connection is closed, or its client has another interface, the load
balancer's neighbour entries of the client's addresses are wrong. The kernel detects that after seconds, the manager
reports it at once.

A connection that the mesh reports down is being repaired. That is HEALING evidence, for the targets that are its
client, or for the link when its far end is the load balancer itself.

The loss of a manager changes nothing. Nor does a list that lacks a known connection: a restarted manager has none of
them for a time.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import grpc

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.api.gen.nsm.connection import connection_pb2_grpc as pb_grpc
from lbguard.core.addr import Ip
from lbguard.core.events import NeighborsOutdated, VerdictReported
from lbguard.core.model import ConnectionSubject, Verdict, VerdictState
from lbguard.rpc.backoff import Backoff
from lbguard.rpc.channels import ChannelError, Dialer, reason_of
from lbguard.settings.notation import Endpoint
from lbguard.telemetry.log import fields

HEALING_STATES = frozenset({pb.DOWN, pb.RESELECT_REQUESTED})
"""The states in which the mesh repairs a connection."""


_ADDRESSES_READ = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionScope:
    """Filter of connections.

    With names of network services, a manager reports the connections of the whole cluster; without, of its node.
    """

    network_services: tuple[str, ...] = ()
    path_segments: tuple[str, ...] = ()

    def selector(self) -> pb.MonitorScopeSelector:
        """Return the request to the manager."""
        return pb.MonitorScopeSelector(
            network_services=self.network_services,
            path_segments=[pb.PathSegment(name=name) for name in self.path_segments],
        )

    def fits(self, message: pb.Connection) -> bool:
        """Return whether a connection is in scope: an older manager does not support every part of the request."""
        if self.network_services and message.network_service not in self.network_services:
            return False
        names = tuple(segment.name for segment in message.path.path_segments)
        wanted = self.path_segments
        return not wanted or any(names[n : n + len(wanted)] == wanted for n in range(len(names) - len(wanted) + 1))


def connection_id(key: str, message: pb.Connection) -> str:
    """Return the id that all hops of a connection share: that of the first segment of its path, the client's."""
    segments = message.path.path_segments
    return (segments[0].id if segments else "") or key


class Address(NamedTuple):
    """An address and the length of its prefix, bits."""

    ip: Ip
    length: int


def addresses_of(texts: Sequence[str]) -> Iterator[Address]:
    """Yield the valid ones of the first 64 addresses such as `172.16.0.1/32`; the list is external input."""
    for text in texts[:_ADDRESSES_READ]:
        try:
            interface = ipaddress.ip_interface(text)
        except ValueError:
            continue
        if not (interface.ip.is_multicast or interface.ip.is_unspecified):
            yield Address(interface.ip.packed, interface.network.prefixlen)


def ips_of(texts: Sequence[str]) -> Iterator[Ip]:
    """Yield the same addresses without the lengths."""
    return (address.ip for address in addresses_of(texts))


def mac_of(text: str) -> bytes:
    """Return a link-layer address such as `02:00:00:00:00:01`; empty when no interface can have it."""
    try:
        mac = bytes.fromhex(text.replace(":", " "))
    except ValueError:
        return b""
    return mac if len(mac) == 6 and any(mac) and not mac[0] & 1 else b""


_log = logging.getLogger("lbguard.nsm.manager")

ROTATION_LOOK_S = 1.0
"""Interval at which the TLS files are checked."""


class ManagerStream:
    """Stream of one manager's events. `losses` counts lost connections, each once until it is back.

    Args:
        endpoint: its address.
        dialer: makes channels to it.
        scope: the connections that it is requested to report.
        on_event: receives each event. A stream begins with a list of all connections.
        lose: receives the reason of a loss, and each other reason that occurs until the manager is back.
        backoff_max_s: the longest wait before a new connection.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        dialer: Dialer,
        scope: ConnectionScope,
        *,
        on_event: Callable[[pb.ConnectionEvent], None],
        lose: Callable[[str], None],
        backoff_max_s: float = 1.0,
    ) -> None:
        self.losses = 0
        self._endpoint = endpoint
        self._dialer = dialer
        self._scope = scope
        self._on_event = on_event
        self._lose = lose
        self._backoff = Backoff(backoff_max_s)
        self._lost = ""

    async def run(self) -> None:
        """Follow the manager until cancelled."""
        while True:
            try:
                reason = await self._follow()
            except ChannelError as error:
                reason = str(error)
            if reason and reason != self._lost:
                if not self._lost:
                    self.losses += 1
                self._lost = reason
                self._lose(f"{self._endpoint}: {reason}")
            await asyncio.sleep(self._backoff.next_s())

    async def _follow(self) -> str:
        """Follow one stream to its end and return why it ended; empty when a new one has to begin at once."""
        stamp = self._dialer.stamp()
        async with self._dialer.dial(self._endpoint) as session:
            stub: pb_grpc.MonitorConnectionAsyncStub = pb_grpc.MonitorConnectionStub(session.channel)
            call = stub.MonitorConnections(self._scope.selector())
            rotation = asyncio.create_task(_cancel_when_rotated(self._dialer, stamp, call))
            try:
                async for event in call:
                    self._backoff.reset()
                    self._lost = ""
                    self._on_event(event)
            except grpc.aio.AioRpcError as error:
                return session.problem or reason_of(error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                _log.info("new certificates: dialling again", extra=fields(address=str(self._endpoint)))
                return ""
            finally:
                rotation.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await rotation
        return "the manager ended the stream"


async def _cancel_when_rotated(dialer: Dialer, stamp: object, call: grpc.aio.Call) -> None:
    while dialer.stamp() == stamp:  # noqa: ASYNC110 (files do not notify)
        await asyncio.sleep(ROTATION_LOOK_S)
    call.cancel()


REPORTER = "nsm"
"""Reporter name of a manager's evidence. No peer can have this name: theirs are authenticated."""

WatchEvent = NeighborsOutdated | VerdictReported


class Known(Protocol):
    """Interface to the load balancer's known addresses."""

    def is_target(self, ip: Ip) -> bool:
        """Return whether an address is a target's."""

    def is_ours(self, ip: Ip) -> bool:
        """Return whether a link of ours has this address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passage:
    """A connection at one manager: addresses of client and endpoint, and the client's link-layer address."""

    connection: str
    client: tuple[Ip, ...]
    endpoint: tuple[Ip, ...]
    mac: bytes
    healing: bool


class ConnectionWatch:
    """Compares each message of a connection with the previous one.

    Args:
        scope: the connections that count.
        known: the classifier of addresses.
        heal_s: how long a repair may take, seconds.
        passages_max: number of remembered ones; those without an event for longest are forgotten.
    """

    def __init__(
        self, scope: ConnectionScope, known: Known, *, heal_s: float = 15.0, passages_max: int = 20_000
    ) -> None:
        self._scope = scope
        self._known = known
        self._heal_s = heal_s
        self._passages_max = passages_max
        self._passages: OrderedDict[str, _Passage] = OrderedDict()
        self._healing: dict[str, set[str]] = {}
        self._reported: dict[str, ConnectionSubject] = {}
        self._generations = itertools.count(1)

    def __len__(self) -> int:
        return len(self._passages)

    def apply(self, event: pb.ConnectionEvent) -> list[WatchEvent]:
        """Apply an event of the manager; return the events for the core."""
        events: list[WatchEvent] = []
        for key, message in sorted(event.connections.items()):
            id = message.id or key
            fits = self._scope.fits(message)
            if event.type == pb.DELETE:
                events += self._delete(id, message) if fits or id in self._passages else ()
            elif fits:
                events += self._update(id, message, live=event.type == pb.UPDATE)
            else:
                self._forget(id)
        return events

    def _update(self, id: str, message: pb.Connection, *, live: bool) -> Iterator[WatchEvent]:
        before = self._passages.get(id)
        now = _read(id, message, before)
        self._passages[id] = now
        self._passages.move_to_end(id)
        if before is None:
            # A new connection has a new interface. One in a list of all may be the interface that is resolved already.
            if live or now.mac:
                yield from self._outdated(now.client, now.mac)
            while len(self._passages) > self._passages_max:
                self._forget(next(iter(self._passages)))
        else:
            yield from self._outdated(tuple(ip for ip in before.client if ip not in now.client))
            repaired = before.healing and not now.healing and not now.mac
            if now.mac != before.mac or repaired:
                yield from self._outdated(now.client, now.mac)
            else:
                yield from self._outdated(tuple(ip for ip in now.client if ip not in before.client), now.mac)
        yield from self._follow_repair(id, now)

    def _delete(self, id: str, message: pb.Connection) -> Iterator[WatchEvent]:
        gone = self._passages.get(id) or _read(id, message, None)
        # A repair may close the connection: its evidence stays until the time of the repair ends.
        self._forget(id)
        yield from self._outdated(gone.client)

    def _forget(self, id: str) -> None:
        gone = self._passages.pop(id, None)
        if gone is None:
            return
        healing = self._healing.get(gone.connection)
        if healing is not None:
            healing.discard(id)
            if not healing:
                del self._healing[gone.connection]
                self._reported.pop(gone.connection, None)

    def _outdated(self, ips: tuple[Ip, ...], mac: bytes = b"") -> Iterator[WatchEvent]:
        targets = tuple(ip for ip in ips if self._known.is_target(ip))
        if targets:
            yield NeighborsOutdated(ips=targets, new_mac=mac)

    def _follow_repair(self, id: str, now: _Passage) -> Iterator[WatchEvent]:
        """Report when the repair of a connection's first passage begins, and when the last one ends."""
        healing = self._healing.setdefault(now.connection, set())
        was = bool(healing)
        (healing.add if now.healing else healing.discard)(id)
        if healing and not was:
            subject = self._subject(now)
            if subject is not None:
                self._reported[now.connection] = subject
                yield self._verdict(subject, VerdictState.HEALING)
        elif not healing:
            del self._healing[now.connection]
            reported = self._reported.pop(now.connection, None)
            if reported is not None:
                # Not UP: a manager does not test the path, and must not contradict reporters that do.
                yield self._verdict(reported, VerdictState.ENDED)

    def _subject(self, passage: _Passage) -> ConnectionSubject | None:
        targets = tuple(ip for ip in passage.client if self._known.is_target(ip))
        ours = tuple(ip for ip in passage.endpoint if self._known.is_ours(ip))
        if not targets and not ours:
            return None
        return ConnectionSubject(id=passage.connection, lb_ips=ours, peer_ips=targets)

    def _verdict(self, subject: ConnectionSubject, state: VerdictState) -> VerdictReported:
        verdict = Verdict(
            subject=subject,
            state=state,
            generation=next(self._generations),
            sequence=0,
            lease_s=self._heal_s,
            heal_s=self._heal_s,
        )
        return VerdictReported(reporter=REPORTER, verdict=verdict)


def _read(id: str, message: pb.Connection, before: _Passage | None) -> _Passage:
    """Read a message. Fields that a connection under repair lacks are taken from the previous message."""
    context = message.context
    client = tuple(dict.fromkeys(ips_of(context.ip_context.src_ip_addrs)))
    endpoint = tuple(dict.fromkeys(ips_of(context.ip_context.dst_ip_addrs)))
    mac = mac_of(context.ethernet_context.src_mac)
    healing = message.state in HEALING_STATES
    if before is not None:
        if healing and not client and not endpoint:
            client, endpoint = before.client, before.endpoint
        if client == before.client:
            mac = mac or before.mac
    return _Passage(connection=connection_id(id, message), client=client, endpoint=endpoint, mac=mac, healing=healing)
