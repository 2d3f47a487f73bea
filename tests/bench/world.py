"""What the benchmarks run in: a load balancer's namespace, a peer that answers for every target, and raw sockets."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import yaml

from lbguard.core.addr import Ip, format_ip, parse_ip
from lbguard.distributor.nftables.session import LIBRARY, NftContext
from lbguard.lab.netns import Namespace, connect
from tests.nft_counter import read_counter

STREAM_SIZE = 100
VIP4, VIP6 = "20.0.0.{}/32", "2000::{:x}/128"
LINK, PEER_PORT, PEER_BRIDGE = "nse-a", "lb", "targets"
OUR_IP4, OUR_IP6 = "172.16.1.254", "fd00::1:1"

_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_ETH_P_ALL = 3
_ARP, _IPV6 = b"\x08\x06", b"\x86\xdd"
_ARP_BYTES = 42
_ADVERTISEMENT = b"\x88"
_RTM_NEWLINK, _RTM_NEWROUTE = 16, 24
_REQUEST_ACK = 0x1 | 0x4
_IFF_UP = 1
_PROTOCOL_AT, _TYPE_AT = 16 + 5, 16 + 7
_OUR_PROTOCOL, _UNICAST = 152, 1
_RTNLGRP_IPV4_ROUTE, _RTNLGRP_IPV6_ROUTE = 7, 11


def target_ips(number: int) -> tuple[Ip, Ip]:
    """Return both addresses of the target with this number (from 0)."""
    if number >= 250 * 250:
        raise ValueError(f"there is no room for target {number}")
    four = f"172.16.{1 + number // 250}.{1 + number % 250}"
    return parse_ip(four), parse_ip(f"fd00::1:{number + 16:x}")


def mark_of(number: int) -> int:
    """Return the fwmark of the target with this number (from 0)."""
    return 5001 + number


def targets_yaml(count: int, *, apart_from: int | None = None) -> str:
    """Return the targets file of so many dual-stack targets, in streams of 100 each.

    The addresses of the targets from `apart_from` on lie in other /24 and /120 subnets than those before.
    """

    def ips(number: int) -> list[str]:
        apart = apart_from is not None and number >= apart_from
        return [format_ip(ip) for ip in target_ips(number + 900 if apart else number)]

    streams = []
    for start in range(0, count, STREAM_SIZE):
        number = start // STREAM_SIZE
        streams.append(
            {
                "name": f"stream-{number}",
                "max_targets": STREAM_SIZE,
                "identifier_offset": 5000 + start,
                "vips": [VIP4.format(number + 1), VIP6.format(number + 1)]
                if number < 254
                else [VIP6.format(number + 1)],
                "targets": [
                    {"identifier": n - start + 1, "ips": ips(n)} for n in range(start, min(count, start + STREAM_SIZE))
                ],
            }
        )
    return yaml.safe_dump({"streams": streams}, sort_keys=False)


@dataclass(frozen=True, slots=True)
class Pair:
    """A load balancer's namespace and that of the peer behind its link."""

    lb: Namespace
    peer: Namespace


@contextlib.contextmanager
def pair(name: str, targets: int, *, prefix4: int = 16, prefix6: int = 64) -> Iterator[Pair]:
    """Join a load balancer to a bridge that holds the addresses of so many targets, as a proxy's bridge leads to them.

    The load balancer keeps its IPv6 address while the link is down, so that one request brings back both families.
    """
    with Namespace(f"{name}-lb") as lb, Namespace(f"{name}-peer") as peer:
        for namespace in (lb, peer):
            for key in ("accept_dad", "dad_transmits"):
                for link in ("all", "default"):
                    namespace.sysctl(f"net.ipv6.conf.{link}.{key}", "0")
        lb.sysctl("net.ipv4.ip_forward", "1")
        lb.sysctl("net.ipv6.conf.all.forwarding", "1")
        lb.sysctl("net.ipv4.conf.all.rp_filter", "0")
        lb.sysctl("net.ipv6.conf.all.keep_addr_on_down", "1")
        connect(lb, LINK, peer, PEER_PORT)
        peer.add_link(PEER_BRIDGE, "bridge")
        # A second port keeps the bridge's carrier while the load balancer's link is down.
        peer.add_veth("anchor", "anchor-end")
        peer.set_link("anchor", PEER_PORT, master=PEER_BRIDGE)
        both = [target_ips(number) for number in range(targets)]
        peer.add_addresses(PEER_BRIDGE, *(f"{format_ip(four)}/{prefix4}" for four, _ in both))
        peer.add_addresses(PEER_BRIDGE, *(f"{format_ip(six)}/{prefix6}" for _, six in both))
        lb.add_addresses(LINK, f"{OUR_IP4}/{prefix4}", f"{OUR_IP6}/{prefix6}")
        yield Pair(lb, peer)


@contextlib.contextmanager
def path(name: str, targets: int, counted: str) -> Iterator[tuple[Namespace, Pair]]:
    """Lead packets from a client through the load balancer to the targets, which count and drop them.

    `counted` is the nftables expression of the packets that are counted.
    """
    with pair(name, targets) as built, Namespace(f"{name}-client") as client:
        client.sysctl("net.ipv6.conf.default.accept_dad", "0")
        connect(client, "lb", built.lb, "client")
        client.add_addresses("lb", "10.0.0.2/24", "fd01::2/64")
        built.lb.add_addresses("client", "10.0.0.1/24", "fd01::1/64")
        client.add_route("default", "10.0.0.1")
        client.add_route("default", "fd01::1")
        mac = built.peer.link(PEER_BRIDGE).mac
        with built.lb.batch():
            for number in range(targets):
                mark = mark_of(number)
                for ip in map(format_ip, target_ips(number)):
                    # Resolution is not what is measured here.
                    built.lb.replace_neighbor(ip, LINK, mac)
                    built.lb.add_route("default", ip, LINK, table=mark)
                    built.lb.add_rule(mark, mark, ipv4="." in ip, priority=3000)
        with built.peer.entered():
            counting = NftContext(LIBRARY)
        counting.run(
            "add table inet count\n"
            "add counter inet count arrived\n"
            "add chain inet count in { type filter hook prerouting priority raw; }\n"
            f'add rule inet count in {counted} counter name "arrived" drop'
        )
        counting.close()
        yield client, built


def arrived(peer: Namespace) -> int:
    """Return how many packets the targets of a `path` have counted."""
    return read_counter(peer, "count", "arrived")[0]


class LinkSwitch:
    """Sets one link up and down with one netlink request each."""

    def __init__(self, namespace: Namespace, link: str = LINK) -> None:
        self._ifindex = namespace.index(link)
        with namespace.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def set(self, *, up: bool) -> int:
        """Send the request; the kernel has carried it out when this returns. Returns when it was sent (epoch, ns)."""
        flags = _IFF_UP if up else 0
        message = struct.pack("=IHHIIBxHiII", 32, _RTM_NEWLINK, _REQUEST_ACK, 1, 0, 0, 0, self._ifindex, flags, _IFF_UP)
        sent_at = time.time_ns()
        self._socket.send(message)
        (error,) = struct.unpack_from("=i", self._socket.recv(4096), 16)
        if error:
            raise OSError(-error, "the link could not be set up or down")
        return sent_at


class Wire:
    """Captures announcements at the peer's port, with the kernel's time stamps."""

    def __init__(self, peer: Namespace) -> None:
        with peer.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        # All protocols: only such a socket sees the frame before the bridge takes it.
        self._socket.bind((PEER_PORT, _ETH_P_ALL))
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def gratuitous(self) -> list[int]:
        """Return when (epoch, ns) each gratuitous ARP since the last call arrived, in order."""
        # Gratuitous: sender and target protocol address are the same (RFC 5227, section 3).
        return self._arrived(lambda frame: frame[12:14] == _ARP and frame[28:32] == frame[38:42])

    def await_gratuitous(self, after_ns: int, limit_s: float = 10.0) -> int:
        """Wait for the first gratuitous ARP that arrived after a moment (epoch, ns) and return when it did."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for at in self.gratuitous():
                if at > after_ns:
                    return at
            time.sleep(0.0005)
        raise TimeoutError("no gratuitous ARP came")

    def await_advertisements(self, ip: Ip, count: int, limit_s: float = 10.0) -> list[int]:
        """Wait for so many neighbour advertisements of an address; return when (epoch, ns) each arrived."""
        found: list[int] = []
        deadline = time.monotonic() + limit_s
        while len(found) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} neighbour advertisements came")
            found += self._arrived(
                lambda frame: frame[12:14] == _IPV6 and frame[54:55] == _ADVERTISEMENT and frame[62:78] == ip
            )
            time.sleep(0.01)
        return found

    def _arrived(self, wanted: Callable[[bytes], bool]) -> list[int]:
        found: list[int] = []
        while True:
            try:
                frame, ancillary, _, _ = self._socket.recvmsg(128, 128)
            except BlockingIOError:
                return found
            if len(frame) >= _ARP_BYTES and wanted(frame):
                seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
                found.append(seconds * 10**9 + nanoseconds)


class RouteListener:
    """Hears of every route that is added in a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((0, sum(1 << (group - 1) for group in (_RTNLGRP_IPV4_ROUTE, _RTNLGRP_IPV6_ROUTE))))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def drain(self) -> None:
        """Forget what was heard so far."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(65536)

    def await_routes(self, count: int, limit_s: float = 20.0) -> int:
        """Wait until so many different routes of lbguard's were added; return when the last was read (epoch, ns)."""
        seen: set[bytes] = set()
        deadline = time.monotonic() + limit_s
        while len(seen) < count:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise TimeoutError(f"{len(seen)} of {count} routes came back") from None
            now = time.time_ns()
            offset = 0
            while offset + 28 <= len(data):
                (length, kind) = struct.unpack_from("=IH", data, offset)
                ours = data[offset + _PROTOCOL_AT] == _OUR_PROTOCOL and data[offset + _TYPE_AT] == _UNICAST
                if kind == _RTM_NEWROUTE and ours:
                    # The body names table, family, gateway and device, and nothing that changes from time to time.
                    seen.add(data[offset + 16 : offset + length])
                offset += length + 3 & ~3
        return now
