"""Time to decode and to encode, per message: the lean codec beside pyroute2 on the same bytes.

The bytes to decode are a real kernel's notifications and dumps, of links, addresses, neighbours and routes. The batch
to encode replaces the routes of a repair.
"""

import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_DONE
from pyroute2.netlink.rtnl import RTM_NEWROUTE
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lbguard.core.model import ROUTE_METRIC, ROUTE_PROTOCOL, Route, RouteKind
from lbguard.kernel.codec.decode import decode
from lbguard.kernel.codec.encode import DumpKind, dump, replace_route
from lbguard.kernel.codec.framing import HEADER, messages
from lbguard.kernel.sockets import KERNEL_PORT, open_netlink
from tests.bench.results import Row, Say, Scale

NAME = "codec"
_DECODED_AIM_US = 10.0
_ROUNDS = {Scale.FULL: 15, Scale.QUICK: 7, Scale.SMOKE: 1}
_MESSAGES = {Scale.FULL: 500, Scale.QUICK: 200, Scale.SMOKE: 20}
_BUFFER_BYTES = 1 << 17
_TIMEOUT_S = 5.0


def run(scale: Scale, say: Say, directory: Path) -> Iterator[Row]:
    """Measure the decoders on each kind of message, and the encoders."""
    rounds, count = _ROUNDS[scale], _MESSAGES[scale]
    _furnish()
    for kind in (DumpKind.LINKS, DumpKind.ADDRESSES, DumpKind.NEIGHBORS, DumpKind.ROUTES):
        say(f"decoding {count} messages of {kind.name.lower()}")
        datagram = _one_message(kind) * count
        yield _row(
            f"decode a message: {kind.name.lower()}",
            rounds,
            count,
            lambda data=datagram: decode(data, len(data), lambda _table: True),  # type: ignore[misc]
            lambda data=datagram: list(MarshalRtnl().parse(data)),  # type: ignore[misc]
            aim=_DECODED_AIM_US,
        )
    say(f"encoding {count} routes")
    routes = [
        Route(5000 + n, True, RouteKind.UNICAST, ROUTE_METRIC, IPv4Address(0xAC100000 + n).packed, 7, ROUTE_PROTOCOL)
        for n in range(count)
    ]
    yield _row(
        "encode a message: route of a repair",
        rounds,
        count,
        lambda: [replace_route(route) for route in routes],
        lambda: [_by_library(route) for route in routes],
    )


def _row(
    what: str, rounds: int, count: int, lean: Callable[[], object], full: Callable[[], object], aim: float | None = None
) -> Row:
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_time_us(lean) / count)
        theirs.append(_time_us(full) / count)
    reference = Row.of(NAME, "pyroute2", "us", theirs)
    return Row.of(NAME, what, "us", ours, aim=aim, reference=reference.measured, reference_what="pyroute2, same bytes")


def _time_us(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return (time.perf_counter() - started_at) * 1e6


def _by_library(route: Route) -> bytes:
    message = rtmsg()
    message["header"]["type"] = RTM_NEWROUTE
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    message["family"], message["proto"], message["type"] = socket.AF_INET, route.protocol, int(route.kind)
    message["attrs"] = [
        ("RTA_TABLE", route.table),
        ("RTA_PRIORITY", route.metric),
        ("RTA_GATEWAY", str(IPv4Address(route.gateway))),
        ("RTA_OIF", route.oif),
    ]
    message.encode()
    return bytes(message.data)


def _furnish() -> None:
    """Give this namespace a link, an address, a neighbour and a route of a target."""
    with IPRoute() as kernel:
        kernel.link("add", ifname="codec0", kind="veth", peer="codec1")
        [index] = kernel.link_lookup(ifname="codec0")
        kernel.link("set", index=index, state="up")
        kernel.addr("add", index=index, address="172.16.0.1", prefixlen=24)
        kernel.neigh("add", ifindex=index, dst="172.16.0.2", lladdr="02:00:00:00:00:02", state="permanent")
        target = {"gateway": "172.16.0.2", "oif": index, "table": 5001, "priority": ROUTE_METRIC}
        kernel.route("add", dst="default", proto=ROUTE_PROTOCOL, **target)


def _one_message(kind: DumpKind) -> bytes:
    """Return the last message of a dump of this namespace that is of interest."""
    found = b""
    with open_netlink(socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.sendto(dump(kind, 1), (KERNEL_PORT, 0))
        while True:
            data = sock.recv(_BUFFER_BYTES)
            for message in messages(memoryview(data)):
                if message.kind == NLMSG_DONE:
                    assert found, f"the dump of {kind.name} holds nothing"
                    return found
                length = HEADER.size + len(message.data)
                whole = (
                    HEADER.pack(length, message.kind, message.flags, 1, 0) + bytes(message.data) + bytes(-length % 4)
                )
                if decode(whole, len(whole), lambda table: table == 5001).changes:
                    found = whole
