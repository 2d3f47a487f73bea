"""A storm of kernel events against the service on one core, and whether it ends up with the kernel's state.

The events are made with batched netlink requests from the other core: flips of target neighbours (94 %), foreign routes
in target tables that come and go (4 %), our own routes deleted by somebody, which the service puts back (1 %), and
links without and with targets that go down and up (1 %). First 21,000 a second are asked for, then as many as the
kernel makes. Afterwards the engine's view is compared with what `ip` says: links, addresses, target neighbours,
routes. Neighbour probes are off, so that the states hold still for the comparison.
"""

import ipaddress
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.model import ROUTE_METRIC, NeighborState, Route, RouteKind
from lbguard.kernel.codec.encode import delete_route, replace_route
from lbguard.lab.netns import Namespace
from tests.bench import observed
from tests.bench.results import Row, Say, Scale
from tests.bench.service import Service
from tests.bench.world import LINK, PEER_BRIDGE, Pair, mark_of, pair, target_ips, targets_yaml

NAME = "storm"
_AIM_PER_S = 20_000
_PACE_PER_S = 21_000  # a little more, so that the pace is not what falls short of the aim
_BATCH = 100
_NOISE = "noise"
_CATCH_UP_S = 30.0
_SIZES = {Scale.FULL: (200, 8.0, 4.0), Scale.QUICK: (200, 3.0, 2.0), Scale.SMOKE: (4, 0.3, 0.3)}

_SO_RCVBUFFORCE = 33
_RTM_NEWLINK, _RTM_NEWNEIGH = 16, 28
_REPLACE_CREATE = 0x1 | 0x100 | 0x400
_FOREIGN_METRIC, _FOREIGN_PROTOCOL = 100, 4


@dataclass(frozen=True, slots=True)
class _Outcome:
    offered_per_s: float
    handled_per_s: float
    capacity_per_s: float
    behind_s: float
    in_step_s: float
    overruns: int
    resyncs: int
    differences: list[str]


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Let it storm at the wanted rate and without a limit."""
    targets, seconds, burst_s = _SIZES[scale]
    cores = sorted(os.sched_getaffinity(0))
    with pair("storm", targets) as built:
        built.lb.add_veth(_NOISE, "noise-end", up=False)
        built.lb.set_link("noise-end", up=True)
        service = _Watched(
            built.lb,
            directory,
            targets_yaml(targets),
            settings={"LBGUARD_NEIGHBORS__PROBE_INTERVAL": "0", "LBGUARD_NEIGHBORS__TUNE": "false"},
            cpus={cores[0]},
        )
        with service, _Storm(built, targets) as storm, _on(set(cores[1:]) or set(cores)):
            service.wait_until_admitted(targets)
            time.sleep(1.0)
            say(f"{_PACE_PER_S} events/s for {seconds:.0f} s, service on one core")
            steady = _let_it_storm(service, storm, built.lb, seconds, _PACE_PER_S)
            say(f"as many events as the kernel makes, for {burst_s:.0f} s")
            burst = _let_it_storm(service, storm, built.lb, burst_s, None)
    return [_rate_row(steady), _state_row("21,000 events/s", steady), _burst_row(burst), _state_row("no limit", burst)]


def _rate_row(outcome: _Outcome) -> Row:
    return Row(
        benchmark=NAME,
        what="event storm on one core, 21,000 events/s asked for: handled",
        unit="events/s",
        measured=round(outcome.handled_per_s, -2),
        aim=_AIM_PER_S,
        at_least=True,
        reference=round(outcome.capacity_per_s, -2),
        reference_what="per second of processor time",
        details=_details(outcome),
    )


def _burst_row(outcome: _Outcome) -> Row:
    return Row(
        benchmark=NAME,
        what="event storm on one core, no limit: handled",
        unit="events/s",
        measured=round(outcome.handled_per_s, -2),
        reference=round(outcome.offered_per_s, -2),
        reference_what=f"made; {outcome.overruns} overruns, each resynced",
        details=_details(outcome),
    )


def _state_row(which: str, outcome: _Outcome) -> Row:
    return Row(
        benchmark=NAME,
        what=f"event storm, {which}: differences from the kernel's state afterwards",
        unit="",
        measured=len(outcome.differences),
        aim=0,
        details={"differences": outcome.differences[:20], "overruns": outcome.overruns, "in_step_s": outcome.in_step_s},
    )


def _details(outcome: _Outcome) -> dict[str, Any]:
    return {
        "offered_per_s": outcome.offered_per_s,
        "capacity_per_s": outcome.capacity_per_s,
        "behind_s": outcome.behind_s,
        "overruns": outcome.overruns,
        "resyncs": outcome.resyncs,
    }


class _Watched(Service):
    """The service with the window of `observed`."""

    command = (Service.command[0], "-m", observed.__name__)

    def view(self) -> dict[str, Any]:
        """Ask for counters and view."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"?\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def _let_it_storm(
    service: _Watched, storm: "_Storm", lb: Namespace, seconds: float, per_second: int | None
) -> _Outcome:
    before, cpu_before, made_before = service.view(), service.cpu_s(), storm.heard()
    began = time.monotonic()
    storm.blow(seconds, per_second)
    blew_s = time.monotonic() - began
    ended = time.monotonic()
    made = storm.heard() - made_before
    after, caught_up_at = _caught_up(service, ended + _CATCH_UP_S)
    cpu_s = service.cpu_s() - cpu_before
    differences, in_step_at = _settled(service, lb)
    handled = after["events"] - before["events"]
    return _Outcome(
        offered_per_s=made / blew_s,
        handled_per_s=handled / (caught_up_at - began),
        capacity_per_s=handled / cpu_s,
        behind_s=caught_up_at - ended,
        in_step_s=in_step_at - ended,
        overruns=after["overruns"] - before["overruns"],
        resyncs=after["resyncs"] - before["resyncs"],
        differences=differences,
    )


def _caught_up(service: _Watched, deadline: float) -> tuple[dict[str, Any], float]:
    """Wait until nothing waits and nothing more comes; return the view and the moment in which that began."""
    view, at = service.view(), time.monotonic()
    while at < deadline:
        time.sleep(0.02)
        later, later_at = service.view(), time.monotonic()
        if view["in_sync"] and not view["inbox_depth"] and later["events"] == view["events"]:
            break
        view, at = later, later_at
    return view, at


def _settled(service: _Watched, lb: Namespace) -> tuple[list[str], float]:
    """Compare until the two agree: repairs of the last flap may still be under way."""
    deadline = time.monotonic() + _CATCH_UP_S
    while True:
        seen_at = time.monotonic()
        differences = _differences(service.view(), lb)
        if not differences or time.monotonic() > deadline:
            return differences, seen_at
        time.sleep(0.2)


def _differences(view: dict[str, Any], lb: Namespace) -> list[str]:
    kernel = _kernel_view(lb)
    found = []
    for kind, entries in kernel.items():
        held = {tuple(entry) for entry in view[kind]}
        found += [f"{kind}: the kernel has {entry}" for entry in sorted(entries - held)]
        found += [f"{kind}: the engine has {entry}" for entry in sorted(held - entries)]
    return found


def _kernel_view(lb: Namespace) -> dict[str, set[tuple[Any, ...]]]:
    """Return links but loopback, their addresses, neighbours of targets and our unicast routes, as dumped."""
    links = [link for link in lb.links() if link.name != "lo"]
    index = {link.name: link.ifindex for link in links}
    return {
        "links": {(link.ifindex, link.name, link.up and link.running, link.mac) for link in links},
        "addresses": {
            (index[address.link], address.ip, address.prefix_length)
            for address in lb.addresses()
            if address.link in index
        },
        "neighbors": {
            (index[entry.link], entry.ip, entry.state.upper(), entry.mac)
            for entry in lb.neighbors()
            if _is_target(entry.ip)
        },
        "routes": {
            (route.table, 4 if route.ipv4 else 6, route.gateway, index[route.link])
            for route in lb.routes()
            if (route.kind, route.protocol) == ("unicast", 152)
        },
    }


def _is_target(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip in ipaddress.ip_network("172.16.0.0/16" if ip.version == 4 else "fd00::/64")


@contextmanager
def _on(cpus: set[int]) -> Iterator[None]:
    """Keep this process on some processors for the length of the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Storm:
    """Makes kernel events with batched requests."""

    def __init__(self, built: Pair, targets: int) -> None:
        self._index = built.lb.index(LINK)
        self._noise = built.lb.index(_NOISE)
        mac = bytes.fromhex(built.peer.link(PEER_BRIDGE).mac.replace(":", ""))
        ips = [(number, ip) for number in range(targets) for ip in target_ips(number)]
        flips = [
            [neighbor_message(self._index, ip, mac, state) for _, ip in ips]
            for state in (NeighborState.PERMANENT, NeighborState.STALE)
        ]
        ours = [
            delete_route(Route(mark_of(n), is_ipv4(ip), RouteKind.UNICAST, ROUTE_METRIC, ip, self._index))
            for n, ip in ips
        ]
        foreign = [
            Route(mark_of(n), is_ipv4(ip), RouteKind.UNICAST, _FOREIGN_METRIC, ip, self._index, _FOREIGN_PROTOCOL)
            for n, ip in ips
        ]
        come_and_go = [[replace_route(route) for route in foreign], [delete_route(route) for route in foreign]]
        self._batches = [self._batch(number, flips, come_and_go, ours) for number in range(8 * len(ips))]
        with built.lb.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
            self._ear = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
        self._next = 0
        # A second listener that only counts tells how many events the kernel made.
        self._ear.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
        self._ear.bind((0, 0x1 | 0x4 | 0x40 | 0x400))
        self._ear.setblocking(False)
        self._socket.setblocking(False)
        self._heard = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._ear.close()

    def heard(self) -> int:
        """Return how many events the kernel has made so far: links, neighbours, routes."""
        return self._heard

    def blow(self, seconds: float, per_second: int | None) -> None:
        """Make events for so long, at this rate or as fast as it goes."""
        began = time.monotonic()
        heard_before = self._heard
        while (passed := time.monotonic() - began) < seconds:
            if per_second is not None and self._heard - heard_before > passed * per_second:
                time.sleep(0.001)
                continue
            self._socket.send(self._batches[self._next % len(self._batches)])
            self._next += 1
            self._count()
            self._drop_answers()

    def _count(self) -> None:
        try:
            while True:
                self._ear.recv(16)
                self._heard += 1
        except BlockingIOError:
            pass

    def _drop_answers(self) -> None:
        """Read the refusals: a route may be gone already when it is to be deleted."""
        try:
            while True:
                self._socket.recv(65536)
        except BlockingIOError:
            pass

    def _batch(self, number: int, flips: list[list[bytes]], come_and_go: list[list[bytes]], ours: list[bytes]) -> bytes:
        count = len(ours)
        # All entries are turned one way before any is turned back, or the kernel would have nothing to tell.
        flat_from = number * 94
        messages = [flips[n // count % 2][n % count] for n in range(flat_from, flat_from + 94)]
        foreign_from = number * 4
        messages += [come_and_go[n // count % 2][n % count] for n in range(foreign_from, foreign_from + 4)]
        messages.append(ours[number % count])
        index = self._index if number % 200 == 100 else self._noise
        messages.append(_set_up(index, up=number % 2 == 1))
        if index == self._index:
            messages.append(_set_up(index, up=True))
        return b"".join(messages)


def _set_up(index: int, *, up: bool) -> bytes:
    return struct.pack("=IHHIIBxHiII", 32, _RTM_NEWLINK, 0x1, 0, 0, 0, 0, index, 1 if up else 0, 1)


def neighbor_message(index: int, ip: Ip, mac: bytes, state: NeighborState) -> bytes:
    """Return the request that gives a neighbour entry a link-layer address and a state."""
    family = socket.AF_INET if is_ipv4(ip) else socket.AF_INET6
    body = struct.pack("=BxxxiHBB", family, index, state, 0, 0)
    body += struct.pack("=HH", 4 + len(ip), 1) + ip  # NDA_DST
    body += struct.pack("=HH", 10, 2) + mac + bytes(2)  # NDA_LLADDR
    return struct.pack("=IHHII", 16 + len(body), _RTM_NEWNEIGH, _REPLACE_CREATE, 0, 0) + body
