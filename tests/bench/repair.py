"""From `link up` to the first gratuitous ARP at the peer, and to every route restored.

The clock starts right before the netlink request that sets the link up is sent, so the kernel's own work of bringing it
up is part of every number. It stops for the announcement at the kernel's time stamp of the frame in the peer's
namespace, and for the routes when a netlink listener has read the notification of the last of them.

Both have a lower bound in the same run, in a second pair of namespaces that takes turns with the first: the kernel's
own announcement (`arp_notify`), and the same routes sent in ready-made messages by a loop that does nothing else.

Of IPv6, the time from the end of duplicate address detection to lbguard's advertisement is measured. The kernel's own
advertisement (`ndisc_notify`), on the same wire, marks that end.
"""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lbguard.core.addr import is_ipv4, parse_ip
from lbguard.core.model import ROUTE_METRIC, Route, RouteKind
from lbguard.kernel.codec.encode import replace_route
from lbguard.lab.netns import Namespace
from tests.bench.results import Row, Say, Scale
from tests.bench.service import Service
from tests.bench.world import (
    LINK,
    OUR_IP6,
    LinkSwitch,
    RouteListener,
    Wire,
    mark_of,
    pair,
    target_ips,
    targets_yaml,
)

NAME = "repair"
_GARP_AIM_MS = 0.7
_TIMES_READY_MADE = 2.0
_CHUNK = 128
_DOWN_S = 0.5  # the outage of the report that lbguard was born from
_SETTLE_S = {1000: 0.5}  # after a repair, until the service has digested what the kernel told of it
_BARE_DOWN_S = 0.05
_NA_AIM_MS = 0.7
_ADVERTISED_AGAIN_S = 2.5
_ADVERTISED = {Scale.FULL: 10, Scale.QUICK: 5, Scale.SMOKE: 1}

_SIZES = {
    Scale.FULL: {1: 25, 100: 25, 1000: 15},
    Scale.QUICK: {1: 10, 100: 10, 1000: 5},
    Scale.SMOKE: {2: 2},
}


@dataclass(slots=True)
class _Side:
    """One of the two that take turns: how long it took, in ms."""

    announced: list[float]
    restored: list[float]


def run(scale: Scale, say: Say, directory: Path) -> Iterator[Row]:
    """Measure each number of targets behind the link, then the advertisements of IPv6."""
    for targets, repetitions in _SIZES[scale].items():
        say(f"{targets} targets behind the link, {repetitions} times link up, in turns with the kernel's arp_notify")
        guard, bare = _measure(targets, repetitions, directory)
        behind = f"{targets} dual-stack target{'s' if targets > 1 else ''}"
        yield from (
            Row.of(
                NAME,
                f"link up to first gratuitous ARP, {behind}",
                "ms",
                guard.announced,
                aim=_GARP_AIM_MS,
                **_reference(bare.announced, "kernel's arp_notify"),
            ),
            Row.of(
                NAME,
                f"link up to routes restored, {behind}",
                "ms",
                guard.restored,
                aim=_TIMES_READY_MADE * median(bare.restored) if targets == 1000 else None,
                **_reference(bare.restored, "same routes, ready-made"),
            ),
        )
    say("advertisements after duplicate address detection")
    yield Row.of(
        NAME,
        "IPv6 address usable to its first advertisement by lbguard",
        "ms",
        _measure_advertisements(_ADVERTISED[scale], directory),
        aim=_NA_AIM_MS,
    )


def _measure_advertisements(repetitions: int, directory: Path) -> list[float]:
    took: list[float] = []
    with ExitStack() as stack:
        built = stack.enter_context(pair("advertise", 1))
        for key in ("accept_dad", "dad_transmits", "ndisc_notify"):
            for link in ("all", LINK):
                built.lb.sysctl(f"net.ipv6.conf.{link}.{key}", "1")
        stack.enter_context(Service(built.lb, directory, targets_yaml(1)))
        wire = stack.enter_context(Wire(built.peer))
        switch = stack.enter_context(LinkSwitch(built.lb))
        for number in range(repetitions + 1):
            switch.set(up=False)
            time.sleep(_DOWN_S)
            wire.gratuitous()
            switch.set(up=True)
            kernels, ours, *_ = wire.await_advertisements(parse_ip(OUR_IP6), 2)
            if number:
                took.append((ours - kernels) / 1e6)
            time.sleep(_ADVERTISED_AGAIN_S)
    return took


def _reference(samples: list[float], what: str) -> dict[str, object]:
    row = Row.of(NAME, what, "ms", samples)
    return {"reference": row.measured, "reference_what": what, "details": {"reference_p95": row.p95}}


def _measure(targets: int, repetitions: int, directory: Path) -> tuple[_Side, _Side]:
    guard, bare = _Side([], []), _Side([], [])
    with ExitStack() as stack:
        guarded = stack.enter_context(pair(f"repair{targets}", targets))
        plain = stack.enter_context(pair(f"bare{targets}", 0))
        plain.lb.sysctl(f"net.ipv4.conf.{LINK}.arp_notify", "1")
        stack.enter_context(Service(guarded.lb, directory, targets_yaml(targets)))
        wire = stack.enter_context(Wire(guarded.peer))
        switch = stack.enter_context(LinkSwitch(guarded.lb))
        routes = stack.enter_context(RouteListener(guarded.lb))
        plain_wire = stack.enter_context(Wire(plain.peer))
        plain_switch = stack.enter_context(LinkSwitch(plain.lb))
        plain_routes = stack.enter_context(RouteListener(plain.lb))
        sender = stack.enter_context(_ready_made(plain.lb, targets))
        time.sleep(1.0)
        for number in range(repetitions + 1):
            timed = number > 0  # the first round warms caches on both sides
            _cut(switch, routes, _DOWN_S)
            sent_at = switch.set(up=True)
            restored_at = routes.await_routes(2 * targets)
            announced_at = wire.await_gratuitous(sent_at)
            if timed:
                guard.restored.append((restored_at - sent_at) / 1e6)
                guard.announced.append((announced_at - sent_at) / 1e6)
            time.sleep(_SETTLE_S.get(targets, 0.1))
            _cut(plain_switch, plain_routes, _BARE_DOWN_S)
            sent_at = plain_switch.set(up=True)
            sender.send_all()
            restored_at = plain_routes.await_routes(2 * targets)
            announced_at = plain_wire.await_gratuitous(sent_at)
            if timed:
                bare.restored.append((restored_at - sent_at) / 1e6)
                bare.announced.append((announced_at - sent_at) / 1e6)
    return guard, bare


def _cut(switch: LinkSwitch, routes: RouteListener, down_s: float) -> None:
    switch.set(up=False)
    time.sleep(down_s)
    routes.drain()


class _Sender:
    """The routes of all targets as messages that need no more than to be sent."""

    def __init__(self, channel: socket.socket, messages: list[bytes]) -> None:
        self._channel = channel
        self._chunks = [_joined(messages[n : n + _CHUNK]) for n in range(0, len(messages), _CHUNK)]

    def send_all(self) -> None:
        """Send them in chunks, and wait for the acknowledgement of each."""
        for chunk in self._chunks:
            self._channel.send(chunk)
            (error,) = struct.unpack_from("=i", self._channel.recv(65536), 16)
            if error:
                raise OSError(-error, "a ready-made route was refused")


@contextmanager
def _ready_made(namespace: Namespace, targets: int) -> Iterator[_Sender]:
    index = namespace.index(LINK)
    messages = [
        replace_route(Route(mark_of(number), is_ipv4(ip), RouteKind.UNICAST, ROUTE_METRIC, ip, index))
        for number in range(targets)
        for ip in target_ips(number)
    ]
    with namespace.entered():
        channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
    with channel:
        yield _Sender(channel, messages)


def _joined(messages: list[bytes]) -> bytes:
    """Put messages into one datagram; only the last asks for an acknowledgement (errors come unasked)."""
    last = bytearray(messages[-1])
    (flags,) = struct.unpack_from("=H", last, 6)
    struct.pack_into("=H", last, 6, flags | 0x4)
    return b"".join([*messages[:-1], bytes(last)])
