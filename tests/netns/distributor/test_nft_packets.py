"""Where real packets go: the hash keys of the embedded distributor, seen at the targets."""

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.lab.netns import Namespace
from tests.netns.distributor import packets
from tests.netns.distributor.conftest import (
    CLIENT4,
    CLIENT6,
    FAR_ROUTER4,
    FAR_ROUTER6,
    TARGETS,
    VIP4,
    VIP6,
    WAIT_S,
    Lab,
    spec,
    table,
)
from tests.netns.distributor.packets import SCTP, TCP, UDP, Flow

pytestmark = pytest.mark.netns

PROTOCOLS = (TCP, UDP, SCTP)
FAMILIES = ("ipv4", "ipv6")


def flows(family: str, protocol: int, count: int, first_port: int = 20000) -> list[Flow]:
    client, vip = (CLIENT4, VIP4) if family == "ipv4" else (CLIENT6, VIP6)
    return [Flow(client, vip, protocol, first_port + i, 443) for i in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_flows_spread_and_stay(lab: Lab, distributor: NftDistributor, family: str, protocol: int) -> None:
    some = flows(family, protocol, 200)
    first = lab.deliver([packets.flow_packet(flow, b"one") for flow in some])
    second = lab.deliver([packets.flow_packet(flow, b"another") for flow in some])
    assert first == second
    # 200 fair draws of 4: fewer than 25 for one of them has a probability below 1e-5.
    assert min(Counter(first)[target] for target in TARGETS) >= 25


async def test_every_part_of_the_five_tuple_counts(lab: Lab, distributor: NftDistributor) -> None:
    base = Flow(CLIENT4, VIP4, UDP, 1000, 443)
    varied = {
        "source": [Flow(f"10.0.0.{i}", VIP4, UDP, 1000, 443) for i in range(2, 42)],
        "sport": [Flow(CLIENT4, VIP4, UDP, 1000 + i, 443) for i in range(40)],
        "dport": [Flow(CLIENT4, VIP4, UDP, 1000, 443 + i) for i in range(40)],
    }
    for what, some in varied.items():
        assert base in some
        assert len(set(lab.deliver([packets.flow_packet(flow) for flow in some]))) == len(TARGETS), what
    by_protocol = [lab.deliver([packets.flow_packet(f) for f in flows("ipv4", p, 40)]) for p in PROTOCOLS]
    assert all(one != other for one, other in itertools.combinations(by_protocol, 2))


@pytest.mark.parametrize(("network", "vip"), [("10.0.0", VIP4), ("fd00:", VIP6)])
async def test_echo_requests_follow_the_addresses(
    lab: Lab, distributor: NftDistributor, network: str, vip: str
) -> None:
    clients = [f"{network}.{i}" if vip == VIP4 else f"fd00::{i:x}" for i in range(2, 82)]
    first = lab.deliver([packets.echo_request(client, vip, 1, 1) for client in clients])
    second = lab.deliver([packets.echo_request(client, vip, 77, 9) for client in clients])
    assert first == second
    assert set(first) == set(TARGETS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_errors_reach_the_target_of_the_quoted_flow(
    lab: Lab, distributor: NftDistributor, family: str, protocol: int
) -> None:
    some = flows(family, protocol, 60)
    router = FAR_ROUTER4 if family == "ipv4" else FAR_ROUTER6
    homes = lab.deliver([packets.flow_packet(flow) for flow in some])
    errors = lab.deliver([packets.packet_too_big(router, flow) for flow in some])
    assert errors == homes
    assert set(homes) == set(TARGETS)


async def test_ipv6_errors_about_a_first_fragment_reach_the_flow(lab: Lab, distributor: NftDistributor) -> None:
    some = flows("ipv6", UDP, 60)
    homes = lab.deliver([packets.flow_packet(flow) for flow in some])
    quotes = [packets.fragments(flow.reverse, ident=i)[0] for i, flow in enumerate(some)]
    assert homes == lab.deliver(
        [packets.packet_too_big(FAR_ROUTER6, flow, quoted=quote) for flow, quote in zip(some, quotes, strict=True)]
    )


@pytest.mark.parametrize(("router", "client", "vip"), [(FAR_ROUTER4, CLIENT4, VIP4), (FAR_ROUTER6, CLIENT6, VIP6)])
async def test_errors_that_quote_an_echo_reply_follow_the_addresses(
    lab: Lab, distributor: NftDistributor, router: str, client: str, vip: str
) -> None:
    clients = [client[:-1] + str(i) for i in range(2, 10)]
    homes = lab.deliver([packets.echo_request(c, vip, 1, 1) for c in clients])
    errors = [
        packets.packet_too_big(router, Flow(c, vip, UDP, 0, 0), quoted=packets.echo_request(vip, c, 1, 1))
        for c in clients
    ]
    assert lab.deliver(errors) == homes
    assert len(set(homes)) > 1


async def test_errors_with_a_short_quote_are_still_delivered(lab: Lab, distributor: NftDistributor) -> None:
    flow = flows("ipv4", UDP, 1)[0]
    answer = packets.flow_packet(flow.reverse)
    for length in (0, 8, 20, 22):
        assert lab.deliver([packets.packet_too_big(FAR_ROUTER4, flow, quoted=answer[:length])])[0] in TARGETS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in-order", "reversed"])
async def test_fragments_reach_the_target_of_their_flow(
    lab: Lab, distributor: NftDistributor, family: str, order: tuple[int, int]
) -> None:
    some = flows(family, UDP, 40)
    homes = lab.deliver([packets.flow_packet(flow) for flow in some])
    assert set(homes) == set(TARGETS)
    for i, (flow, home) in enumerate(zip(some, homes, strict=True)):
        pieces = packets.fragments(flow, ident=100 + i)
        lab.send([pieces[k] for k in order])
        got = lab.received(2)
        assert [target for target, _ in got] == [home, home]
        assert sorted(len(packet) for _, packet in got) == sorted(map(len, pieces))


@pytest.mark.parametrize("family", FAMILIES)
async def test_fragments_stay_together_without_defragmentation(
    lab: Lab, distributor: NftDistributor, family: str
) -> None:
    lab.balancer.run("nft", "delete chain inet lbguard defragment")
    some = flows(family, UDP, 20)
    for i, flow in enumerate(some):
        lab.send(packets.fragments(flow, ident=100 + i)[::-1])
        assert len({target for target, _ in lab.received(2)}) == 1


@contextlib.contextmanager
def connected(namespace: Namespace, flow: Flow) -> Iterator[socket.socket]:
    """A target's end of a UDP flow, which never fragments."""
    family = socket.AF_INET if flow.ipv4 else socket.AF_INET6
    with namespace.entered():
        sock = socket.socket(family, socket.SOCK_DGRAM)
    with sock:
        if flow.ipv4:
            sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, 23, 2)  # IPV6_MTU_DISCOVER
        sock.bind((flow.destination, flow.dport))
        sock.connect((flow.source, flow.sport))
        yield sock


def path_mtu(sock: socket.socket) -> int:
    if sock.family == socket.AF_INET:
        return sock.getsockopt(socket.IPPROTO_IP, 14)  # IP_MTU
    return sock.getsockopt(socket.IPPROTO_IPV6, 24)  # IPV6_MTU


@pytest.mark.parametrize("family", FAMILIES)
async def test_path_mtu_discovery_works_end_to_end(lab: Lab, distributor: NftDistributor, family: str) -> None:
    """A real router with a narrow link complains about a target's answer; only that target may learn of it."""
    some = flows(family, UDP, 12)
    homes = lab.deliver([packets.flow_packet(flow) for flow in some])
    lab.router.set_link("client", mtu=1280)
    for flow, home in list(zip(some, homes, strict=True))[:4]:
        with connected(lab.targets[home], flow) as sock:
            deadline = time.monotonic() + WAIT_S
            while path_mtu(sock) != 1280:
                assert time.monotonic() < deadline, "the error did not reach the target"
                with contextlib.suppress(OSError):
                    sock.send(bytes(1400))
                await asyncio.sleep(0.02)
    for target in set(TARGETS) - set(homes[:4]):
        with connected(lab.targets[target], some[0]) as sock:
            assert path_mtu(sock) == 1500


async def test_neighbour_discovery_for_a_vip_stays_here(lab: Lab, distributor: NftDistributor) -> None:
    """The gateway may ask for the VIP itself (proxy NDP): that question is not for a target."""
    solicitation = struct.pack("!BBHI", 135, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, VIP6)
    lab.send([packets.ip_packet(CLIENT6, VIP6, packets.ICMPV6, solicitation)])
    after = flows("ipv6", UDP, 1)[0]
    assert lab.deliver([packets.flow_packet(after)])
    assert lab.unserved() == (0, 0)


@pytest.mark.parametrize("family", FAMILIES)
async def test_without_active_targets_packets_are_dropped_and_counted(
    lab: Lab, distributor: NftDistributor, family: str
) -> None:
    await distributor.commit([table(spec(), active=())])
    some = flows(family, UDP, 5) + flows(family, TCP, 5)
    sent = [packets.flow_packet(flow) for flow in some] + [
        packets.echo_request(some[0].source, some[0].destination, 1, 1)
    ]
    lab.send(sent)
    deadline = time.monotonic() + WAIT_S
    while (count := lab.unserved())[0] < len(sent):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert count == (len(sent), sum(map(len, sent)))
    assert lab.quiet()


LIVELY = ((1, 2, 3, 4), (1, 3), (1,), (1, 2, 4))
CHANGES = {
    "targets 2, 3 and 4 come and go": [table(spec(), active=active) for active in LIVELY],
    "the number of slots changes too": [table(spec(max_targets=10 + i), active=LIVELY[i]) for i in range(4)],
}


@pytest.mark.parametrize("changes", list(CHANGES))
async def test_no_packet_is_lost_or_dropped_while_committing(
    lab: Lab, distributor: NftDistributor, changes: str
) -> None:
    total = 12000
    some = [packets.flow_packet(flow) for flow in flows("ipv4", UDP, 200)]
    await distributor.commit([table(spec(), active=(1,))])
    done = threading.Event()

    def send() -> None:
        for start in range(0, total, 40):
            lab.send([some[i % len(some)] for i in range(start, start + 40)])
            time.sleep(0.002)
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    commits = 0
    for wanted in itertools.cycle(CHANGES[changes]):
        (result,) = await distributor.commit([wanted])
        assert result.error == ""
        assert result.slots_changed > 0
        commits += 1
        if done.is_set():
            break
    sender.join()
    assert len(lab.received(total)) == total
    assert lab.quiet()
    assert lab.unserved() == (0, 0)
    assert commits >= 4
