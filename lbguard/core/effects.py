"""Effects of the engine. Each is idempotent: the shell may carry one out twice without harm."""

from dataclasses import dataclass

from lbguard.core.addr import Ip
from lbguard.core.model import Decision, LinkKey, Route, Rule, StreamSpec, StreamSteering, StreamTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Announce on the segment which link-layer address holds these addresses (gratuitous ARP, unsolicited NA)."""

    link: LinkKey
    ifname: str
    mac: bytes
    addresses: tuple[Ip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRoutes:
    """Add, replace and delete routes, in this order.

    `add`: nothing of ours stands there, and what somebody else put there since must stay (the kernel refuses then).
    `replace`: what stands there is ours.
    """

    add: tuple[Route, ...] = ()
    replace: tuple[Route, ...] = ()
    delete: tuple[Route, ...] = ()

    @property
    def put(self) -> tuple[Route, ...]:
        """The routes to add or replace, in order."""
        return self.add + self.replace


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRules:
    """Add and delete fwmark rules."""

    add: tuple[Rule, ...] = ()
    delete: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushNeighbors:
    """Delete exactly these neighbour entries (ifindex, address); absent ones are no error."""

    entries: tuple[tuple[int, Ip], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveNeighbors:
    """Make the kernel resolve these addresses now (NTF_USE)."""

    entries: tuple[tuple[int, Ip], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolicitNeighbors:
    """Solicit targets' link-layer addresses from our own: pairs of (our address on the link, target)."""

    link: LinkKey
    mac: bytes
    pairs: tuple[tuple[Ip, Ip], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeNeighbors:
    """Make the kernel verify these entries now (NUD_PROBE)."""

    entries: tuple[tuple[int, Ip], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneLink:
    """Set the neighbour timers of a link that faces targets."""

    link: LinkKey
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLinkDown:
    """Set a superseded link down, once, if nothing but its subnets needs it (answered by LinkSetDown)."""

    link: LinkKey
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLinkUp:
    """Set a link up that was set down as superseded, with the addresses that it lost by that: the reason is gone."""

    link: LinkKey
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachStream:
    """Make a stream's table ready and read back what is active in it (answered by DistributorSeen or CommitFailed)."""

    stream: StreamSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitTables:
    """Bring the distributor's tables to these states, all of a tick in one go."""

    tables: tuple[StreamTable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetStream:
    """A stream left the source and its table is empty: take it away and stop looking after it."""

    stream: StreamSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneStreams:
    """Remove what an earlier run left in the distributor for streams that are not known (answered by StreamsPruned)."""

    known: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAvailability:
    """Report whether this load balancer has a forwarding path for a stream."""

    stream: str
    available: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerFlows:
    """Make the flow affinity of these streams effective, and end that of the streams (by name) that are `gone`."""

    streams: tuple[StreamSteering, ...]
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborMoved:
    """A target's neighbour entry changed its link-layer address (for the metrics and explanations)."""

    ifindex: int
    ip: Ip
    old_mac: bytes
    new_mac: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Decision for the log, the metrics and explanations."""

    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictAnswered:
    """A verdict was taken (empty reason) or changed nothing, for a named reason.

    `generation`: when it came too late, the latest one received from its reporter on its subject.
    """

    ticket: int
    reason: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """Events changed nothing, for a named reason (a bounded set: it becomes a metric label)."""

    reason: str
    count: int = 1


Effect = (
    Announce
    | ProgramRoutes
    | ProgramRules
    | FlushNeighbors
    | ResolveNeighbors
    | SolicitNeighbors
    | ProbeNeighbors
    | TuneLink
    | SetLinkDown
    | SetLinkUp
    | AttachStream
    | CommitTables
    | ForgetStream
    | PruneStreams
    | SetAvailability
    | SteerFlows
    | NeighborMoved
    | Record
    | VerdictAnswered
    | Ignored
)
