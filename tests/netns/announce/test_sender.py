"""The announcer on the real kernel: what a peer's kernel makes of its frames, and what the socket does."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_DADFAILED, IFA_F_TENTATIVE
from pyroute2.netlink.rtnl.ndmsg import NTF_ROUTER

from lbguard.announce.sender import Announcer, FrameKind, PacketSocket, Suppressed
from lbguard.core.addr import Ip, format_ip, parse_ip
from lbguard.core.effects import Announce, SolicitNeighbors
from lbguard.core.model import LinkKey
from lbguard.lab.netns import Namespace, connect

pytestmark = pytest.mark.netns

ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4  # include/uapi/linux/if_packet.h
OLD_MAC = "02:00:00:00:00:99"
MAC = bytes.fromhex("02000000000a")
IP4 = parse_ip("172.16.0.1")
IP6 = parse_ip("fd00::1")
LB_LINK = "lb0"
PEER_LINK = "peer0"


def disable_dad(*namespaces: Namespace) -> None:
    for namespace in namespaces:
        for link in ("all", "default"):
            namespace.sysctl(f"net.ipv6.conf.{link}.accept_dad", "0")


def join(lb: Namespace, peer: Namespace) -> None:
    """Join the two with a link whose LB end holds both addresses and the new MAC."""
    connect(lb, LB_LINK, peer, PEER_LINK)
    lb.set_link(LB_LINK, address=MAC.hex(":"))
    lb.add_addresses(LB_LINK, f"{format_ip(IP4)}/24", f"{format_ip(IP6)}/64")
    peer.add_addresses(PEER_LINK, "172.16.0.2/24", "fd00::2/64")


def mac_of(namespace: Namespace, ip: Ip) -> str:
    """Return the link-layer address that the kernel has of an address; empty when it has none."""
    entry = namespace.neighbor(format_ip(ip))
    return entry.mac if entry else ""


def kind_of(frame: bytes) -> str:
    """Name an announcement by its bytes; empty for any other frame."""
    if frame[12:14] == b"\x08\x06":
        return {1: "arp_request", 2: "arp_reply"}.get(frame[21], "")
    if frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 136:
        return "na"
    return ""


@dataclass
class Wire:
    """What arrives at the peer: announcements as (kind, source MAC)."""

    socket: socket.socket
    seen: list[tuple[str, bytes]] = field(default_factory=list)

    def read(self) -> list[tuple[str, bytes]]:
        while True:
            try:
                frame, address = self.socket.recvfrom(2048)
            except BlockingIOError:
                return self.seen
            if address[2] != PACKET_OUTGOING and kind_of(frame):
                self.seen.append((kind_of(frame), frame[6:12]))


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for at least 30 seconds."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition never came true")


def owns_all(link: LinkKey, ip: Ip) -> bool:
    return True


@pytest.fixture
def lb(make_namespace: Callable[[str], Namespace]) -> Namespace:
    namespace = make_namespace("lb")
    disable_dad(namespace)
    return namespace


@pytest.fixture
def peer(make_namespace: Callable[[str], Namespace]) -> Namespace:
    namespace = make_namespace("peer")
    disable_dad(namespace)
    return namespace


@pytest.fixture
def wire(peer: Namespace) -> Iterator[Wire]:
    with peer.entered():
        captured = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    captured.setblocking(False)
    with captured:
        yield Wire(captured)


@pytest.fixture
def make_announcer(lb: Namespace) -> Iterator[Callable[..., Announcer]]:
    made: list[Announcer] = []

    def make(**settings: object) -> Announcer:
        with lb.entered():
            announcer = Announcer(**{"owns": owns_all, **settings})  # type: ignore[arg-type]
        made.append(announcer)
        return announcer

    yield make
    for announcer in made:
        announcer.close()


def effect(ifindex: int, *ips: Ip, mac: bytes = MAC, generation: int = 1) -> Announce:
    return Announce(link=LinkKey(ifindex, generation), ifname=LB_LINK, mac=mac, addresses=ips)


@pytest.mark.parametrize(
    ("ip", "arp_kind"),
    [(IP4, FrameKind.ARP_REQUEST), (IP4, FrameKind.ARP_REPLY), (IP6, FrameKind.ARP_REQUEST)],
    ids=["arp_request", "arp_reply", "na"],
)
async def test_a_peer_replaces_its_stale_entry(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer], ip: Ip, arp_kind: FrameKind
) -> None:
    join(lb, peer)
    announcer = make_announcer(repeats_s=(0,), arp_kinds=[arp_kind])
    # The entry is fresh, which is when Linux protects it from replies that are not gratuitous in its eyes.
    peer.replace_neighbor(format_ip(ip), PEER_LINK, OLD_MAC, state="reachable")
    assert mac_of(peer, ip) == OLD_MAC
    announcer.announce(effect(lb.index(LB_LINK), ip))
    await until(lambda: mac_of(peer, ip) == MAC.hex(":"))
    assert sum(announcer.counters.sent.values()) == 1
    assert not announcer.counters.errors


@pytest.mark.parametrize("router", [True, False])
async def test_a_peer_learns_the_router_flag(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer], router: bool
) -> None:
    join(lb, peer)
    announcer = make_announcer(repeats_s=(0,), router=router)
    peer.replace_neighbor(format_ip(IP6), PEER_LINK, OLD_MAC, state="reachable")
    announcer.announce(effect(lb.index(LB_LINK), IP6))
    await until(lambda: mac_of(peer, IP6) == MAC.hex(":"))
    entry = peer.neighbor(format_ip(IP6))
    assert entry is not None
    assert bool(entry.flags & NTF_ROUTER) == router


async def test_count_order_and_pacing_on_the_wire(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer], wire: Wire
) -> None:
    join(lb, peer)
    clock = Clock()
    announcer = make_announcer(repeats_s=(0, 0.01, 0.11, 0.22), clock=clock)
    burst = [("arp_request", MAC), ("arp_reply", MAC), ("na", MAC)]
    announcer.announce(effect(lb.index(LB_LINK), IP4, IP6))
    assert sum(announcer.counters.sent.values()) == 3, "the first burst leaves inside the call"
    await until(lambda: len(wire.read()) >= 3)
    for number, offset in enumerate((0.01, 0.11, 0.22), start=2):
        clock.now = 100 + offset - 0.001
        await asyncio.sleep(0.03)
        assert wire.read() == burst * (number - 1), "nothing leaves before its offset"
        clock.now = 100 + offset + 0.0001
        await until(lambda wanted=3 * number: len(wire.read()) >= wanted)  # type: ignore[misc]
    clock.now = 1000
    await asyncio.sleep(0.03)
    assert wire.read() == burst * 4
    assert announcer.pending == 0


def usable(namespace: Namespace, link: str, ip: Ip) -> bool:
    """Tell what the kernel says of an address: held, not tentative, duplicate detection not failed."""
    return any(
        address.ip == format_ip(ip) and not address.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)
        for address in namespace.addresses(link)
    )


async def test_duplicate_detection_is_respected(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer], wire: Wire
) -> None:
    connect(lb, LB_LINK, peer, PEER_LINK)
    for key, value in (("accept_dad", "1"), ("dad_transmits", "600")):
        lb.sysctl(f"net.ipv6.conf.{LB_LINK}.{key}", value)
    lb.sysctl("net.ipv6.conf.all.accept_dad", "1")
    announcer = make_announcer(repeats_s=(0,), owns=lambda link, ip: usable(lb, LB_LINK, ip))
    ifindex = lb.index(LB_LINK)
    lb.add_addresses(LB_LINK, f"{format_ip(IP6)}/64", dad=True)
    assert not usable(lb, LB_LINK, IP6), "with 600 probes the address stays tentative for minutes"
    announcer.announce(effect(ifindex, IP6))
    assert announcer.counters.suppressed == {Suppressed.NOT_OWNED: 1}
    assert not announcer.counters.sent
    lb.delete_addresses(LB_LINK, f"{format_ip(IP6)}/64")
    lb.add_addresses(LB_LINK, f"{format_ip(IP6)}/64")
    announcer.announce(effect(ifindex, IP6))
    await until(lambda: len(wire.read()) >= 1)
    assert wire.read() == [("na", MAC)]


async def test_a_link_that_is_down_is_named_and_tried_again(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer], wire: Wire
) -> None:
    join(lb, peer)
    clock = Clock()
    announcer = make_announcer(repeats_s=(0, 0.01), clock=clock)
    lb.set_link(LB_LINK, up=False)
    announcer.announce(effect(lb.index(LB_LINK), IP4))
    assert announcer.counters.errors == {"ENETDOWN": 1}
    assert not announcer.counters.sent
    lb.set_link(LB_LINK, up=True)
    clock.now += 1
    await until(lambda: len(wire.read()) >= 2)
    assert wire.read() == [("arp_request", MAC), ("arp_reply", MAC)]
    assert announcer.counters.errors == {"ENETDOWN": 1}


async def test_a_link_that_took_the_name_of_another_gets_none_of_its_frames(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer], wire: Wire
) -> None:
    join(lb, peer)
    clock = Clock()
    announcer = make_announcer(repeats_s=(0, 0.01), clock=clock)
    old = lb.index(LB_LINK)
    lb.delete_link(LB_LINK)
    join(lb, peer)
    new = lb.index(LB_LINK)
    assert new != old
    # Here `owns` lags behind the kernel, as it does until the event of the deletion is read.
    announcer.announce(effect(old, IP4))
    assert announcer.counters.errors == {"ENXIO": 1}
    other_mac = bytes.fromhex("02000000000b")
    announcer.announce(effect(new, IP4, mac=other_mac, generation=2))
    await until(lambda: len(wire.read()) >= 2)
    assert wire.read() == [("arp_request", other_mac), ("arp_reply", other_mac)]


async def test_repeats_of_a_link_whose_ifindex_was_reused_are_suppressed(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer], wire: Wire
) -> None:
    index = 700

    def add_link(mac: bytes) -> None:
        connect(lb, LB_LINK, peer, PEER_LINK, index=index, address=mac.hex(":"))

    clock = Clock()
    alive = {LinkKey(index, 1)}
    announcer = make_announcer(repeats_s=(0, 0.01), clock=clock, owns=lambda link, ip: link in alive)
    add_link(MAC)
    announcer.announce(effect(index, IP6))
    await until(lambda: len(wire.read()) >= 1)

    lb.delete_link(LB_LINK)
    other_mac = bytes.fromhex("02000000000b")
    add_link(other_mac)
    assert lb.index(LB_LINK) == index
    alive = {LinkKey(index, 2)}
    clock.now += 1
    await until(lambda: announcer.pending == 0)
    assert announcer.counters.suppressed == {Suppressed.NOT_OWNED: 1}
    announcer.announce(effect(index, IP6, mac=other_mac, generation=2))
    await until(lambda: len(wire.read()) >= 2)
    assert wire.read() == [("na", MAC), ("na", other_mac)]


def send_datagrams(lb: Namespace, peer: Namespace, count: int) -> None:
    """Send datagrams from the peer to the LB's address and see that all arrive there."""
    with lb.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with peer.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((format_ip(IP4), 9000))
        receiver.settimeout(30)
        for _ in range(count):
            sender.sendto(b"traffic", (format_ip(IP4), 9000))
            assert receiver.recv(64) == b"traffic"


def test_the_socket_receives_nothing_under_traffic(lb: Namespace, peer: Namespace) -> None:
    join(lb, peer)
    with lb.entered():
        sending = PacketSocket()
        control = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with control, socket.socket(fileno=os.dup(sending.fileno())) as same:
        same.setblocking(False)
        control.setblocking(False)
        send_datagrams(lb, peer, 20)
        assert control.recv(2048), "an ordinary packet socket sees the traffic"
        with pytest.raises(BlockingIOError):
            same.recv(2048)
        # Even when subscribed to everything, the filter lets nothing in.
        same.bind((LB_LINK, ETH_P_ALL))
        send_datagrams(lb, peer, 20)
        with pytest.raises(BlockingIOError):
            same.recv(2048)
    sending.close()
    assert sending.fileno() == -1


def test_the_socket_subscribes_to_no_protocol(lb: Namespace) -> None:
    with lb.entered():
        sending = PacketSocket()
    inode = str(os.fstat(sending.fileno()).st_ino)
    header, *rows = (line.split() for line in lb.run("cat", "/proc/net/packet").splitlines())
    protocol, running = header.index("Proto"), header.index("R")
    assert [row[protocol] for row in rows if row[-1] == inode] == ["0000"]
    assert [row[running] for row in rows if row[-1] == inode] == ["0"]
    sending.close()


def test_a_closed_socket_fails_by_errno(lb: Namespace) -> None:
    with lb.entered():
        sending = PacketSocket()
    sending.close()
    assert sending.send(1, bytes(42)) == errno.EBADF


def reachable(namespace: Namespace, ip: Ip) -> bool:
    entry = namespace.neighbor(format_ip(ip))
    return entry is not None and entry.state == "reachable"


def question(ifindex: int, source: Ip, target: Ip) -> SolicitNeighbors:
    return SolicitNeighbors(link=LinkKey(ifindex, 1), mac=MAC, pairs=((source, target),))


async def test_the_kernel_learns_an_ipv4_neighbour_from_the_answer_to_our_question(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer]
) -> None:
    join(lb, peer)
    target = parse_ip("172.16.0.2")
    # A failed entry: the kernel asks nothing by itself.
    lb.replace_neighbor(format_ip(target), LB_LINK, state="failed")
    announcer = make_announcer()
    announcer.solicit(question(lb.index(LB_LINK), IP4, target))
    await until(lambda: reachable(lb, target))
    assert announcer.counters.sent == {FrameKind.ARP_QUESTION: 1}


async def test_an_ipv6_neighbour_is_learnt_while_the_link_local_address_is_still_tentative(
    make_namespace: Callable[[str], Namespace], peer: Namespace
) -> None:
    lb = make_namespace("dad")
    lb.sysctl("net.ipv6.conf.default.dad_transmits", "60")  # one a second: the kernel itself stays silent that long
    join(lb, peer)
    target = parse_ip("fd00::2")
    lb.replace_neighbor(format_ip(target), LB_LINK, state="incomplete")
    with lb.entered():
        announcer = Announcer(owns=owns_all)
    try:
        # The kernel gives an entry up after three seconds of silence, so it is asked for anew with each question.
        async def learnt() -> bool:
            lb.replace_neighbor(format_ip(target), LB_LINK, state="incomplete")
            announcer.solicit(question(lb.index(LB_LINK), IP6, target))
            await asyncio.sleep(0.05)
            return reachable(lb, target)

        assert any([await learnt() for _ in range(3)])
        link_local = [address for address in lb.addresses(LB_LINK) if address.ip.startswith("fe80")]
        assert any(address.flags & IFA_F_TENTATIVE for address in link_local)
    finally:
        announcer.close()


async def test_no_question_in_the_name_of_an_address_that_is_not_held(
    lb: Namespace, peer: Namespace, make_announcer: Callable[..., Announcer]
) -> None:
    join(lb, peer)
    announcer = make_announcer(owns=lambda link, ip: False)
    announcer.solicit(question(lb.index(LB_LINK), IP4, parse_ip("172.16.0.2")))
    assert announcer.counters.sent == {}
    assert announcer.counters.suppressed == {Suppressed.NOT_OWNED: 1}
