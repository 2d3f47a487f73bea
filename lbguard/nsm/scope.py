"""Filter and decoder of a network service manager's connections and messages. Pure."""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.core.addr import Ip

HEALING_STATES = frozenset({pb.DOWN, pb.RESELECT_REQUESTED})
"""The states in which the mesh repairs a connection."""


_ADDRESSES_READ = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionScope:
    """Filter of connections.

    A manager that is asked for network services by name tells of those of the whole cluster; without, of its own node.
    """

    network_services: tuple[str, ...] = ()
    path_segments: tuple[str, ...] = ()

    def selector(self) -> pb.MonitorScopeSelector:
        """Return the question to the manager."""
        return pb.MonitorScopeSelector(
            network_services=self.network_services,
            path_segments=[pb.PathSegment(name=name) for name in self.path_segments],
        )

    def fits(self, message: pb.Connection) -> bool:
        """Return whether a connection counts: an older manager does not understand all of the question."""
        if self.network_services and message.network_service not in self.network_services:
            return False
        names = tuple(segment.name for segment in message.path.path_segments)
        wanted = self.path_segments
        return not wanted or any(names[n : n + len(wanted)] == wanted for n in range(len(names) - len(wanted) + 1))


def connection_id(key: str, message: pb.Connection) -> str:
    """Return the id that every hop of a connection knows: the one in the first segment of its path, the client's."""
    segments = message.path.path_segments
    return (segments[0].id if segments else "") or key


class Address(NamedTuple):
    """An address and the length of its prefix, bits."""

    ip: Ip
    length: int


def addresses_of(texts: Sequence[str]) -> Iterator[Address]:
    """Yield the usable ones of the first 64 of a list such as `172.16.0.1/32`; a mesh element may write anything."""
    for text in texts[:_ADDRESSES_READ]:
        try:
            interface = ipaddress.ip_interface(text)
        except ValueError:
            continue
        if not (interface.ip.is_multicast or interface.ip.is_unspecified):
            yield Address(interface.ip.packed, interface.network.prefixlen)


def ips_of(texts: Sequence[str]) -> Iterator[Ip]:
    """Yield the same without the lengths."""
    return (address.ip for address in addresses_of(texts))


def mac_of(text: str) -> bytes:
    """Return a link-layer address such as `02:00:00:00:00:01`; empty when it is none that an interface can have."""
    try:
        mac = bytes.fromhex(text.replace(":", " "))
    except ValueError:
        return b""
    return mac if len(mac) == 6 and any(mac) and not mac[0] & 1 else b""
