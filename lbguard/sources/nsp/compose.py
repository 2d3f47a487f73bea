"""Composes the core's list from the registry's three lists, with hold-down of removals and the marks of streams. Pure.

While the registry stays connected, a removal applies at once: it is deliberate. After a lost connection, the peer may
be a registry that has just started and does not have all entries yet. Meridio's reads its configuration after it began
to serve, so its first list of streams is empty; and when its database is lost, targets return one by one as they
refresh their entries, by default every 30 s. Meridio's own load balancer applies each of these lists. lbguard does not:
the first list after a loss that lacks more than a share of the known entries starts a settle time. Until it ends, or
until no entry is missing any more, additions and changes apply and removals are delayed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lbguard.core.addr import Ip, Prefix
from lbguard.core.model import StreamSpec, TargetKey, TargetSpec
from lbguard.sources.flavour import Flavour
from lbguard.sources.hold_down import RemovalHoldDown
from lbguard.sources.nsp.lists import TargetEntries
from lbguard.sources.nsp.offsets import OffsetAllocator, is_possible
from lbguard.sources.skipped import Reason, Skipped


class SeenOffsets(Protocol):
    """Reads back the offsets in force. It must not block for long."""

    def __call__(
        self, streams: Mapping[str, int], targets: Mapping[str, Mapping[int, tuple[Ip, ...]]], known: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        """Return the offsets of the streams for which one is found; None: they are not known yet.

        Args:
            streams: room for targets by stream.
            targets: addresses by stream and identifier.
            known: offsets that were reported before, by stream. For these only certain evidence counts.
        """


class NspLists:
    """The three lists after their hold-down; see `RemovalHoldDown` for the times and the share."""

    def __init__(self, settle_s: float, settle_share: float) -> None:
        settle = (settle_s, settle_share)
        self._streams: RemovalHoldDown[str, int] = RemovalHoldDown(*settle, doubt_empty_start=True)
        self._vips: RemovalHoldDown[Prefix, None] = RemovalHoldDown(*settle)
        self._targets: RemovalHoldDown[TargetKey, tuple[Ip, ...]] = RemovalHoldDown(*settle)
        self._all = (self._streams, self._vips, self._targets)

    @property
    def streams(self) -> Mapping[str, int] | None:
        """Room for targets by stream."""
        return self._streams.believed

    @property
    def vips(self) -> Mapping[Prefix, None] | None:
        """VIPs of the trench."""
        return self._vips.believed

    @property
    def targets(self) -> Mapping[TargetKey, tuple[Ip, ...]] | None:
        """Addresses by target."""
        return self._targets.believed

    @property
    def waits(self) -> int:
        """Return the number of delayed removals."""
        return sum(each.waits for each in self._all)

    @property
    def settles_at(self) -> float | None:
        """Return when the next hold-down ends; None when none runs."""
        return min((each.settles_at for each in self._all if each.settles_at is not None), default=None)

    def begin_session(self) -> None:
        """Record that the connection is a new one."""
        for each in self._all:
            each.begin_session()

    def expire(self, now: float) -> None:
        """Apply the removals whose delay has ended."""
        for each in self._all:
            each.expire(now)

    def apply_streams(self, streams: Mapping[str, int], now: float) -> None:
        """Apply a list of streams."""
        self._streams.apply(streams, now)

    def apply_vips(self, vips: Mapping[Prefix, None], now: float) -> None:
        """Apply a list of VIPs."""
        self._vips.apply(vips, now)

    def apply_targets(self, entries: TargetEntries, now: float) -> None:
        """Apply a list of targets."""
        served = dict(entries.served)
        # An unreadable entry shows only that the target is listed: its known state stays.
        for key, ips in (self._targets.believed or {}).items():
            if key not in served and (key in entries.unreadable_keys or (key.stream, ips) in entries.unreadable_ips):
                served[key] = ips
        self._targets.apply(served, now)
        # A target that returns with another identifier is not kept under the old one.
        listed_ips = {(key.stream, ip) for key, ips in served.items() for ip in ips}
        for key, ips in list((self._targets.believed or {}).items()):
            if key not in served and any((key.stream, ip) in listed_ips for ip in ips):
                self._targets.drop(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The core's list; `moved` names its streams whose marks have changed."""

    streams: tuple[StreamSpec, ...]
    moved: frozenset[str] = frozenset()
    skipped: tuple[Skipped, ...] = ()


class Composer:
    """Composes the core's list from the three lists."""

    def __init__(self, offset_start: int, seen_offsets: SeenOffsets | None, *, follow: bool) -> None:
        self._book = OffsetAllocator(offset_start)
        self._seen_offsets = seen_offsets
        self._follow = follow

    @property
    def reads_back(self) -> bool:
        """Return whether offsets that other programs may change are read back."""
        return self._seen_offsets is not None

    def compose(
        self, streams: Mapping[str, int], vips: Mapping[Prefix, None], targets: Mapping[TargetKey, tuple[Ip, ...]]
    ) -> Composed | None:
        """Compose the list from the registry's three; None: offsets in force cannot be read back yet."""
        by_stream: dict[str, dict[int, tuple[Ip, ...]]] = {name: {} for name in streams}
        for key, ips in targets.items():
            if key.stream in by_stream:
                by_stream[key.stream][key.identifier] = ips
        skipped: list[Skipped] = []
        seen = self._read_back(streams, by_stream)
        if seen is None:
            return None
        moved = self._moved(seen, skipped)
        assigned = self._book.assign(streams, seen)
        skipped += [Skipped(Reason.NO_MARKS_LEFT, f"stream {name}") for name in assigned.without]
        specs = []
        for name, room in streams.items():
            taken = assigned.ranges.get(name)
            if taken is None:
                continue
            if taken.size != room:
                # The size of a table is fixed when it is made; Meridio's own load balancer ignores later changes too.
                skipped.append(Skipped(Reason.SIZE_CHANGED, f"stream {name}: max_targets stays {taken.size}"))
            fitting = []
            for identifier, ips in sorted(by_stream[name].items()):
                if 1 <= identifier <= taken.size:
                    fitting.append(TargetSpec(identifier=identifier, ips=ips))
                else:
                    skipped.append(Skipped(Reason.IDENTIFIER_OUT_OF_RANGE, f"target {identifier} of stream {name}"))
            specs.append(
                StreamSpec(
                    name=name,
                    max_targets=taken.size,
                    identifier_offset=taken.offset,
                    vips=tuple(vips),
                    shm_name=Flavour.MERIDIO.memory(name),
                    targets=tuple(fitting),
                )
            )
        return Composed(streams=tuple(specs), moved=moved, skipped=tuple(skipped))

    def _read_back(
        self, streams: Mapping[str, int], targets: Mapping[str, Mapping[int, tuple[Ip, ...]]]
    ) -> Mapping[str, int] | None:
        known = {name: taken.offset for name in streams if (taken := self._book.get(name)) is not None}
        seen = self._seen_offsets(streams, targets, known) if self._seen_offsets is not None else {}
        if seen is None:
            return None
        return {name: offset for name, offset in seen.items() if is_possible(offset, streams[name])}

    def _moved(self, seen: Mapping[str, int], skipped: list[Skipped]) -> frozenset[str]:
        """Return the streams whose reported offset differs from the one in force, which they have to follow."""
        moved = set()
        for name, offset in seen.items():
            known = self._book.get(name)
            if known is not None and known.offset != offset:
                skipped.append(Skipped(Reason.MARKS_CHANGED, f"stream {name}: offset {offset}, listed {known.offset}"))
                if self._follow:
                    self._book.forget(name)
                    moved.add(name)
        return frozenset(moved)
