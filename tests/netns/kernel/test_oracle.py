"""What the lean decoder reads of a real kernel's dumps is what pyroute2's full one reads of the same bytes."""

import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from pyroute2.netlink.rtnl import ndmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from lbguard.core import events as ev
from lbguard.core.addr import Prefix
from lbguard.core.events import KernelChange
from lbguard.core.model import NeighborState, Route, RouteKind, Rule
from lbguard.kernel.codec.decode import decode
from lbguard.kernel.codec.encode import DumpKind, dump
from lbguard.kernel.socket import NetlinkSocket
from lbguard.lab.netns import Namespace
from tests.netns.kernel.conftest import Bench

pytestmark = pytest.mark.netns

LIMIT_S = 20.0
NTF_EXT_MANAGED = 1
TARGET_TABLES = range(5000, 6000)
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


def packed(text: str | None) -> bytes:
    return ip_address(text).packed if text else b""


def link(message: Any) -> KernelChange | None:
    up = bool(message["flags"] & 1)
    mac = bytes.fromhex(message.get("address", "").replace(":", ""))
    running = up and bool(message["flags"] & 0x10000)
    return ev.LinkSeen(ifindex=message["index"], name=message.get("ifname"), up=running, mac=mac, admin_up=up)


def address(message: Any) -> KernelChange | None:
    local, other = packed(message.get("local")), packed(message.get("address"))
    flags = message.get("flags")
    return ev.AddressSeen(
        ifindex=message["index"],
        ip=local or other,
        prefix_length=message["prefixlen"],
        usable=not flags & 0x08 and (not flags & 0x40 or bool(flags & 0x04)),
        peer=other if local and local != other else b"",
    )


def neighbor(message: Any) -> KernelChange | None:
    state = NeighborState(message["state"])
    made = state in (NeighborState.PERMANENT, NeighborState.NOARP) or message["flags"] & 0x10
    made = made or message.get("protocol") or (message.get("flags_ext") or 0) & 1
    mac = bytes.fromhex((message.get("lladdr") or "").replace(":", ""))
    ip = packed(message.get("dst"))
    return ev.NeighborSeen(ifindex=message["ifindex"], ip=ip, state=state, mac=mac, foreign=bool(made))


def route(message: Any) -> KernelChange | None:
    ipv4, table, metric = message["family"] == 2, message.get("table"), message.get("priority") or 0
    gateway, oif = packed(message.get("gateway")), message.get("oif") or 0
    if message["dst_len"]:
        made_by_kernel = message["proto"] in (2, 9)
        if message["table"] != 254 or message["type"] != RouteKind.UNICAST or made_by_kernel or gateway:
            return None
        prefix = Prefix(packed(message.get("dst")), message["dst_len"])
        return ev.LinkRouteSeen(ifindex=oif, prefix=prefix, metric=metric)
    if message["type"] not in list(RouteKind) or (message["proto"] != 152 and table not in TARGET_TABLES):
        return None
    kind = RouteKind(message["type"])
    if kind is RouteKind.BLACKHOLE:
        gateway, oif = b"", 0
    return ev.RouteSeen(route=Route(table, ipv4, kind, metric, gateway, oif, message["proto"]))


def rule(message: Any) -> KernelChange | None:
    mark, table, protocol = message.get("fwmark"), message.get("table"), message.get("protocol") or 0
    plain = message["action"] == 1 and not message["src_len"] and message.get("fwmask") == 0xFFFFFFFF
    if not mark or not plain or (protocol != 152 and table not in TARGET_TABLES):
        return None
    return ev.RuleSeen(rule=Rule(mark, message["family"] == 2, table, message.get("priority") or 0, protocol))


READERS = {
    DumpKind.LINKS: link,
    DumpKind.ADDRESSES: address,
    DumpKind.NEIGHBORS: neighbor,
    DumpKind.ROUTES: route,
    DumpKind.RULES: rule,
}


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
        messages = [m for m in MarshalRtnl().parse(datagram) if m.get("event") != "NLMSG_DONE"]
        theirs += [found for message in messages if (found := READERS[kind](message)) is not None]
    assert len(ours) >= 3
    assert ours == theirs
