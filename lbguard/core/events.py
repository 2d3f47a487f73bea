"""Events of the engine: immutable values. The kernel's come from the mirror, the others from adapters."""

from dataclasses import dataclass

from lbguard.core.addr import Ip, Prefix, prefix_of
from lbguard.core.model import Condition, LinkKey, NeighborState, Route, Rule, StreamSpec, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSeen:
    """A link exists with these attributes (created or changed). `up` means IFF_UP and carrier (IFF_LOWER_UP)."""

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
    """A link holds an address. `usable` is false while IPv6 duplicate detection runs or after it failed.

    `peer`: the address of the other end, where the address has one (ip-address(8)); the prefix is the peer's then.
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
    """The main table has another program's route without a gateway through a link: its prefix is on the link."""

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

    `foreign`: another program made the entry (static, learned by a control plane, managed), so the kernel did not
    learn it.
    """

    ifindex: int
    ip: Ip
    state: NeighborState
    mac: bytes = b""
    foreign: bool = False


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
    """A full, consistent view of the kernel: it replaces all that was known and declares the mirror in sync."""

    links: tuple[LinkSeen, ...] = ()
    addresses: tuple[AddressSeen, ...] = ()
    neighbors: tuple[NeighborSeen, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    link_routes: tuple[LinkRouteSeen, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOutOfSync:
    """The mirror lost messages (overrun) or could not dump: nothing is withdrawn until the next snapshot."""

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
    """Read-back of a stream's table in the distributor: the identifiers that are active in it."""

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
    """A commit did not take effect; the core tries again with backoff."""

    stream: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributorLost:
    """A stream's table was removed or replaced under us (nfqlb re-created its memory): apply it again."""

    stream: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsPruned:
    """Nothing is left in the distributor of streams that are not listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesProgrammed:
    """The kernel acknowledged these route changes (what exists now, what is deleted)."""

    added: tuple[Route, ...] = ()
    deleted: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFailed:
    """The kernel refused to program a route; the core tries again with backoff."""

    route: Route
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFailed:
    """The kernel refused to program a rule; the core tries again with backoff."""

    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSetDown:
    """A superseded link was set down as requested, or left up for a reason."""

    link: LinkKey
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSeen:
    """A link's counter of received packets, read from time to time."""

    ifindex: int
    rx_packets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictReported:
    """A reporter (by its authenticated name) gave a verdict; `ticket` finds the answer's way back to it."""

    reporter: str
    verdict: Verdict
    ticket: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborsOutdated:
    """The interfaces behind these target addresses were replaced or are gone: what the kernel holds of them is wrong.

    `new_mac`: the new link-layer address where it is known; an entry that holds it already is right.
    """

    ips: tuple[Ip, ...]
    new_mac: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """Nothing was looked at for `duration_s` up to now: the process was stopped, or its loop was held up."""

    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenHold:
    """A hold that has not ended: a target by its addresses too, and the cause of its loss.

    `broken_s`: how long the loss has been observed. `frozen_s`: how long of that it was frozen, None when it never was.
    `left_s`: how long it had to its deadline, which may rest on what a new run has yet to learn (a verdict HEALING).
    """

    stream: str
    identifier: int
    ips: tuple[Ip, ...]
    cause: Condition
    broken_s: float
    frozen_s: float | None = None
    left_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldsRemembered:
    """An earlier run left these holds open, and had lost these subnets. It comes before the first full view."""

    holds: tuple[OpenHold, ...]
    subnets: tuple[Prefix, ...] = ()


Event = (
    KernelChange
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
)
