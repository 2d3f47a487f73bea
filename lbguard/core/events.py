"""Events: the engine's inputs, as immutable values. Kernel events come from the mirror, the others from adapters."""

from dataclasses import dataclass

from lbguard.core.addr import Ip, Prefix, prefix_of
from lbguard.core.config import EngineConfig
from lbguard.core.model import (
    Condition,
    LinkKey,
    ManualAction,
    NeighborState,
    Route,
    Rule,
    StreamSpec,
    TargetKey,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSeen:
    """A link exists with these attributes (created or changed). `up`: IFF_UP and carrier (IFF_LOWER_UP) are set."""

    ifindex: int
    name: str
    up: bool
    mac: bytes
    admin_up: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkGone:
    """A link was deleted (or left the namespace)."""

    ifindex: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSeen:
    """A link holds an address. `usable` is false while IPv6 duplicate address detection runs or after it failed.

    `peer`: the address of the other end, if there is one (ip-address(8)); the prefix is then the peer's.
    """

    ifindex: int
    ip: Ip
    prefix_length: int
    usable: bool = True
    peer: Ip = b""

    @property
    def subnet(self) -> Prefix:
        """The prefix that the address puts on the link."""
        return prefix_of(self.peer or self.ip, self.prefix_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressGone:
    """A link lost an address."""

    ifindex: int
    ip: Ip
    prefix_length: int
    peer: Ip = b""

    @property
    def subnet(self) -> Prefix:
        """The prefix that the address put on the link."""
        return prefix_of(self.peer or self.ip, self.prefix_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRouteSeen:
    """The main table has another program's route without a gateway: its prefix is on the link."""

    ifindex: int
    prefix: Prefix
    metric: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRouteGone:
    """A route without a gateway was deleted."""

    ifindex: int
    prefix: Prefix
    metric: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborSeen:
    """The kernel holds a neighbour entry with this state; `mac` is empty while unresolved.

    `foreign`: another program created the entry (static, learned by a control plane, managed); the kernel did not learn
    it.
    """

    ifindex: int
    ip: Ip
    state: NeighborState
    mac: bytes = b""
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborsProbed:
    """The kernel was asked to verify these entries (ifindex, address). It is reported with parking only."""

    entries: tuple[tuple[int, Ip], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborGone:
    """The kernel dropped a neighbour entry."""

    ifindex: int
    ip: Ip


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSeen:
    """A default route exists in a target's table."""

    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteGone:
    """A default route of a target's table was deleted."""

    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSeen:
    """A fwmark rule exists."""

    rule: Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleGone:
    """A fwmark rule was deleted."""

    rule: Rule


KernelChange = (
    LinkSeen
    | LinkGone
    | AddressSeen
    | AddressGone
    | LinkRouteSeen
    | LinkRouteGone
    | NeighborSeen
    | NeighborGone
    | RouteSeen
    | RouteGone
    | RuleSeen
    | RuleGone
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSnapshot:
    """A full, consistent view of the kernel. It replaces the previous view; the mirror is in sync."""

    links: tuple[LinkSeen, ...] = ()
    addresses: tuple[AddressSeen, ...] = ()
    neighbors: tuple[NeighborSeen, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    link_routes: tuple[LinkRouteSeen, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOutOfSync:
    """The mirror lost messages (overrun) or a dump failed: no target is withdrawn until the next snapshot."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSnapshot:
    """The full list of streams and targets that should be served; it also ends an earlier SourceLost."""

    streams: tuple[StreamSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLost:
    """The source cannot be read: the last list stays in force."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributorSeen:
    """A stream's table was read back from the distributor: the identifiers that are active in it."""

    stream: str
    active: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitDone:
    """A table was committed: the distributor now holds exactly these active identifiers."""

    stream: str
    registered: frozenset[int]
    active: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFailed:
    """A commit failed; the core retries with backoff."""

    stream: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributorLost:
    """Another program removed or replaced a stream's table (nfqlb re-created its memory): it is committed again."""

    stream: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsPruned:
    """The distributor holds no tables of unlisted streams any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesProgrammed:
    """The kernel acknowledged these route changes: routes that exist now, and deleted ones."""

    added: tuple[Route, ...] = ()
    deleted: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFailed:
    """The kernel refused a route; the core retries with backoff."""

    route: Route
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFailed:
    """The kernel refused a rule; the core retries with backoff."""

    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSetDown:
    """A superseded link was set down as requested, or left up for a reason."""

    link: LinkKey
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSeen:
    """A reading of a link's counter of received packets."""

    ifindex: int
    rx_packets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictReported:
    """A reporter (by its authenticated name) gave a verdict; `ticket` identifies the waiting request."""

    reporter: str
    verdict: Verdict
    ticket: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborsOutdated:
    """The interfaces behind these target addresses were replaced or removed: the kernel's neighbour entries are wrong.

    `new_mac`: the new link-layer address where it is known; an entry with that address is correct.
    """

    ips: tuple[Ip, ...]
    new_mac: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """The loop did not run for `duration_s` up to now: the process was stopped, or the loop was blocked."""

    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenHold:
    """A hold that has not ended: the target with its addresses, and the cause of its loss.

    `broken_s`: the observed duration of the loss. `frozen_s`: the part of it spent frozen, None when it never was.
    `left_s`: the time left to its deadline, which may depend on evidence that a new run does not have yet (a verdict
    HEALING). `lost`: the addresses of the lost family, while the target is served by its other one; empty: it is lost
    as a whole. A family that was withdrawn alone has no time left.
    """

    stream: str
    identifier: int
    ips: tuple[Ip, ...]
    cause: Condition
    broken_s: float
    frozen_s: float | None = None
    left_s: float = 0.0
    lost: tuple[Ip, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDrain:
    """A drain that has not ended, of a target that the source no longer lists. `left_s`: the time left to its end."""

    stream: str
    identifier: int
    ips: tuple[Ip, ...]
    left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOverride:
    """An override that has not ended: the target with its addresses, who gave it and why.

    `age_s`: the time since it was given. `left_s`: the time left to its end.
    """

    stream: str
    identifier: int
    ips: tuple[Ip, ...]
    action: ManualAction
    age_s: float
    left_s: float
    who: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideRequested:
    """An operator drains, holds, withdraws or releases targets; `ticket` identifies the waiting request.

    `duration_s`: the time to the end. `force`: it may leave a stream without a target that gets new connections.
    """

    action: ManualAction
    targets: tuple[TargetKey, ...]
    duration_s: float = 0.0
    who: str = ""
    reason: str = ""
    force: bool = False
    ticket: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldsRemembered:
    """An earlier run left these holds, drains and overrides open, and had lost these subnets.

    This event precedes the first full view.
    """

    holds: tuple[OpenHold, ...]
    subnets: tuple[Prefix, ...] = ()
    drains: tuple[OpenDrain, ...] = ()
    overrides: tuple[OpenOverride, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsIdle:
    """Draining targets, by their marks, that got no packet for the time after which a drain ends."""

    marks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityReported:
    """The kernel has the rules of flow affinity, or (not `in_force`) refuses them. Until the first report it has."""

    in_force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChanged:
    """The configuration is another one from now on, in the fields that `EngineConfig.with_live` names."""

    config: EngineConfig


Event = (
    KernelChange
    | NeighborsProbed
    | KernelSnapshot
    | KernelOutOfSync
    | SourceSnapshot
    | SourceLost
    | DistributorSeen
    | CommitDone
    | CommitFailed
    | DistributorLost
    | StreamsPruned
    | RoutesProgrammed
    | RouteFailed
    | RuleFailed
    | LinkSetDown
    | TrafficSeen
    | VerdictReported
    | NeighborsOutdated
    | Stalled
    | HoldsRemembered
    | TargetsIdle
    | AffinityReported
    | OverrideRequested
    | SettingsChanged
)
