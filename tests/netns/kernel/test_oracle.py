"""What the lean decoder reads of a real kernel's dumps is what pyroute2's full one reads of the same bytes."""

import time
from collections.abc import Iterator

import pytest
from pyroute2.netlink.rtnl import ndmsg

from lbguard.core.events import KernelChange
from lbguard.kernel.codec.decode import decode
from lbguard.kernel.codec.encode import DumpKind, dump
from lbguard.kernel.sockets import NetlinkSocket
from lbguard.lab.netns import Namespace
from tests.netns.kernel.conftest import Bench
from tests.unit.kernel.reference import TARGET_TABLES, read

pytestmark = pytest.mark.netns

LIMIT_S = 90.0
NTF_EXT_MANAGED = 1
STATIC, OURS = 4, 152


def make_world(lb: Namespace) -> None:
    lb.add_addresses("nse-a", "172.16.5.1/25", "10.0.0.1>10.0.0.2/32", "fd0a::1>fd0a::2/128")
    lb.add_addresses("nse-a", "fd0b::1/64", dad=True)
    lb.add_link("mv0", "macvlan", link=lb.index("nse-a"))
    lb.add_link("br0", "bridge", up=False)
    for ip, fields in {
        "172.16.0.11": {},
        "172.16.0.12": {"state": "reachable"},
        "172.16.0.13": {"flags": ndmsg.NTF_EXT_LEARNED},
        "172.16.0.14": {"state": "stale", "protocol": STATIC},
        "fd00::15": {"state": "noarp"},
    }.items():
        lb.replace_neighbor(ip, "nse-a", "02:00:00:00:00:11", **fields)
    lb.replace_neighbor("fd00::16", "nse-a", state="none", extended_flags=NTF_EXT_MANAGED)
    for gateway, everywhere in (("172.16.0.2", "0.0.0.0/0"), ("fd00::2", "::/0")):
        lb.add_route("default", gateway, table=5001, metric=2048, protocol=OURS)
        lb.add_route(everywhere, kind="blackhole", table=5001, metric=4294967295, protocol=OURS)
        lb.add_rule(5001, 5001, ipv4="." in gateway, priority=3000, protocol=OURS)
    lb.add_route("default", "172.16.0.3", table=5002, metric=7, protocol=STATIC)
    lb.add_route("10.7.0.0/16", link="nse-a", metric=9, protocol=STATIC)
    lb.add_route("fd07::/48", link="nse-a")
    lb.add_route("10.8.0.0/16", "172.16.0.2", protocol=STATIC)
    lb.add_rule(5002, 5002, priority=77)
    lb.request("rule", "add", fwmark=5003, fwmask=0xFF, table=5003)
    lb.request("rule", "add", src="10.0.0.0", src_len=8, table=5004)


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
    make_world(bench.lb)
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
