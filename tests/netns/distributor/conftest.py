"""A small data path: client - router - load balancer - targets, each in a namespace of its own."""

import select
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from lbguard.core.addr import is_ipv4, parse_ip, parse_prefix
from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.distributor.nftables.ruleset import TABLE, stream_names
from lbguard.lab.netns import Namespace, connect
from tests.netns.distributor.packets import destination_of
from tests.nft_counter import read_counter

VIP4, VIP6 = "20.0.0.1", "2000::1"
OTHER_VIP4 = "20.0.0.77"
ROUTER4, ROUTER6 = "10.0.0.1", "fd00::1"
FAR_ROUTER4, FAR_ROUTER6 = "10.9.9.9", "fd09::9"
CLIENT4, CLIENT6 = "10.0.0.2", "fd00::2"
TARGETS = (1, 2, 3, 4)
VIPS = frozenset(map(parse_ip, (VIP4, VIP6, OTHER_VIP4)))
WAIT_S = 20.0
ETH_P_ALL = 3


class Lab:
    """The namespaces, a sender at the client and a listener at each target."""

    def __init__(self, make_namespace: Callable[[str], Namespace]) -> None:
        self.client = make_namespace("client")
        self.router = make_namespace("router")
        self.balancer = make_namespace("lb")
        self.targets = {i: make_namespace(f"target{i}") for i in TARGETS}
        self._build()
        self._sender = self._packet_socket(self.client, None)
        self._router_mac = self._mac(self.router, "client")
        self._listeners = {i: self._packet_socket(namespace, "lb") for i, namespace in self.targets.items()}

    def unserved(self) -> tuple[int, int]:
        """Return the packets and bytes to VIPs that found no target and were dropped."""
        return read_counter(self.balancer, TABLE, stream_names("stream-a").unserved)

    def _build(self) -> None:
        for namespace in (self.client, self.router, self.balancer, *self.targets.values()):
            # Neighbours are asked for from a link-local address, which is unusable while duplicate detection runs.
            namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")
            namespace.sysctl("net.ipv6.conf.default.dad_transmits", "0")
        connect(self.client, "router", self.router, "client")
        connect(self.router, "lb", self.balancer, "router")
        for namespace in (self.router, self.balancer):
            namespace.sysctl("net.ipv4.ip_forward", "1")
            namespace.sysctl("net.ipv6.conf.all.forwarding", "1")
            namespace.sysctl("net.ipv4.conf.all.rp_filter", "0")
        self._address(self.client, "router", CLIENT4, CLIENT6)
        self._address(self.router, "client", ROUTER4, ROUTER6)
        self._address(self.router, "lb", "10.0.1.1", "fd00:1::1")
        self._address(self.balancer, "router", "10.0.1.2", "fd00:1::2")
        self._route(self.client, "default", "::/0", ROUTER4, ROUTER6)
        self._route(self.router, VIP4, VIP6, "10.0.1.2", "fd00:1::2")
        self.router.add_route(OTHER_VIP4, "10.0.1.2")
        self._route(self.balancer, "default", "::/0", "10.0.1.1", "fd00:1::1")
        for i, target in self.targets.items():
            connect(self.balancer, f"target{i}", target, "lb")
            self._address(self.balancer, f"target{i}", f"10.1.{i}.1", f"fd01:{i}::1")
            self._address(target, "lb", f"10.1.{i}.2", f"fd01:{i}::2")
            self._route(target, "default", "::/0", f"10.1.{i}.1", f"fd01:{i}::1")
            target.add_addresses("lo", f"{VIP4}/32", f"{VIP6}/128")
            mark = 5000 + i
            self.repair(i)
            for everywhere in ("0.0.0.0/0", "::/0"):
                self.balancer.add_rule(mark, mark, ipv4="." in everywhere)
                self.balancer.add_route(everywhere, kind="blackhole", metric=4294967295, table=mark)

    @staticmethod
    def _address(namespace: Namespace, link: str, four: str, six: str) -> None:
        namespace.add_addresses(link, f"{four}/24", f"{six}/64")

    @staticmethod
    def _route(namespace: Namespace, four: str, six: str, gateway4: str, gateway6: str) -> None:
        namespace.add_route(four, gateway4)
        namespace.add_route(six, gateway6)

    @staticmethod
    def _packet_socket(namespace: Namespace, link: str | None) -> socket.socket:
        with namespace.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        if link is not None:
            sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
            sock.bind((link, ETH_P_ALL))
            sock.setblocking(False)
        return sock

    @staticmethod
    def _mac(namespace: Namespace, link: str) -> bytes:
        return bytes.fromhex(namespace.link(link).mac.replace(":", ""))

    def repair(self, target: int) -> None:
        """Give a target's table its routes."""
        mark = 5000 + target
        self.balancer.replace_route("default", f"10.1.{target}.2", f"target{target}", table=mark)
        self.balancer.replace_route("default", f"fd01:{target}::2", f"target{target}", table=mark)

    def sever(self, target: int) -> None:
        """Take a target's routes away; the blackholes stay."""
        mark = 5000 + target
        self.balancer.delete_route("default", f"10.1.{target}.2", table=mark)
        self.balancer.delete_route("default", f"fd01:{target}::2", table=mark)

    def send(self, packets: Sequence[bytes]) -> None:
        """Send packets from the client, with any source address."""
        for packet in packets:
            ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
            self._sender.sendto(packet, ("router", ethertype, 0, 0, self._router_mac))

    def received(self, count: int) -> list[tuple[int, bytes]]:
        """Wait for a number of packets to the VIPs and return each with the target that got it."""
        found: list[tuple[int, bytes]] = []
        deadline = time.monotonic() + WAIT_S
        while len(found) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(found)} of {count} packets arrived"
            select.select(list(self._listeners.values()), [], [], left)
            found += [(i, packet) for i, packet in self._drain() if destination_of(packet) in VIPS]
        return found

    def _drain(self) -> Iterator[tuple[int, bytes]]:
        for i, listener in self._listeners.items():
            while True:
                try:
                    packet, address = listener.recvfrom(65536)
                except BlockingIOError:
                    break
                if address[2] != socket.PACKET_OUTGOING and address[1] in (0x0800, 0x86DD):
                    yield i, packet

    def quiet(self) -> bool:
        """Tell whether nothing for the VIPs has arrived since."""
        return not [packet for _, packet in self._drain() if destination_of(packet) in VIPS]

    def deliver(self, packets: Sequence[bytes]) -> list[int]:
        """Send packets that all get through unfragmented, in any order, and return the target of each."""
        self.send(packets)
        by_body: dict[bytes, list[int]] = defaultdict(list)
        for target, packet in self.received(len(packets)):
            by_body[_identity(packet)].append(target)
        targets = [by_body[_identity(packet)].pop() for packet in packets]
        assert not any(by_body.values()), "packets arrived that were not sent"
        return targets

    def close(self) -> None:
        for sock in (self._sender, *self._listeners.values()):
            sock.close()


def _identity(packet: bytes) -> bytes:
    """Return what a router leaves unchanged: all but TTL or hop limit and the header checksum."""
    if is_ipv4(destination_of(packet)):
        return packet[:8] + packet[9:10] + packet[12:]
    return packet[:7] + packet[8:]


def spec(name: str = "stream-a", max_targets: int = 10, vips: tuple[str, ...] = (VIP4, VIP6)) -> StreamSpec:
    return StreamSpec(name=name, max_targets=max_targets, vips=tuple(map(parse_prefix, vips)))


def table(stream: StreamSpec, active: Sequence[int] = TARGETS, registered: Sequence[int] = TARGETS) -> StreamTable:
    return StreamTable(stream=stream, registered=frozenset(registered), active=frozenset(active))


@pytest.fixture
def lab(make_namespace: Callable[[str], Namespace]) -> Iterator[Lab]:
    built = Lab(make_namespace)
    yield built
    built.close()


@pytest.fixture
async def distributor(lab: Lab) -> AsyncIterator[NftDistributor]:
    """A distributor in the load balancer's namespace, with all four targets active in stream-a."""
    with lab.balancer.entered():
        made = NftDistributor(TableKind.ANCHORED)
    await made.attach(spec())
    (result,) = await made.commit([table(spec())])
    assert result.error == ""
    yield made
    await made.close()
