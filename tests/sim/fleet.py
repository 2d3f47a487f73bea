"""A fleet of load balancers behind one router: how many connections move when their views differ or one is lost.

    python -m tests.sim.fleet

Each load balancer is a real core with the real tables and a model of flow affinity; they share nothing but the router,
which spreads packets by equal-cost paths. A connection *moves* when a packet of it reaches another target than the one
that answered it first; that target resets it. What waits for a held target does not move.

Routers: `modulo` reshuffles the connections of all paths when one is lost (or is back), `resilient` only those of the
lost one.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import StreamSpec, TargetSpec, TargetState
from lbguard.distributor.maglev import NO_TARGET, ImplicitPermutations, TableCalculator, TableKind
from tests.unit.core.harness import STREAM, Guard, ipv4_of

BALANCERS = 4
LINKS = 4
TARGETS = 12
SLOTS = 1193
CONNECTIONS = 4000
BORN_PER_SECOND = 200
MODES = ("off", "incident", "all")
ROUTERS = ("modulo", "resilient")


def number_of(*what: object) -> int:
    """Return a number for anything, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "big")


@dataclass(slots=True, eq=False)
class Connection:
    """One TCP connection. `home`: the target that answered it first, 0 before."""

    number: int
    home: int = 0
    moved: bool = False


class Balancer:
    """One load balancer: its core, its table, and what it remembers of connections."""

    def __init__(self, mode: str, *, targets: Iterable[int]) -> None:
        self.mode = mode
        config = EngineConfig(
            grace=GraceConfig(window_s=3.0),
            freeze=FreezeConfig(threshold=0.5, limit_s=60.0),
            neighbor_probe_interval_s=0.0,
            solicit_neighbors=False,
            affinity=mode != "off",
        )
        self.guard = Guard(config, targets=0)
        for link in range(2, LINKS + 1):
            self.guard.link(link, proxy=link - 1)
        specs = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, (i - 1) % LINKS),)) for i in targets)
        self.guard.source(StreamSpec(name=STREAM, targets=specs))
        # A young stream changes its list at once; this one has served for a while.
        self.guard.wait(5.0)
        self._calculator = TableCalculator(ImplicitPermutations(STREAM, SLOTS), TableKind.ANCHORED)
        self._table: tuple[object, list[int]] = (None, [])
        self._remembered: dict[Connection, int] = {}

    def table(self) -> list[int]:
        """Return the target index of each slot."""
        pair = self.guard.tables[STREAM]
        if self._table[0] != pair:
            registered, active = ({identifier - 1 for identifier in some} for some in pair)
            self._table = pair, self._calculator.table(registered, active)
        return self._table[1]

    def packet(self, connection: Connection) -> int:
        """Return the target that a packet reaches; 0: it waits."""
        known = self._remembered.get(connection)
        if known is not None and known in self.guard.tables[STREAM][1]:
            return known if self._forwards(known) else 0
        index = self.table()[connection.number % SLOTS]
        target = 0 if index == NO_TARGET else index + 1
        if self.mode == "off" or connection.home:
            return target if target and self._forwards(target) else 0
        if not target or not self._forwards(target):
            healthy = sorted(i for i in self.guard.states() if self._forwards(i))
            target = healthy[number_of("choice", connection.number) % len(healthy)] if healthy else 0
            self._remembered[connection] = target
        elif self.mode == "all" or self._in_incident():
            self._remembered[connection] = target
        return target

    def _forwards(self, identifier: int) -> bool:
        return self.guard.states().get(identifier) in (TargetState.ACTIVE, TargetState.DRAINING)

    def _in_incident(self) -> bool:
        return any(state != TargetState.ACTIVE for state in self.guard.states().values())


@dataclass(slots=True)
class Fleet:
    """All load balancers, the router, and the connections through them."""

    mode: str
    router: str
    lists: dict[int, tuple[int, ...]] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    balancers: dict[int, Balancer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        everyone = tuple(range(1, TARGETS + 1))
        for name in range(BALANCERS):
            self.balancers[name] = Balancer(self.mode, targets=self.lists.get(name, everyone))
        self.begin(CONNECTIONS)

    def begin(self, count: int) -> None:
        """Open so many connections."""
        for _ in range(count):
            connection = Connection(number_of("connection", len(self.connections)))
            self.connections.append(connection)
            self._send(connection)

    def all_send(self) -> None:
        """Each connection sends a packet."""
        for connection in self.connections:
            self._send(connection)

    def wait(self, seconds: int, *, born: int = BORN_PER_SECOND) -> None:
        """Let time pass; each second, connections begin, and all send."""
        for _ in range(seconds):
            for balancer in self.balancers.values():
                balancer.guard.wait(1.0)
            self.begin(born)
            self.all_send()

    def lose(self, name: int) -> None:
        """A load balancer is gone, with what it remembers."""
        del self.balancers[name]
        self.all_send()

    def join(self, name: int) -> None:
        """A load balancer is there again; it remembers nothing."""
        self.balancers[name] = Balancer(self.mode, targets=range(1, TARGETS + 1))
        self.all_send()

    def cut(self, name: int, link: int = 1) -> None:
        """A link of one load balancer is lost, with every third target behind it."""
        self.balancers[name].guard.unlink(link)

    def heal(self, name: int, link: int = 1) -> None:
        """The link is back."""
        self.balancers[name].guard.link(link, proxy=link - 1)

    @property
    def moved(self) -> int:
        """The number of connections that another target reset."""
        return sum(connection.moved for connection in self.connections)

    def _send(self, connection: Connection) -> None:
        if connection.moved:
            return
        target = self._balancer_of(connection).packet(connection)
        if target and not connection.home:
            connection.home = target
        connection.moved = bool(target) and target != connection.home

    def _balancer_of(self, connection: Connection) -> Balancer:
        names = sorted(self.balancers)
        if self.router == "modulo":
            return self.balancers[names[number_of("path", connection.number) % len(names)]]
        return self.balancers[max(names, key=lambda name: number_of("path", name, connection.number))]


def one_is_lost(fleet: Fleet) -> None:
    """One load balancer is lost and comes back"""
    fleet.lose(0)
    fleet.wait(2)
    fleet.join(0)
    fleet.wait(2)


def short_incident(fleet: Fleet) -> None:
    """A link of one load balancer is away for 2 s, within the window"""
    fleet.cut(1)
    fleet.wait(2)
    fleet.heal(1)
    fleet.wait(4)


def long_incident(fleet: Fleet) -> None:
    """A link of one load balancer is away for 10 s"""
    fleet.cut(1)
    fleet.wait(10)
    fleet.heal(1)
    fleet.wait(4)


def lost_beside_an_incident(fleet: Fleet) -> None:
    """A link of one is away for good, and another load balancer is lost"""
    fleet.cut(1)
    fleet.wait(6)
    before = fleet.moved
    fleet.lose(0)
    fleet.wait(2)
    assert fleet.moved >= before


def lost_after_an_incident(fleet: Fleet) -> None:
    """A link of one was away for 10 s, and that load balancer is lost"""
    long_incident(fleet)
    fleet.lose(1)
    fleet.wait(2)


def other_list(fleet: Fleet) -> None:
    """One load balancer knows a target less, and another one is lost"""
    fleet.lose(0)
    fleet.wait(2)


SCENARIOS: dict[Callable[[Fleet], None], dict[int, tuple[int, ...]]] = {
    one_is_lost: {},
    short_incident: {},
    long_incident: {},
    lost_beside_an_incident: {},
    lost_after_an_incident: {},
    other_list: {2: tuple(range(1, TARGETS))},
}
"""The scenarios, and the lists of load balancers that differ."""


def rows() -> Iterator[tuple[str, str, list[int], int]]:
    """Play everything; yield scenario, router, moved connections by mode, and all connections."""
    for scenario, lists in SCENARIOS.items():
        for router in ROUTERS:
            moved, total = [], 0
            for mode in MODES:
                fleet = Fleet(mode, router, lists)
                scenario(fleet)
                moved.append(fleet.moved)
                total = len(fleet.connections)
            yield (scenario.__doc__ or "").strip(), router, moved, total


def main() -> None:
    """Print the table of the documentation."""
    argparse.ArgumentParser(prog="python -m tests.sim.fleet", description=__doc__).parse_args()
    print("| What happens | Router | Connections | Moved, no affinity | `incident` | `all` |")
    print("|---|---|---|---|---|---|")
    for what, router, moved, total in rows():
        print(f"| {what} | {router} | {total} | {' | '.join(map(str, moved))} |", flush=True)


if __name__ == "__main__":
    main()
