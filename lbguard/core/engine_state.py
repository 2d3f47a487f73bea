"""State of the engine, and the queries that code outside of the core may use.

Code outside of the core does not read the engine's parts. It calls a method of `EngineState`, which returns values that
later events do not change.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lbguard.core import events as ev
from lbguard.core.addr import Ip, Prefix
from lbguard.core.affinity import Affinity
from lbguard.core.commits import Availability
from lbguard.core.config import EngineConfig
from lbguard.core.events import Event
from lbguard.core.kernel_tables import KernelTables
from lbguard.core.lifecycle import Lifecycle
from lbguard.core.link import Address, Link
from lbguard.core.manual import ManualControl
from lbguard.core.model import Condition, LinkKey, Override, Route, StreamSpec, TargetKey, TargetState
from lbguard.core.netview import NetView
from lbguard.core.observation import Observation
from lbguard.core.parking import Parking
from lbguard.core.path_repair import PathRepair
from lbguard.core.state import Stream, Target
from lbguard.core.status import GuardStatus, Prediction
from lbguard.core.status_view import build_status, predict, status_in_parts
from lbguard.core.stream_registry import StreamRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class PathView:
    """A path of a target at one moment; the fields are those of `state.Path`."""

    condition: Condition
    lb_ip: Ip
    withdrawn: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetView:
    """A target at one moment; the fields are those of `state.Target`."""

    key: TargetKey
    mark: int
    state: TargetState
    since: float
    lost_at: float
    lost_to: Condition
    open_ended: bool
    waiting: bool
    pardoned_until: float
    draining: bool
    unlisted: bool
    override: Override | None
    paths: Mapping[Ip, PathView]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamView:
    """A stream at one moment.

    `adopted`: its table in the distributor was read. `removed`: the source no longer lists it. `admitted`, `broken`:
    the number of such targets. `active`: the identifiers that are active in the distributor, None before the read-back.
    `learns`: a change of the registered targets waits, so that the flows are seen which it would move.
    """

    spec: StreamSpec
    adopted: bool
    removed: bool
    admitted: int
    broken: int
    active: frozenset[int] | None
    learns: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """A link at one moment, with whether each of its addresses is usable."""

    ifindex: int
    name: str
    up: bool
    mac: bytes
    addresses: tuple[tuple[Address, bool], ...]


class EngineState:
    """The engine's state. The methods only read."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.sync_reason = "starting"
        self.source_reason = "starting"
        self.view = NetView(excluded_links=config.excluded_links, failures_needed=config.neighbor_failures_needed)
        self.tables = KernelTables()
        self.paths = PathRepair(config, self.view, self.tables)
        self.life = Lifecycle(config, self.paths.evidence)
        self.manual = ManualControl(config, self.life, self.seen_until)
        self.stream_registry = StreamRegistry(config, self.view, self.paths, self.life, self.manual)
        self.availability = Availability(config.availability_grace_s)
        self.observation = Observation(self.stream_registry.streams, self.life, self.availability)
        self.affinity = Affinity()
        self.parking = Parking()
        self.snapshot_seen = False
        self.source_read = False

    @property
    def in_sync(self) -> bool:
        """Return whether the view of the kernel is complete and current. While it is not, no target is withdrawn."""
        return not self.sync_reason

    @property
    def running(self) -> bool:
        """Return whether the first full view and the first list have come."""
        return self.snapshot_seen and self.source_read

    # The whole state

    def status(self, now: float) -> GuardStatus:
        """Return the whole state, built in one call."""
        return build_status(self, now)

    def status_in_parts(self, now: float) -> Iterator[GuardStatus | None]:
        """Build the whole state a few targets at a time: yield None after each part, and the state last."""
        return status_in_parts(self, now)

    def summary(self, now: float) -> GuardStatus:
        """Return the state without targets and links: cheap enough to be called every second."""
        return build_status(self, now, detail=False)

    def predictions(self, now: float) -> dict[TargetKey, Prediction]:
        """Return the next action for every target with a pending deadline, if nothing changes."""
        held_up = "" if self.in_sync else f"the view of the kernel is not in sync ({self.sync_reason})"
        streams = self.stream_registry.streams.values()
        return predict(self.config, self.life, streams, now, held_up, self.observation.acts_at)

    # For a later run, or another engine

    def open_holds(self, now: float) -> tuple[ev.OpenHold, ...]:
        """Return the holds that a later run continues if this one ends now."""
        streams = self.stream_registry.streams.values()
        return self.life.holds.memory.open_holds(streams, self.life.deadlines, self.seen_until(now), now)

    def seen_until(self, now: float) -> float:
        """Return the moment up to which the kernel's state is known: now, or when the view was lost."""
        return now if self.in_sync else self.observation.blind_since

    def open_drains(self, now: float) -> tuple[ev.OpenDrain, ...]:
        """Return the drains of targets that are not listed any more, which a later run continues if this one ends."""
        return tuple(
            ev.OpenDrain(
                stream=key.stream, identifier=key.identifier, ips=tuple(target.paths), left_s=max(0.0, until - now)
            )
            for until, key in self.life.drains.in_order()
            if (target := self.stream_registry.target(key)) is not None
        )

    def open_overrides(self, now: float) -> tuple[ev.OpenOverride, ...]:
        """Return the overrides of operators that a later run continues if this one ends."""
        return self.manual.open_overrides(now)

    def overrides(self) -> dict[TargetKey, Override]:
        """Return the overrides in force, also of targets that are not listed at present."""
        return self.manual.in_force()

    def subnets_to_remember(self) -> tuple[Prefix, ...]:
        """Return the subnets of targets for which a later run must not use a wider subnet."""
        return self.view.subnets_to_remember()

    def as_events(self) -> list[Event]:
        """Return events that give another engine this one's view of kernel, source and distributor.

        The engine's own memory (penalties, running deadlines, verdicts) is not included: a running hold begins again.
        """
        links = self.view.links.values()
        streams = [stream for stream in self.streams() if not stream.removed]
        return [
            ev.KernelSnapshot(
                links=tuple(
                    ev.LinkSeen(ifindex=link.ifindex, name=link.name, up=link.up, mac=link.mac, admin_up=link.admin_up)
                    for link in links
                ),
                addresses=tuple(
                    ev.AddressSeen(ifindex=link.ifindex, ip=ip, prefix_length=length, usable=usable, peer=network)
                    for link in links
                    for (ip, (network, length)), usable in link.addresses.items()
                ),
                neighbors=tuple(
                    ev.NeighborSeen(ifindex=link.ifindex, ip=ip, state=neighbor.state, mac=neighbor.mac)
                    for link in links
                    for ip, neighbor in link.neighbors.items()
                ),
                routes=tuple(self.routes()),
                rules=tuple(self.tables.rules.actual.values()),
                link_routes=tuple(
                    ev.LinkRouteSeen(ifindex=link.ifindex, prefix=prefix) for link in links for prefix in link.routes
                ),
            ),
            ev.SourceSnapshot(streams=tuple(stream.spec for stream in streams)),
            *(
                ev.DistributorSeen(stream=stream.spec.name, active=stream.active)
                for stream in streams
                if stream.active is not None
            ),
        ]

    # Streams and targets

    def stream_names(self) -> tuple[str, ...]:
        """Return the names of all streams, including those being removed."""
        return tuple(self.stream_registry.streams)

    def streams(self) -> list[StreamView]:
        """Return all streams, including those being removed."""
        return [_stream_view(stream) for stream in self.stream_registry.streams.values()]

    def stream(self, name: str) -> StreamView | None:
        """Return a stream by its name."""
        stream = self.stream_registry.streams.get(name)
        return _stream_view(stream) if stream else None

    def available(self, stream: str) -> bool | None:
        """Return whether a stream is reported as available; None before it was reported."""
        return self.availability.get(stream)[0]

    def target(self, key: TargetKey) -> TargetView | None:
        """Return a target by its key."""
        target = self.stream_registry.target(key)
        return _target_view(target) if target else None

    def targets(self) -> list[TargetView]:
        """Return all targets of all streams."""
        return [_target_view(target) for target in self.stream_registry.by_mark.values()]

    def target_by_mark(self, mark: int) -> TargetKey | None:
        """Return the target of a mark."""
        target = self.stream_registry.by_mark.get(mark)
        return target.key if target else None

    def keys_by_mark(self) -> dict[int, TargetKey]:
        """Return all targets by their marks."""
        return {mark: target.key for mark, target in self.stream_registry.by_mark.items()}

    def suspected_marks(self) -> list[int]:
        """Return the marks of the targets that are not active: no path of theirs may forward.

        Costs only the streams that have such targets.
        """
        return [
            target.mark
            for stream in self.stream_registry.streams.values()
            if stream.counts[TargetState.ACTIVE] < len(stream.targets)
            for target in stream.targets.values()
            if target.state is not TargetState.ACTIVE
        ]

    def next_target_deadline(self) -> float | None:
        """Return the next deadline of a target; None while out of sync, when no deadline has an effect."""
        return self.life.deadlines.next() if self.in_sync else None

    # The kernel

    def links(self) -> list[LinkView]:
        """Return all links that are not excluded."""
        return [_link_view(link) for link in self.view.links.values()]

    def links_facing_targets(self) -> list[LinkView]:
        """Return the links with a subnet that holds an address of a target."""
        return [_link_view(link) for link in self.view.links.values() if self.view.faces_targets(link)]

    def routes(self) -> list[Route]:
        """Return the routes that the kernel holds in the tables of marks."""
        return list(self.tables.routes.actual.values())

    def follows(self, ip: Ip) -> bool:
        """Return whether an address is a target's."""
        return self.view.follows(ip)

    def holds_address(self, link: LinkKey, ip: Ip) -> bool:
        """Return whether this incarnation of a link is up and has a usable address at this moment."""
        return self.view.holds(link, ip)

    def foreign_neighbor(self, ifindex: int, ip: Ip) -> bool:
        """Return whether a link's neighbour entry of an address was made by another program."""
        return self.view.foreign_neighbor(ifindex, ip)

    def owner_of(self, ip: Ip) -> int | None:
        """Return the ifindex of the link through which a followed address is reached; None when there is none."""
        link = self.view.locate(ip)[0]
        return link.ifindex if link else None


def _stream_view(stream: Stream) -> StreamView:
    return StreamView(
        spec=stream.spec,
        adopted=stream.adopted,
        removed=stream.removed,
        admitted=stream.admitted,
        broken=stream.broken,
        active=stream.committed[1] if stream.committed else stream.active_seen,
        learns=stream.learn_until is not None,
    )


def _target_view(target: Target) -> TargetView:
    return TargetView(
        key=target.key,
        mark=target.mark,
        state=target.state,
        since=target.since,
        lost_at=target.lost_at,
        lost_to=target.lost_to,
        open_ended=target.open_ended,
        waiting=target.waiting,
        pardoned_until=target.pardoned_until,
        draining=target.draining,
        unlisted=target.unlisted,
        override=target.override,
        paths={
            ip: PathView(condition=path.condition, lb_ip=path.lb_ip, withdrawn=path.withdrawn)
            for ip, path in target.paths.items()
        },
    )


def _link_view(link: Link) -> LinkView:
    return LinkView(
        ifindex=link.ifindex, name=link.name, up=link.up, mac=link.mac, addresses=tuple(link.addresses.items())
    )
