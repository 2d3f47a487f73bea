"""Model of the kernel and the distributor, to compute the decisions of other settings.

The inputs are recorded: links, addresses, neighbours, the source, verdicts, traffic. The effects of the engine are
modelled: every route, rule and commit succeeds, after a fixed short time. Recorded results of effects (results,
read-backs, the kernel's events about lbguard's own routes) are left out, because another engine causes other ones. The
model does not contain refusals of kernel and distributor, and other reactions of neighbours that would be flushed or
solicited at another time.
"""

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import assert_never

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.config import EngineConfig
from lbguard.core.effects import Effect
from lbguard.core.engine import Engine
from lbguard.core.events import Event
from lbguard.core.kernel_tables import RouteKey, route_key
from lbguard.core.model import ROUTE_PROTOCOL, Decision, LinkKey, Route, Rule, StreamTable

KERNEL_S = 0.001
"""Time for the kernel to program routes and rules."""

TABLES_S = 0.005
"""Time for the distributor to commit."""

_OWN_RESULTS = (
    ev.RoutesProgrammed,
    ev.RouteFailed,
    ev.RuleFailed,
    ev.CommitDone,
    ev.CommitFailed,
    ev.StreamsPruned,
    ev.LinkSetDown,
)


class WorldModel:
    """Engine with other settings in the recorded world. `decided` receives decisions, `committed` tables."""

    def __init__(
        self,
        config: EngineConfig,
        decided: Callable[[Decision], None],
        committed: Callable[[StreamTable, frozenset[int], frozenset[int], float], None],
    ) -> None:
        """Set what to try; the engine's neighbour work is switched off, as nothing here answers it."""
        self._config = dataclasses.replace(
            config, neighbor_probe_interval_s=0.0, solicit_neighbors=False, tune_neighbors=False
        )
        self._decided = decided
        self._committed = committed
        self._engine = Engine(self._config)
        self._waiting: list[tuple[float, int, Callable[[], Iterable[Event]]]] = []
        self._sequence = 0
        self._now = float("-inf")
        self._links: dict[int, bool] = {}
        self._addresses: dict[int, set[tuple[Ip, int]]] = {}
        self._routes: dict[RouteKey, Route] = {}
        self._rules: dict[Rule, None] = {}
        self._tables: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        self._seen_kernel = False

    @property
    def engine(self) -> Engine:
        """The engine that decides here."""
        return self._engine

    def restart(self) -> None:
        """Restart the engine without any state; the kernel and the tables keep theirs."""
        self._engine = Engine(self._config)
        self._waiting.clear()

    def begin_elsewhere(self) -> None:
        """Restart for another host: the state of kernel and tables was that of the previous host."""
        self.restart()
        self._links, self._addresses, self._routes, self._rules, self._tables = {}, {}, {}, {}, {}
        self._seen_kernel = False

    def step(self, events: Sequence[Event], now: float) -> None:
        """Advance to a recorded moment, then apply the recorded input."""
        self._pass_until(now)
        for event in events:
            for known in self._as_here(event):
                self._perform(self._engine.observe(known, now), now)
        self._now = now
        self._decide(now)

    def finish(self, now: float) -> None:
        """Advance to the end of the recording."""
        self._pass_until(now)

    # Time

    def _pass_until(self, now: float) -> None:
        while True:
            moments = [self._waiting[0][0]] if self._waiting else []
            deadline = self._engine.next_deadline(now)
            if deadline is not None:
                moments.append(deadline)
            at = min(moments, default=now)
            if at >= now:
                return
            # The clock never runs back, and a moment that stays due after a decision waits for the next news.
            at = max(at, self._now)
            if at == self._now and not (self._waiting and self._waiting[0][0] <= at):
                return
            self._now = at
            while self._waiting and self._waiting[0][0] <= at:
                for event in heapq.heappop(self._waiting)[2]():
                    self._perform(self._engine.observe(event, at), at)
            self._decide(at)

    def _decide(self, now: float) -> None:
        self._perform(self._engine.decide(now), now)

    def _later(self, at: float, action: Callable[[], Iterable[Event]]) -> None:
        self._sequence += 1
        heapq.heappush(self._waiting, (at, self._sequence, action))

    # What comes from outside

    def _as_here(self, event: Event) -> Iterable[Event]:
        """Return what an event is in this world, which may be nothing."""
        match event:
            case ev.KernelSnapshot():
                return [self._snapshot(event)]
            case ev.LinkSeen():
                self._link(event.ifindex, event.admin_up)
            case ev.LinkGone():
                self._link(event.ifindex, False)
                self._links.pop(event.ifindex, None)
                self._addresses.pop(event.ifindex, None)
            case ev.AddressSeen():
                self._addresses.setdefault(event.ifindex, set()).add((event.ip, event.prefix_length))
            case ev.AddressGone():
                return [event, *self._address_gone(event)]
            case ev.RouteSeen(route=route) | ev.RouteGone(route=route):
                return [] if route.protocol == ROUTE_PROTOCOL else [event]
            case ev.RuleSeen(rule=rule) | ev.RuleGone(rule=rule):
                return [] if rule.protocol == ROUTE_PROTOCOL else [event]
            case ev.DistributorSeen() if self._config.owns_paths:
                # The first table is as recorded; later ones are the model's own.
                _, active = self._tables.setdefault(event.stream, (frozenset(), event.active))
                return [ev.DistributorSeen(stream=event.stream, active=active)]
            case ev.DistributorLost():
                self._tables[event.stream] = (frozenset(), frozenset())
        return [] if isinstance(event, _OWN_RESULTS) else [event]

    def _snapshot(self, event: ev.KernelSnapshot) -> ev.KernelSnapshot:
        if not self._seen_kernel:
            self._seen_kernel = True
            self._routes = {route_key(route): route for route in event.routes if route.protocol == ROUTE_PROTOCOL}
            self._rules = dict.fromkeys(rule for rule in event.rules if rule.protocol == ROUTE_PROTOCOL)
        present = {link.ifindex: link.admin_up for link in event.links}
        for ifindex in [ifindex for ifindex in self._links if ifindex not in present]:
            self._link(ifindex, False)
        for ifindex, admin_up in present.items():
            self._link(ifindex, admin_up)
        self._links = present
        self._addresses = {}
        for address in event.addresses:
            self._addresses.setdefault(address.ifindex, set()).add((address.ip, address.prefix_length))
        foreign_routes = [route for route in event.routes if route.protocol != ROUTE_PROTOCOL]
        foreign_rules = [rule for rule in event.rules if rule.protocol != ROUTE_PROTOCOL]
        return dataclasses.replace(
            event, routes=(*foreign_routes, *self._routes.values()), rules=(*foreign_rules, *self._rules)
        )

    def _link(self, ifindex: int, admin_up: bool) -> None:
        """Note a link; the kernel keeps no route through one that is gone or set down."""
        self._links[ifindex] = admin_up
        if not admin_up:
            for key in [key for key, route in self._routes.items() if route.oif == ifindex]:
                del self._routes[key]

    def _address_gone(self, event: ev.AddressGone) -> list[Event]:
        held = self._addresses.get(event.ifindex, set())
        held.discard((event.ip, event.prefix_length))
        if not is_ipv4(event.ip) or any(is_ipv4(ip) for ip, _ in held):
            return []
        gone = [route for route in self._routes.values() if route.oif == event.ifindex and route.ipv4]
        for route in gone:
            del self._routes[route_key(route)]
        return [ev.RouteGone(route=route) for route in gone]

    # Effects of the engine

    def _perform(self, effects: Iterable[Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case fx.Record(decision=decision):
                    self._decided(decision)
                case fx.ProgramRoutes():
                    self._later(now + KERNEL_S, partial(self._program_routes, effect))
                case fx.ProgramRules():
                    self._later(now + KERNEL_S, partial(self._program_rules, effect))
                case fx.SetLinkDown(link=link):
                    self._later(now + KERNEL_S, partial(self._set_down, link))
                case fx.AttachStream(stream=stream):
                    # What the distributor holds of a stream that is new here is told by the recording.
                    if stream.name in self._tables:
                        self._later(now + TABLES_S, partial(self._read_back, stream.name))
                case fx.CommitTables(tables=tables):
                    self._later(now + TABLES_S, partial(self._commit, tables, now + TABLES_S))
                case fx.ForgetStream(stream=stream):
                    self._tables.pop(stream.name, None)
                case fx.PruneStreams():
                    self._later(now + TABLES_S, _pruned)
                case (
                    fx.Announce()
                    | fx.SolicitNeighbors()
                    | fx.FlushNeighbors()
                    | fx.ResolveNeighbors()
                    | fx.ProbeNeighbors()
                    | fx.TuneLink()
                    | fx.SetLinkUp()
                    | fx.SetAvailability()
                    | fx.SteerFlows()
                    | fx.ParkPackets()
                    | fx.NeighborMoved()
                    | fx.VerdictAnswered()
                    | fx.OverrideAnswered()
                    | fx.Ignored()
                ):
                    pass  # nothing here answers them
                case _:
                    assert_never(effect)

    def _program_routes(self, effect: fx.ProgramRoutes) -> list[Event]:
        results: list[Event] = []
        added = []
        for route in effect.put:
            if route.oif and not self._links.get(route.oif, False):
                results.append(ev.RouteFailed(route=route, reason="ENODEV: modelled"))
            else:
                self._routes[route_key(route)] = route
                added.append(route)
        for route in effect.delete:
            if self._routes.get(route_key(route)) == route:
                del self._routes[route_key(route)]
        return [ev.RoutesProgrammed(added=tuple(added), deleted=effect.delete), *results]

    def _program_rules(self, effect: fx.ProgramRules) -> list[Event]:
        self._rules.update(dict.fromkeys(effect.add))
        for rule in effect.delete:
            self._rules.pop(rule, None)
        seen = [ev.RuleSeen(rule=rule) for rule in effect.add]
        return [*seen, *(ev.RuleGone(rule=rule) for rule in effect.delete)]

    def _set_down(self, link: LinkKey) -> list[Event]:
        return [ev.LinkSetDown(link=link)]

    def _read_back(self, name: str) -> list[Event]:
        _, active = self._tables.get(name, (frozenset(), frozenset()))
        return [ev.DistributorSeen(stream=name, active=active)]

    def _commit(self, tables: Sequence[StreamTable], at: float) -> list[Event]:
        for table in tables:
            registered, active = self._tables.get(table.stream.name, (frozenset[int](), frozenset[int]()))
            self._tables[table.stream.name] = (table.registered, table.active)
            self._committed(table, registered, active, at)
        return [
            ev.CommitDone(stream=table.stream.name, registered=table.registered, active=table.active)
            for table in tables
        ]


def _pruned() -> list[Event]:
    return [ev.StreamsPruned()]
