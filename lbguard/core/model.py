"""Data model: streams, targets, links, routes, decisions and named reasons, as immutable values."""

import re
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

from lbguard.core.addr import Ip, Prefix


class TargetKey(NamedTuple):
    """A target by the name of its stream and its identifier."""

    stream: str
    identifier: int

    def __str__(self) -> str:
        return f"{self.stream}/{self.identifier}"


class LinkKey(NamedTuple):
    """One incarnation of a link. The kernel reuses ifindexes, so each has a generation."""

    ifindex: int
    generation: int

    def __str__(self) -> str:
        return f"{self.ifindex}#{self.generation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """A target as its source lists it: at most one IP per family. `draining`: it is to get no new flow."""

    identifier: int
    ips: tuple[Ip, ...]
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """One load-balanced service: a distributor table with room for `max_targets` targets.

    The identifiers of its targets begin at `first_identifier`: 1, or 0 as in Meridio-2. The fwmark of a target, which
    is also its route table, is `identifier_offset + identifier`. `shm_name` is the name of nfqlb's memory under
    /dev/shm. `vips` are the addresses that the embedded distributor matches.
    """

    name: str
    max_targets: int = 100
    identifier_offset: int = 5000
    vips: tuple[Prefix, ...] = ()
    shm_name: str = ""
    targets: tuple[TargetSpec, ...] = ()
    first_identifier: int = 1

    @property
    def identifiers(self) -> range:
        """The identifiers that its targets can have."""
        return range(self.first_identifier, self.first_identifier + self.max_targets)

    def index(self, identifier: int) -> int:
        """Return the index of a target in the distributor's table, from 0."""
        return identifier - self.first_identifier

    def mark(self, identifier: int) -> int:
        """Return the fwmark (and route table) of a target."""
        return self.identifier_offset + identifier


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTable:
    """Table of a stream in the distributor: the registered identifiers and the active ones among them.

    `stream` gives name, size and marks; its `targets` are not used.
    """

    stream: StreamSpec
    registered: frozenset[int]
    active: frozenset[int]


class TargetState(StrEnum):
    """The states of a target; `fsm.py` has the transitions."""

    PENDING = "pending"
    ACTIVE = "active"
    HELD = "held"
    FROZEN = "frozen"
    WITHDRAWN = "withdrawn"
    DRAINING = "draining"


ADMITTED = frozenset({TargetState.ACTIVE, TargetState.HELD, TargetState.FROZEN, TargetState.DRAINING})
"""The states in which a target is active in the distributor."""


class Condition(StrEnum):
    """The condition of a path. Every value but OK is a named reason; they are ordered from worst to mildest."""

    NO_LINK = "no_link"
    LINK_DOWN = "link_down"
    NO_ADDRESS = "no_address"
    ADDRESS_TENTATIVE = "address_tentative"
    ROUTE_MISSING = "route_missing"
    VERDICT_DOWN = "verdict_down"
    NEIGHBOR_FAILED = "neighbor_failed"
    OK = "ok"


SOFT = frozenset({Condition.NEIGHBOR_FAILED, Condition.VERDICT_DOWN})
"""Conditions based on soft evidence: other evidence may veto them, and they never empty a stream."""


class NeighborState(IntEnum):
    """States of a kernel neighbour entry (NUD_*, include/uapi/linux/neighbour.h)."""

    NONE = 0x00
    INCOMPLETE = 0x01
    REACHABLE = 0x02
    STALE = 0x04
    DELAY = 0x08
    PROBE = 0x10
    FAILED = 0x20
    NOARP = 0x40
    PERMANENT = 0x80


class RouteKind(IntEnum):
    """Route types that matter here (RTN_*, include/uapi/linux/rtnetlink.h)."""

    UNICAST = 1
    BLACKHOLE = 6


ROUTE_PROTOCOL = 152
"""The rtm_protocol / FRA_PROTOCOL number that marks routes and rules as ours."""

ROUTE_METRIC = 2048
"""Metric of our target routes: worse than the default of both families (0, 1024), so a foreign route wins."""

BLACKHOLE_METRIC = 4294967295
"""The worst metric: the kernel uses the fallback as soon as the target route is gone."""

PARKING_LINK = "lbguard-park"
"""The link of our own that leads the packets of a target without a path back to us; the core does not see it."""

PARKING_METRIC = BLACKHOLE_METRIC - 1
"""Metric of the routes to the parking link: the kernel uses them before the fallback."""

DIVERTING_METRIC = ROUTE_METRIC - 1023
"""Metric of the routes to the parking link that precede a target's own route, whose neighbour does not answer. It is
worse than the default of both families, as that of the target's own route is."""

PARKING_METRICS = frozenset({PARKING_METRIC, DIVERTING_METRIC})

RULE_PRIORITY = 3000
"""Priority of our fwmark rules: before the main table (32766)."""


class Route(NamedTuple):
    """A default route in a target's table. `gateway` and `oif` are set for UNICAST, empty and 0 for BLACKHOLE.

    Another program's route with several next hops, a next-hop object or another type is UNICAST with neither: only its
    table and metric matter.
    """

    table: int
    ipv4: bool
    kind: RouteKind
    metric: int
    gateway: Ip = b""
    oif: int = 0
    protocol: int = ROUTE_PROTOCOL


class Rule(NamedTuple):
    """`fwmark MARK lookup MARK` for one family."""

    mark: int
    ipv4: bool
    table: int
    priority: int = RULE_PRIORITY
    protocol: int = ROUTE_PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Observations of one path at the moment of a decision. `withdrawn`: its family was withdrawn alone."""

    ip: Ip
    condition: Condition
    ifname: str = ""
    ifindex: int = 0
    neighbor: str = ""
    detail: str = ""
    verdict: str = ""
    withdrawn: bool = False


class Action(StrEnum):
    """Effect of a decision on a target."""

    ADMIT = "admit"
    ADOPT = "adopt"
    HOLD = "hold"
    RECOVER = "recover"
    REVISE = "revise"
    FREEZE = "freeze"
    PARDON = "pardon"
    WITHDRAW = "withdraw"
    WITHDRAW_FAMILY = "withdraw_family"
    WAIT = "wait"
    RELAPSE = "relapse"
    READMIT = "readmit"
    DRAIN = "drain"
    RESUME = "resume"
    REMOVE = "remove"
    FORGET = "forget"
    STAY = "stay"
    OVERRIDE = "override"
    RELEASE = "release"
    KEEP = "keep"
    TAKE_OUT = "take_out"


class ManualAction(StrEnum):
    """Commands of an operator about a target. RELEASE ends the others."""

    DRAIN = "drain"
    HOLD = "hold"
    WITHDRAW = "withdraw"
    RELEASE = "release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Drain, hold or withdrawal of a target by an operator, with an end.

    `since`, `until`: when it was given and when it ends, seconds of the engine's clock. `who`: the operator, as the
    client names itself. `reason`: text of the operator.
    """

    action: ManualAction
    since: float
    until: float
    who: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision record: action, cause, time, deadline and evidence.

    `at` and `deadline` are seconds of the engine's clock (monotonic in the service); `duration_s` is how long the
    previous state lasted. `override`: the one in force, or the one that this decision ends.
    """

    sequence: int
    at: float
    target: TargetKey
    action: Action
    state_from: TargetState | None
    state_to: TargetState | None
    cause: str
    deadline: float | None = None
    duration_s: float | None = None
    evidence: tuple[Evidence, ...] = field(default=())
    override: Override | None = None


class VerdictState(StrEnum):
    """State that a reporter claims for a subject. ENDED: the subject is gone, and its generation no longer counts."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    HEALING = "healing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSubject:
    """A link, by the addresses of its two ends, both of one family."""

    lb_ip: Ip
    proxy_ip: Ip


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSubject:
    """A target, by its own address."""

    ip: Ip


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSubject:
    """A connection of the mesh. Its identity is the id alone; the addresses are the current ones."""

    id: str
    lb_ips: tuple[Ip, ...] = field(default=(), compare=False)
    peer_ips: tuple[Ip, ...] = field(default=(), compare=False)


Subject = LinkSubject | TargetSubject | ConnectionSubject


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyEvidence:
    """Measurement of one family in a reporter's last round. Times in seconds; `rtt_*` 0: no reply."""

    ipv4: bool
    sent: int
    received: int
    rtt_min_s: float = 0.0
    rtt_median_s: float = 0.0
    rtt_max_s: float = 0.0
    since_reply_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One verdict of one reporter, as received. `lease_s`: how long it counts; `heal_s`: how long HEALING may take."""

    subject: Subject
    state: VerdictState
    generation: int
    sequence: int
    lease_s: float
    heal_s: float = 0.0
    evidence: tuple[FamilyEvidence, ...] = ()
    new_mac: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySteering:
    """Targets of a stream in one family, by their fwmarks in ascending order.

    `healthy`: new flows may be given to them in place of a target that is cut off. `avoid`: get no new flow.
    `served`: flows of this family stay with them; a flow of any other target falls back to the table.
    """

    healthy: tuple[int, ...] = ()
    avoid: tuple[int, ...] = ()
    served: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSteering:
    """Flow affinity of one stream.

    `marks`: every registered target. `learning`: new flows are remembered, because a registered target is not active or
    the table is to change. `observing`: flows that began before are remembered too when a packet of them is seen,
    because a change of the registered targets is about to move some of them. `draining`: targets that the source no
    longer lists; whether they still get packets is counted.
    """

    stream: str
    marks: tuple[int, ...]
    ipv4: FamilySteering
    ipv6: FamilySteering
    learning: bool
    observing: bool = False
    draining: tuple[int, ...] = ()


class ParkingMode(StrEnum):
    """Treatment of the packets of one family of a target that meet the parking link."""

    KEEP = "keep"
    GIVE_BACK = "give_back"
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkingLane:
    """Packets of one family of a target, which is named by its fwmark.

    `term`: packets that were kept in an earlier term must not reach the target any more, for the named `reason`, by
    which that term ended.
    `divert`: the target's own route exists and does not lead to it, so its packets must be kept from that route.
    """

    mark: int
    ipv4: bool
    mode: ParkingMode
    term: int
    reason: str = ""
    divert: bool = False


NAME_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""Stream and memory names: they become file names, table names and metric labels."""

RESERVED_TABLES = range(253, 256)
"""Route tables default, main and local (/etc/iproute2/rt_tables); table 0 is `unspecified`."""

MAX_MARK = 2**32 - 1
DEFAULT_OFFSET = 5000
MAX_TARGETS = 1_000_000
