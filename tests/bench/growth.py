"""What one kernel event costs with 100, 1,000 and 10,000 targets in streams of 100.

Work per event must not grow with the targets that the event does not concern. The engine alone is measured with all
targets active, 100 behind each link. The whole service is measured with 100 targets behind the link that things happen
to, and all others behind another one, where nothing happens; that link resolves no neighbours, because the kernel's
limit on neighbour entries holds for the whole machine, and the tables are small, because their size is not in question.
It goes to 3,000 targets: the kernel looks through all rules for each one it adds, so that 10,000 take it half a minute.
"""

import gc
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lbguard.core import effects as ef
from lbguard.core import events as ev
from lbguard.core.addr import Ip, parse_ip
from lbguard.core.config import EngineConfig
from lbguard.core.engine import Engine
from lbguard.core.events import Event
from lbguard.core.model import ROUTE_METRIC, NeighborState, Route, RouteKind, StreamSpec, TargetSpec, TargetState
from lbguard.kernel.codec.encode import delete_route
from tests.bench.results import Row, Say, Scale, Summary
from tests.bench.service import Service
from tests.bench.storm import neighbor_message
from tests.bench.world import (
    LINK,
    STREAM_SIZE,
    Pair,
    RouteListener,
    mark_of,
    pair,
    target_ips,
    targets_yaml,
)

NAME = "growth"
_AIM = 1.5
_SIZES = {
    Scale.FULL: ((100, 1000, 10_000), 2000, 100),
    Scale.QUICK: ((100, 1000), 500, 30),
    Scale.SMOKE: ((100, 200), 5, 2),
}
_BULK = "nse-b"
_STRANGERS = 50
_SERVICE_TARGETS_MAX = 3000
_SERVICE_SETTINGS = {
    "LBGUARD_NEIGHBORS__PROBE_INTERVAL": "0",
    "LBGUARD_KERNEL__RECONCILE_INTERVAL": "0",
    "LBGUARD_DISTRIBUTOR__SLOTS_PER_TARGET": "1",
}
_MAC = bytes.fromhex("02000000000a")


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Measure every kind of event at every size; each row is the largest size beside the smallest."""
    sizes, repetitions, flaps = _SIZES[scale]
    engine: dict[str, dict[int, list[float]]] = {}
    service: dict[str, dict[int, list[float]]] = {}
    for size in sizes:
        say(f"engine alone, {size} targets, {repetitions} events of each kind")
        for what, samples in _engine_costs(size, repetitions).items():
            engine.setdefault(what, {})[size] = samples
    for size in (sizes[0], min(sizes[-1], _SERVICE_TARGETS_MAX)):
        say(f"whole service, {size} targets")
        for what, samples in _service_costs(size, flaps, directory).items():
            service.setdefault(what, {})[size] = samples
    rows = [_row(f"engine: {what}", "us", costs) for what, costs in engine.items()]
    return rows + [_row(f"service: {what}", "us" if "processor" in what else "ms", c) for what, c in service.items()]


def _row(what: str, unit: str, costs: dict[int, list[float]]) -> Row:
    smallest, largest = min(costs), max(costs)
    base = Summary.of(costs[smallest]).median
    return Row.of(
        NAME,
        f"{what}, {largest} targets",
        unit,
        costs[largest],
        aim=base * _AIM,
        reference=base,
        reference_what=f"with {smallest} targets",
        details={"medians": {size: Summary.of(samples).median for size, samples in costs.items()}},
    )


# The engine alone


def _address(number: int, *, ipv4: bool) -> Ip:
    link, host = divmod(number, STREAM_SIZE)
    if ipv4:
        return parse_ip(f"10.{link // 256}.{link % 256}.{10 + host}")
    return parse_ip(f"fd00:0:{link:x}::{10 + host:x}")


class _Driven:
    """An engine with all its targets active; effects are answered as if everything had gone well."""

    def __init__(self, targets: int) -> None:
        self.engine = Engine(EngineConfig())
        self.now = 1000.0
        links = range(targets // STREAM_SIZE)
        addresses = [
            event
            for link in links
            for event in (
                ev.AddressSeen(ifindex=10 + link, ip=parse_ip(f"10.{link // 256}.{link % 256}.1"), prefix_length=24),
                ev.AddressSeen(ifindex=10 + link, ip=parse_ip(f"fd00:0:{link:x}::1"), prefix_length=64),
            )
        ]
        neighbors = [
            ev.NeighborSeen(
                ifindex=10 + number // STREAM_SIZE,
                ip=_address(number, ipv4=ipv4),
                state=NeighborState.REACHABLE,
                mac=_MAC,
            )
            for number in range(targets)
            for ipv4 in (True, False)
        ]
        others = (ev.LinkSeen(ifindex=5, name="other", up=True, mac=_MAC),)
        streams = tuple(
            StreamSpec(
                name=f"stream-{link}",
                identifier_offset=5000 + link * STREAM_SIZE,
                targets=tuple(
                    TargetSpec(
                        identifier=host + 1,
                        ips=tuple(_address(link * STREAM_SIZE + host, ipv4=ipv4) for ipv4 in (True, False)),
                    )
                    for host in range(STREAM_SIZE)
                ),
            )
            for link in links
        )
        seen = tuple(ev.LinkSeen(ifindex=10 + link, name=f"nse-{link}", up=True, mac=_MAC) for link in links)
        self.feed(ev.SourceSnapshot(streams=streams))
        self.feed(
            ev.KernelSnapshot(links=others + seen, addresses=tuple(addresses), neighbors=tuple(neighbors)),
        )
        active = sum(target.state is TargetState.ACTIVE for target in self.engine.targets())
        if active != targets:
            raise RuntimeError(f"only {active} of {targets} targets became active")

    def feed(self, *events: Event) -> None:
        """Let the engine take events, decide, and take the answers to its effects, until it asks for nothing more."""
        waiting = list(events)
        while waiting:
            effects = [effect for event in waiting for effect in self.engine.observe(event, self.now)]
            effects += self.engine.decide(self.now)
            self.engine.next_deadline(self.now)
            waiting = [answer for effect in effects for answer in _answers(effect)]

    def timed(self, rounds: Sequence[Sequence[Event]]) -> list[float]:
        """Feed each and return how long each took, in microseconds."""
        took = []
        for events in rounds:
            self.now += 0.0001
            started = time.perf_counter_ns()
            self.feed(*events)
            took.append((time.perf_counter_ns() - started) / 1000)
        return took


def _answers(effect: ef.Effect) -> Sequence[Event]:
    match effect:
        case ef.AttachStream():
            return [ev.DistributorSeen(stream=effect.stream.name, active=frozenset())]
        case ef.CommitTables():
            return [
                ev.CommitDone(stream=table.stream.name, registered=table.registered, active=table.active)
                for table in effect.tables
            ]
        case ef.ProgramRoutes():
            return [ev.RoutesProgrammed(added=effect.put, deleted=effect.delete)]
        case ef.ProgramRules():
            return [
                *(ev.RuleSeen(rule=rule) for rule in effect.add),
                *(ev.RuleGone(rule=rule) for rule in effect.delete),
            ]
    return []


def _engine_costs(targets: int, repetitions: int) -> dict[str, list[float]]:
    driven = _Driven(targets)
    ip = _address(0, ipv4=True)
    route = Route(mark_of(0), True, RouteKind.UNICAST, ROUTE_METRIC, ip, 10)

    def neighbor(state: NeighborState, address: Ip = ip, ifindex: int = 10) -> ev.NeighborSeen:
        return ev.NeighborSeen(ifindex=ifindex, ip=address, state=state, mac=_MAC)

    def link(ifindex: int, name: str, *, up: bool) -> ev.LinkSeen:
        return ev.LinkSeen(ifindex=ifindex, name=name, up=up, mac=_MAC)

    stranger = parse_ip("192.0.2.1")
    rounds: dict[str, list[Sequence[Event]]] = {
        "neighbour of one target": [
            (neighbor((NeighborState.STALE, NeighborState.REACHABLE)[n % 2]),) for n in range(repetitions)
        ],
        "route of one target lost, and restored": [(ev.RouteGone(route=route),)] * repetitions,
        "neighbour of no target": [(neighbor(NeighborState.STALE, stranger, 5),)] * repetitions,
        "link that leads to no target": [(link(5, "other", up=n % 2 == 1),) for n in range(repetitions)],
        "link of 100 targets down, then up": [
            (link(10, "nse-0", up=n % 2 == 1),) for n in range(2 * max(1, repetitions // 50))
        ],
    }
    gc.collect()
    gc.disable()  # its pauses come by the number of objects made, not by the event that they happen to fall on
    try:
        return {what: driven.timed(events)[len(events) // 10 :] for what, events in rounds.items()}
    finally:
        gc.enable()


# The whole service


def _service_costs(targets: int, repetitions: int, directory: Path) -> dict[str, list[float]]:
    with ExitStack() as stack:
        built = stack.enter_context(pair(f"growth{targets}", STREAM_SIZE, prefix4=24, prefix6=120))
        _add_bulk_link(built)
        listener = stack.enter_context(RouteListener(built.lb))
        service = stack.enter_context(
            Service(built.lb, directory, targets_yaml(targets, apart_from=STREAM_SIZE), settings=_SERVICE_SETTINGS)
        )
        service.wait_until_admitted(targets)
        service.wait_until_quiet()
        with built.lb.entered():
            kernel = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC))
        index = built.lb.index(LINK)
        ip = target_ips(0)[0]
        cut = delete_route(Route(mark_of(0), True, RouteKind.UNICAST, ROUTE_METRIC, ip, index))
        idle_s_per_s = _idle(service)
        restored: list[float] = []

        def lose_route(_: int) -> None:
            listener.drain()
            sent_at = time.time_ns()
            kernel.send(cut)
            restored.append((listener.await_routes(1) - sent_at) / 1e6)

        stranger = parse_ip("172.16.1.200")

        flips = b"".join(
            neighbor_message(index, stranger, _MAC, (NeighborState.STALE, NeighborState.PERMANENT)[n % 2])
            for n in range(_STRANGERS)
        )

        def touch_stranger(_: int) -> None:
            kernel.send(flips)

        loss_us = _cost(service, idle_s_per_s, repetitions, lose_route)
        stranger_us = _cost(service, idle_s_per_s, repetitions, touch_stranger) / _STRANGERS
    return {
        "route of one target lost, until restored": restored,
        "processor time of that": [loss_us],
        "processor time of a neighbour of no target": [stranger_us],
    }


def _add_bulk_link(built: Pair) -> None:
    """Give the load balancer a second link, to all targets but the first 100, that resolves nothing."""
    built.lb.add_veth(_BULK, "bulk", built.peer.path, up=False)
    built.peer.set_link("bulk", up=True)
    built.lb.set_link(_BULK, up=True, arp=False)
    built.lb.add_addresses(_BULK, "172.16.0.1/16", "fd00::1/64")


def _idle(service: Service, seconds: float = 2.0) -> float:
    """Return the processor time that the service takes by itself, in seconds per second."""
    before, began = service.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (service.cpu_s() - before) / (time.monotonic() - began)


def _cost(service: Service, idle_s_per_s: float, repetitions: int, work: Callable[[int], None]) -> float:
    """Return the processor time of one event in microseconds, without what the service takes by itself."""
    before, began = service.cpu_s(), time.monotonic()
    for number in range(repetitions):
        work(number)
        time.sleep(0.005)
    time.sleep(0.2)
    spent = service.cpu_s() - before - idle_s_per_s * (time.monotonic() - began)
    return max(0.0, spent) * 1e6 / repetitions
