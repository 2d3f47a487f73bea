"""A model of the kernel's flow affinity, packet by packet, over a distributor's tables and a kernel's routes.

It is the rules of `lbguard/affinity/ruleset.py` in the words of a program. What the kernel forgets by time is forgotten
here when somebody looks.
"""

from dataclasses import dataclass, field

from lbguard.core.model import ROUTE_METRIC, RouteKind, StreamSteering
from tests.sim.kernel import SimKernel
from tests.sim.tables import SLOTS, SimDistributor

CLOSING_S = 10.0
TRIES = 4


@dataclass(slots=True, eq=False)
class Flow:
    """One connection of a client.

    `home`: the mark of the target that answered its first packet, 0 before. `number`: what its packets are hashed by.
    `excused`: why it may go elsewhere, empty if for no reason but the fate of its own target.
    """

    number: int
    stream: str
    ipv4: bool
    udp: bool
    born: float
    home: int = 0
    closed: bool = False
    excused: str = ""


@dataclass(slots=True)
class Entry:
    """What is remembered of a flow."""

    mark: int
    until: float


@dataclass(slots=True)
class SimAffinity:
    """The table in the kernel. `streams`: what was carried out last; None: there is no table.

    `max_flows`: entries of the map. `idle_s`: an entry without packets lives so long. `seen`: when a mark got its last
    packet.
    """

    kernel: SimKernel
    distributor: SimDistributor
    max_flows: int
    idle_s: float
    every_flow: bool = False
    streams: dict[str, StreamSteering] | None = None
    entries: dict[Flow, Entry] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)
    drains_since: dict[int, float] = field(default_factory=dict)
    steered: int = 0
    orphaned: int = 0
    refused: int = 0

    def apply(self, streams: dict[str, StreamSteering]) -> None:
        """Bring the table to exactly these streams."""
        self.streams = dict(streams)

    def flush(self) -> None:
        """Somebody removes the table."""
        self.streams = None
        self.entries.clear()

    def forget_old(self, now: float) -> None:
        self.entries = {flow: entry for flow, entry in self.entries.items() if entry.until > now}

    def cut_off(self, mark: int, ipv4: bool) -> bool:
        """Tell whether a mark's table holds nothing but its blackhole."""
        route = self.kernel.routes.get((mark, ipv4, ROUTE_METRIC))
        return route is None or route.kind is RouteKind.BLACKHOLE

    def chosen(self, flow: Flow) -> int:
        """Return the mark that the distributor gives a flow; 0: none."""
        table = self.distributor.tables.get(flow.stream)
        identifier = table.slots[flow.number % SLOTS] if table else 0
        return table.spec.mark(identifier) if table and identifier else 0

    def packet(self, flow: Flow, now: float, *, begins: bool = False, ends: bool = False) -> int:
        """Return the mark that a packet leaves with; 0: it is dropped."""
        mark = self._packet(flow, now, begins=begins, ends=ends)
        self.seen[mark] = now
        return mark

    def idle(self, now: float, idle_s: float) -> tuple[int, ...]:
        """Return the draining marks that got no packet for a time, or since they drain if that is longer."""
        draining = {mark for each in (self.streams or {}).values() for mark in each.draining}
        self.drains_since = {mark: self.drains_since.get(mark, now) for mark in draining}
        last = {mark: max(since, self.seen.get(mark, since)) for mark, since in self.drains_since.items()}
        return tuple(sorted(mark for mark, at in last.items() if now >= at + idle_s))

    def _packet(self, flow: Flow, now: float, *, begins: bool, ends: bool) -> int:
        mark = self.chosen(flow)
        entry = self.entries.get(flow)
        if not mark or self.streams is None:
            return mark
        if begins or (flow.udp and entry is None):
            return self._begin(flow, mark, now)
        if entry is None:
            steering = self.steering_of(mark)
            if steering is not None and steering.observing:
                self._remember(flow, mark, now)
            return mark
        mark = entry.mark
        steering = self.steering_of(mark)
        family = None if steering is None else (steering.ipv4 if flow.ipv4 else steering.ipv6)
        if steering is None or family is None or (mark not in family.served and family.healthy):
            self.orphaned += 1
            del self.entries[flow]
            return 0 if steering is None else self._choose(steering, flow, mark)
        flow.closed = flow.closed or ends
        entry.until = now + (CLOSING_S if flow.closed else self.idle_s)
        return mark

    def steering_of(self, mark: int) -> StreamSteering | None:
        """Return the affinity of the stream that a mark belongs to."""
        return next((each for each in (self.streams or {}).values() if mark in each.marks), None)

    def _begin(self, flow: Flow, mark: int, now: float) -> int:
        entry = self.entries.get(flow)
        mark = entry.mark if entry else mark
        steering = self.steering_of(mark)
        if steering is None:
            return 0 if self.entries.pop(flow, None) else mark
        family = steering.ipv4 if flow.ipv4 else steering.ipv6
        if mark in family.served and not self.cut_off(mark, flow.ipv4):
            if mark not in family.avoid:
                if steering.learning or self.every_flow:
                    self._remember(flow, mark, now)
                return mark
            if not self._remember(flow, mark, now):
                return mark
        self.entries.pop(flow, None)
        chosen = self._choose(steering, flow, mark)
        self.steered += chosen != mark
        return chosen if self._remember(flow, chosen, now) else 0

    def _choose(self, steering: StreamSteering, flow: Flow, mark: int) -> int:
        healthy = (steering.ipv4 if flow.ipv4 else steering.ipv6).healthy
        for seed in range(TRIES):
            if healthy:
                mark = healthy[hash((flow.number, seed)) % len(healthy)]
            if not self.cut_off(mark, flow.ipv4):
                break
        return mark

    def _remember(self, flow: Flow, mark: int, now: float) -> bool:
        if flow not in self.entries and len(self.entries) >= self.max_flows:
            self.refused += 1
            return False
        self.entries.setdefault(flow, Entry(mark, 0.0)).until = now + self.idle_s
        return True
