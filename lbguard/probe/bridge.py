"""Source of connections for the probe: the neighbours on the proxy's bridge, each kept while it may come back.

A proxy bridges the links to its load balancers and to its targets, so both are neighbours on the bridge. The port on
which the bridge learned a neighbour's link-layer address shows its kind. A neighbour that failed or was removed is
pinged for some time longer: the kernel drops entries that do not answer, and exactly these have to be reported.
"""

import asyncio
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from pyroute2.netlink.rtnl import RTM_GETNEIGH
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from lbguard.core.addr import Ip, format_ip, is_link_local, prefix_of
from lbguard.core.model import NeighborState
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.framing import attributes
from lbguard.kernel.requests import KernelRequests
from lbguard.probe.connections import Connection, ConnectionList, ConnectionsLost, Emit, connections_of
from lbguard.probe.kernel_view import KernelView
from lbguard.settings.probe import SubjectKind

_AF_BRIDGE: Final = 7
_NDA_MASTER: Final = 9
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_U32: Final = struct.Struct("=I")


class BridgePortsError(Exception):
    """The forwarding database cannot be read."""


class BridgePorts:
    """Reader of the forwarding database of a network namespace (None: that of the calling thread)."""

    def __init__(self, netns: str | None = None) -> None:
        self._requests = KernelRequests(netns)

    async def read(self, bridge: int) -> dict[bytes, int]:
        """Return the port (ifindex) of each link-layer address behind a bridge (ifindex).

        Raises:
            BridgePortsError: the kernel refuses or does not answer.
        """
        request = ndmsg()
        request["family"] = _AF_BRIDGE
        try:
            entries = await self._requests.dump(request, RTM_GETNEIGH, _entry)
        except OSError as error:
            raise BridgePortsError(f"the forwarding database cannot be read: {error.strerror}") from None
        return {mac: port for mac, port, master in entries if master == bridge}

    def close(self) -> None:
        """Close the socket."""
        self._requests.close()


def _entry(message: memoryview) -> tuple[bytes, int, int] | None:
    """Return link-layer address, port and bridge of an entry."""
    family, port, _state, _flags, _type = _NDMSG.unpack_from(message)
    mac, master = b"", 0
    for kind, payload in attributes(message[_NDMSG.size :]):
        if kind == c.NDA_LLADDR:
            mac = bytes(payload)
        elif kind == _NDA_MASTER and len(payload) == _U32.size:
            (master,) = _U32.unpack(payload)
    return (mac, port, master) if family == _AF_BRIDGE and mac else None


LOOK_INTERVAL_S = 1.0
"""Interval of full reads of the bridge, beside the kernel's events."""

_UNKNOWN = frozenset({NeighborState.NONE, NeighborState.INCOMPLETE, NeighborState.FAILED})


@dataclass(slots=True)
class _Known:
    mac: bytes
    seen_at: float
    kind: SubjectKind | None


class BridgeNeighbors:
    """The neighbours of one bridge, with memory. Pure except for the view that it reads.

    Args:
        name: the bridge.
        lb_ports: patterns of the names of ports that lead to load balancers; empty: every neighbour is a target.
        keep_s: how long a neighbour without an entry in the kernel stays.
        max_connections: limit; more are left out.
    """

    def __init__(self, name: str, lb_ports: tuple[str, ...], keep_s: float, max_connections: int) -> None:
        self.name = name
        self._lb_ports = lb_ports
        self._keep_s = keep_s
        self._max_connections = max_connections
        self._known: dict[Ip, _Known] = {}

    @property
    def needs_ports(self) -> bool:
        """Return whether the forwarding database matters."""
        return bool(self._lb_ports)

    def look(self, view: KernelView, ports: Mapping[bytes, int], now: float) -> ConnectionList | ConnectionsLost:
        """Return the connections to monitor.

        Args:
            view: the kernel.
            ports: the port (ifindex) of each link-layer address behind the bridge.
            now: monotonic time.
        """
        bridge = view.link_named(self.name)
        if bridge is None:
            return ConnectionsLost(reason=f"there is no link {self.name}")
        ours = view.addresses_of(bridge.ifindex)
        for (ifindex, ip), entry in view.neighbors.items():
            if ifindex != bridge.ifindex or entry.state in _UNKNOWN or not entry.mac:
                continue
            if is_link_local(ip) or any(address.ip == ip for address in ours):
                continue
            known = self._known.get(ip)
            kind = self._kind_of(entry.mac, ports, view) or (known.kind if known else None)
            self._known[ip] = _Known(entry.mac, now, kind)
        for ip in [ip for ip, known in self._known.items() if now - known.seen_at > self._keep_s]:
            del self._known[ip]
        found: list[Connection] = []
        left_out: list[str] = []
        for ip, known in self._known.items():
            local = [address.ip for address in ours if _covers(address.ip, address.prefix_length, ip)]
            if known.kind is None:
                left_out.append(f"{format_ip(ip)}: the bridge has not learned on which port it is")
            elif not local:
                left_out.append(f"{format_ip(ip)}: {self.name} has no address in its subnet")
            elif len(found) >= self._max_connections:
                left_out.append(f"more than {self._max_connections} connections")
                break
            else:
                # A verdict on a target carries the target's link-layer address, one on a link that of our end.
                mac = known.mac if known.kind == "target" else bridge.mac
                found += connections_of(
                    id=self.name, kind=known.kind, local=local[:1], remote=(ip,), ifname=self.name, mac=mac
                )
        return ConnectionList(connections=tuple(found), left_out=tuple(left_out))

    def _kind_of(self, mac: bytes, ports: Mapping[bytes, int], view: KernelView) -> SubjectKind | None:
        """Return the kind of a link-layer address; None while the bridge has not learned its port."""
        if not self._lb_ports:
            return "target"
        port = view.links.get(ports.get(mac, 0))
        if port is None:
            return None
        return "link" if any(fnmatchcase(port.name, pattern) for pattern in self._lb_ports) else "target"


class BridgeSource:
    """Source that reads the bridge at every change of the view, and once a second.

    `emit` receives the list when it changes, and a loss once.
    """

    def __init__(
        self,
        neighbors: BridgeNeighbors,
        view: KernelView,
        ports: BridgePorts | None,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert ports is not None or not neighbors.needs_ports
        self._neighbors = neighbors
        self._view = view
        self._ports = ports
        self._emit = emit
        self._clock = clock
        self._last: ConnectionList | ConnectionsLost | None = None
        self._wake = asyncio.Event()

    def reload(self) -> None:
        """Read again soon."""
        self._wake.set()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            self._wake.clear()
            if self._view.complete:
                found = await self._look()
                if found != self._last:
                    self._last = found
                    self._emit(found)
            try:
                await asyncio.wait_for(self._wake.wait(), LOOK_INTERVAL_S)
            except TimeoutError:
                continue

    async def _look(self) -> ConnectionList | ConnectionsLost:
        learned: dict[bytes, int] = {}
        bridge = self._view.link_named(self._neighbors.name)
        if self._ports is not None and self._neighbors.needs_ports and bridge is not None:
            try:
                learned = await self._ports.read(bridge.ifindex)
            except BridgePortsError as error:
                return ConnectionsLost(reason=str(error))
        return self._neighbors.look(self._view, learned, self._clock())


def _covers(ip: Ip, length: int, other: Ip) -> bool:
    return len(ip) == len(other) and prefix_of(ip, length) == prefix_of(other, length)
