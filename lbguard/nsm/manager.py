"""Client of a network service manager (NSM): follows its stream of connection events, and reconnects."""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.api.gen.nsm.connection import connection_pb2_grpc as pb_grpc
from lbguard.core.addr import Ip
from lbguard.rpc.channels import Backoff, ChannelError, Dialer, reason_of
from lbguard.settings.dial_address import Endpoint
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
