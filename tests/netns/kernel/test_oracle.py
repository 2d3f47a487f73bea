"""What the lean decoder reads of a real kernel's dumps is what pyroute2's full one reads of the same bytes."""

import time
from collections.abc import Iterator

import pytest

from lbguard.core.events import KernelChange
from lbguard.kernel.codec.decode import decode
from lbguard.kernel.codec.encode import DumpKind, dump
from lbguard.kernel.netlink import NetlinkSocket
from tests.netns.kernel.conftest import Bench
from tests.unit.kernel.reference import TARGET_TABLES, read

pytestmark = pytest.mark.netns

LIMIT_S = 20.0
WORLD = [
    "addr add 172.16.5.1/25 dev nse-a",
    "addr add 10.0.0.1 peer 10.0.0.2/32 dev nse-a",
    "addr add fd0a::1 peer fd0a::2/128 dev nse-a nodad",
    "addr add fd0b::1/64 dev nse-a",
    "link add mv0 link nse-a type macvlan",
    "link add br0 type bridge",
    "link set mv0 up",
    "neigh add 172.16.0.11 lladdr 02:00:00:00:00:11 dev nse-a nud permanent",
    "neigh add 172.16.0.12 lladdr 02:00:00:00:00:12 dev nse-a nud reachable",
    "neigh add 172.16.0.13 lladdr 02:00:00:00:00:13 dev nse-a extern_learn",
    "neigh add 172.16.0.14 lladdr 02:00:00:00:00:14 dev nse-a nud stale protocol static",
    "neigh add fd00::15 lladdr 02:00:00:00:00:15 dev nse-a nud noarp",
    "neigh add fd00::16 dev nse-a managed",
    "route add default via 172.16.0.2 table 5001 metric 2048 proto 152",
    "route add blackhole default table 5001 metric 4294967295 proto 152",
    "-6 route add default via fd00::2 table 5001 metric 2048 proto 152",
    "-6 route add blackhole default table 5001 metric 4294967295 proto 152",
    "route add default via 172.16.0.3 table 5002 metric 7 proto static",
    "route add 10.7.0.0/16 dev nse-a metric 9 proto static",
    "-6 route add fd07::/48 dev nse-a proto boot",
    "route add 10.8.0.0/16 via 172.16.0.2 proto static",
    "rule add fwmark 5001 table 5001 priority 3000 protocol 152",
    "-6 rule add fwmark 5001 table 5001 priority 3000 protocol 152",
    "rule add fwmark 5002 table 5002 priority 77",
    "rule add fwmark 5003/0xff table 5003",
    "rule add from 10.0.0.0/8 table 5004",
]


def dumped(kind: DumpKind) -> Iterator[bytes]:
    """Yield the datagrams of a dump, in the namespace of this thread."""
    sock, buffer = NetlinkSocket(receive_buffer_bytes=1 << 20), bytearray(1 << 17)
    sock.send(dump(kind, 1))
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            length, _port = sock.receive_into(buffer)
        except BlockingIOError:
            continue
        yield bytes(buffer[:length])
        if decode(buffer, length, lambda _table: True).controls:
            sock.close()
            return
    raise TimeoutError("the dump does not end")


@pytest.mark.parametrize("kind", list(DumpKind), ids=lambda kind: kind.name)
def test_both_decoders_read_the_same(bench: Bench, kind: DumpKind) -> None:
    for command in WORLD:
        bench.lb.ip(*command.split())
    with bench.lb.entered():
        datagrams = list(dumped(kind))
    ours: list[KernelChange] = []
    theirs: list[KernelChange] = []
    for datagram in datagrams:
        decoded = decode(datagram, len(datagram), TARGET_TABLES.__contains__)
        ours += [change.event for change in decoded.changes]
        theirs += read(datagram)
    assert len(ours) >= 3
    assert ours == theirs
