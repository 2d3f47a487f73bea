"""Effects: the engine's outputs, as immutable values. Each is idempotent: it may be carried out twice."""

from dataclasses import dataclass

from lbguard.core.addr import Ip
from lbguard.core.model import (
    Decision,
    LinkKey,
    ParkingLane,
    Route,
    Rule,
    StreamSpec,
    StreamSteering,
    StreamTable,
    TargetKey,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Announce the link-layer address of these addresses on the segment (gratuitous ARP, unsolicited NA)."""

    link: LinkKey
    ifname: str
    mac: bytes
    addresses: tuple[Ip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRoutes:
    """Add, replace and delete routes, in this order.

    `add`: we have no such route, and one that another program added since must stay (the kernel then refuses).
    `replace`: the existing route is ours.
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
    """Delete exactly these neighbour entries (ifindex, address); absent ones are ignored."""

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
    """Set the neighbour timers and `arp_notify` of a link that faces targets."""

    link: LinkKey
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLinkDown:
    """Set a superseded link down, once, if nothing but its subnets needs it (answered by LinkSetDown)."""

    link: LinkKey
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLinkUp:
    """Set a link up that was set down as superseded, and restore the addresses that it lost."""

    link: LinkKey
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachStream:
    """Make a stream's table ready and read its active identifiers (answered by DistributorSeen or CommitFailed)."""

    stream: StreamSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitTables:
    """Bring the distributor's tables to these states, all streams of one decision together."""

    tables: tuple[StreamTable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetStream:
    """Remove and forget a stream that left the source and whose table is empty."""

    stream: StreamSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneStreams:
    """Remove an earlier run's leftovers of unknown streams in the distributor (answered by StreamsPruned)."""

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
class ParkPackets:
    """Treat the packets of these lanes so from now on. Packets of a lane that was never named are dropped."""

    lanes: tuple[ParkingLane, ...]


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
    """A verdict was applied (empty reason) or dropped for a named reason.

    `generation`: for a late verdict, the latest generation received from its reporter on its subject.
    """

    ticket: int
    reason: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideAnswered:
    """A request of an operator was carried out, or refused as a whole.

    `refused`: a named reason (`manual.py`); empty: it was carried out. `concerns`: the names of the streams or targets
    that the refusal is about. `changed`: the targets whose override is another one now.
    """

    ticket: int
    refused: str = ""
    concerns: tuple[str, ...] = ()
    changed: tuple[TargetKey, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """Events had no effect, for a named reason (a bounded set: it becomes a metric label)."""

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
    | ParkPackets
    | NeighborMoved
    | Record
    | VerdictAnswered
    | OverrideAnswered
    | Ignored
)
