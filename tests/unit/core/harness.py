"""An engine with a shell that carries everything out at once, so that a test reads as what happened and what followed.

Addresses: link N (ifindex N) of proxy P has 172.16.P.N/24 and fd00:P::N/64; target T behind proxy P has 172.16.P.(10+T)
and fd00:P::(10+T).
"""

from ipaddress import ip_address, ip_interface
from typing import TypeVar

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.addr import Ip
from lbguard.core.config import EngineConfig
from lbguard.core.engine import Engine
from lbguard.core.model import (
    Action,
    Decision,
    NeighborState,
    Route,
    Rule,
    StreamSpec,
    TargetKey,
    TargetSpec,
    TargetState,
)
from lbguard.core.state import Stream, Target

E = TypeVar("E", bound=fx.Effect)
STREAM = "stream-a"


def ip(text: str) -> Ip:
    return ip_address(text).packed


def ipv4_of(target: int, proxy: int = 0) -> Ip:
    return ip(f"172.16.{proxy}.{10 + target}")


def ipv6_of(target: int, proxy: int = 0) -> Ip:
    return ip(f"fd00:{proxy}::{10 + target}")


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def _slot(route: Route) -> tuple[int, bool, int]:
    return route.table, route.ipv4, route.metric


class Guard:
    """An engine and the state of its world: kernel routes and rules, distributor tables.

    `refuse` holds the types of effects that are not carried out (they stay in `effects`, for the test to answer).
    """

    def __init__(self, config: EngineConfig | None = None, *, targets: int = 2, start: bool = True) -> None:
        self.engine = Engine(
            config or EngineConfig(neighbor_probe_interval_s=0.0, solicit_neighbors=False, superseded_link_down=True)
        )
        self.now = 100.0
        self.effects: list[fx.Effect] = []
        self._routes: dict[tuple[int, bool, int], Route] = {}
        self.rules: set[Rule] = set()
        self.tables: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        self.refuse: tuple[type, ...] = ()
        if start:
            self.tell(ev.KernelSnapshot())
            self.link(1)
            self.register(*range(1, targets + 1))

    # What is told

    def tell(self, *events: ev.Event) -> list[fx.Effect]:
        """Hand over events as one batch, and carry out what follows until nothing does. Returns all effects."""
        told: list[fx.Effect] = []
        for event in events:
            told += self.engine.observe(event, self.now)
        told += self.engine.decide(self.now)
        self.effects = list(told)
        pending = told
        for _ in range(20):
            results = [result for effect in pending for result in self._carry_out(effect)]
            if not results:
                return self.effects
            pending = []
            for result in results:
                pending += self.engine.observe(result, self.now)
            pending += self.engine.decide(self.now)
            self.effects += pending
        raise AssertionError(f"the engine does not come to rest: {pending}")

    def wait(self, seconds: float) -> list[fx.Effect]:
        """Let time pass, waking the engine whenever it asked for it; returns all effects."""
        end = self.now + seconds
        effects: list[fx.Effect] = []
        for _ in range(10_000):
            at = self.engine.next_deadline(self.now)
            if at is None or at > end:
                self.now = end
                self.effects = effects
                return effects
            self.now = max(self.now, at)
            effects += self.tell()
        raise AssertionError("the engine wakes up again and again")

    def register(self, *identifiers: int, proxy: int = 0, ipv6: bool = False) -> list[fx.Effect]:
        """The source lists these targets in the stream."""
        targets = tuple(
            TargetSpec(identifier=i, ips=(ipv4_of(i, proxy), ipv6_of(i, proxy)) if ipv6 else (ipv4_of(i, proxy),))
            for i in identifiers
        )
        return self.source(StreamSpec(name=STREAM, targets=targets))

    def source(self, *specs: StreamSpec) -> list[fx.Effect]:
        return self.tell(ev.SourceSnapshot(streams=specs))

    def link(self, number: int, *, proxy: int = 0, ipv6: bool = False, new_mac: int | None = None) -> list[fx.Effect]:
        """A link is there, up and addressed."""
        addresses = [f"172.16.{proxy}.{number}/24"] + ([f"fd00:{proxy}::{number}/64"] if ipv6 else [])
        return self.tell(self.link_seen(number, new_mac=new_mac), *(self.address(number, a) for a in addresses))

    def link_seen(
        self, number: int, *, up: bool = True, admin_up: bool = True, new_mac: int | None = None
    ) -> ev.LinkSeen:
        return ev.LinkSeen(ifindex=number, name=f"nse-{number}", up=up, mac=mac(new_mac or number), admin_up=admin_up)

    def address(self, number: int, text: str, *, usable: bool = True) -> ev.AddressSeen:
        interface = ip_interface(text)
        return ev.AddressSeen(
            ifindex=number, ip=interface.packed, prefix_length=interface.network.prefixlen, usable=usable
        )

    def address_gone(self, number: int, text: str) -> ev.AddressGone:
        interface = ip_interface(text)
        return ev.AddressGone(ifindex=number, ip=interface.packed, prefix_length=interface.network.prefixlen)

    def unlink(self, number: int) -> list[fx.Effect]:
        """A link is deleted."""
        self._lose_routes(number)
        return self.tell(ev.LinkGone(ifindex=number))

    def cut(self, number: int) -> list[fx.Effect]:
        """A link loses its carrier; its routes stay."""
        return self.tell(self.link_seen(number, up=False))

    def set_down(self, number: int) -> list[fx.Effect]:
        """A link is set down; its routes go."""
        self._lose_routes(number)
        return self.tell(self.link_seen(number, up=False, admin_up=False))

    def neighbor(self, address: Ip, state: NeighborState, *, link: int = 1, number: int = 99) -> list[fx.Effect]:
        known = state not in (NeighborState.FAILED, NeighborState.INCOMPLETE)
        return self.tell(ev.NeighborSeen(ifindex=link, ip=address, state=state, mac=mac(number) if known else b""))

    def fail_neighbor(self, address: Ip, times: int = 2) -> None:
        for _ in range(times):
            self.neighbor(address, NeighborState.FAILED)

    # What is asked

    @property
    def routes(self) -> set[Route]:
        """The routes in the kernel."""
        return set(self._routes.values())

    @routes.setter
    def routes(self, routes: set[Route]) -> None:
        self._routes = {_slot(route): route for route in routes}

    def target(self, identifier: int, stream: str = STREAM) -> Target:
        target = self.engine.stream_registry.target(TargetKey(stream, identifier))
        assert target is not None, f"target {identifier} is not registered"
        return target

    def stream(self, name: str = STREAM) -> Stream:
        return self.engine.stream_registry.streams[name]

    def state(self, identifier: int) -> TargetState:
        return self.target(identifier).state

    def states(self) -> dict[int, str]:
        return {i: target.state.value for i, target in self.stream().targets.items()}

    def active(self, name: str = STREAM) -> set[int]:
        return set(self.tables[name][1])

    def deadline(self, identifier: int) -> float | None:
        return self.engine.life.deadlines.get(TargetKey(STREAM, identifier))

    def of(self, kind: type[E]) -> list[E]:
        """Return the effects of a kind from the last call."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def decisions(self, action: Action | None = None) -> list[Decision]:
        return [r.decision for r in self.of(fx.Record) if action is None or r.decision.action is action]

    def actions(self) -> list[tuple[int, str]]:
        return [(d.target.identifier, d.action.value) for d in self.decisions()]

    def route(self, identifier: int, *, ipv4: bool = True) -> Route | None:
        """Return the way that packets of a target take: its route, or the fallback."""
        found = [r for r in self.routes if r.table == 5000 + identifier and r.ipv4 == ipv4]
        return min(found, key=lambda route: route.metric, default=None)

    # The shell

    def _carry_out(self, effect: fx.Effect) -> list[ev.Event]:
        if isinstance(effect, self.refuse):
            return []
        if isinstance(effect, fx.ProgramRoutes):
            for route in effect.put:
                self._routes[_slot(route)] = route
            for route in effect.delete:
                if self._routes.get(_slot(route)) == route:
                    del self._routes[_slot(route)]
            return [ev.RoutesProgrammed(added=effect.put, deleted=effect.delete)]
        if isinstance(effect, fx.ProgramRules):
            self.rules |= set(effect.add)
            self.rules -= set(effect.delete)
            return [*(ev.RuleSeen(rule=r) for r in effect.add), *(ev.RuleGone(rule=r) for r in effect.delete)]
        if isinstance(effect, fx.AttachStream):
            name = effect.stream.name
            self.tables.setdefault(name, (frozenset(), frozenset()))
            return [ev.DistributorSeen(stream=name, active=self.tables[name][1])]
        if isinstance(effect, fx.CommitTables):
            for table in effect.tables:
                self.tables[table.stream.name] = (table.registered, table.active)
            return [
                ev.CommitDone(stream=t.stream.name, registered=t.registered, active=t.active) for t in effect.tables
            ]
        if isinstance(effect, fx.ForgetStream):
            self.tables.pop(effect.stream.name, None)
        if isinstance(effect, fx.PruneStreams):
            self.tables = {name: table for name, table in self.tables.items() if name in effect.known}
            return [ev.StreamsPruned()]
        return []

    def _lose_routes(self, ifindex: int) -> None:
        self.routes = {route for route in self.routes if route.oif != ifindex}
