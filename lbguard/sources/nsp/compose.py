"""Composes the core's list from the registry's three lists, with hold-down of removals and the marks of streams. Pure.

While the registry stays connected, a removal applies at once: it is deliberate. After a lost connection, the peer may
be a registry that has just started and does not have all entries yet. Meridio's reads its configuration after it began
to serve, so its first list of streams is empty; and when its database is lost, targets return one by one as they
refresh their entries, by default every 30 s. Meridio's own load balancer applies each of these lists. lbguard does not:
the first list after a loss that lacks more than a share of the known entries starts a settle time. Until it ends, or
until no entry is missing any more, additions and changes apply and removals are delayed.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lbguard.core.addr import Ip, Prefix
from lbguard.core.model import StreamSpec, TargetKey, TargetSpec
from lbguard.sources.nsp.lists import Reason, Skipped, TargetEntries
from lbguard.sources.nsp.offsets import OffsetAllocator, is_possible

_LATE_S = 1.0
"""A caller that is so late after the end of a settle time was stopped or blocked, and reads waiting lists first."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RemovalHoldDown(Generic[Key, Value]):
    """One list, with delayed removals. Times are seconds of one monotonic clock.

    Args:
        settle_s: how long removals wait after a loss.
        share: the share (0 to 1) of known entries that may be missing at once without a delay.
        doubt_empty_start: delay an empty list too when nothing was known before.
    """

    def __init__(self, settle_s: float, share: float, *, doubt_empty_start: bool = False) -> None:
        self._settle_s = settle_s
        self._share = share
        self._doubt_empty_start = doubt_empty_start
        self._listed: Mapping[Key, Value] | None = None
        self._believed: dict[Key, Value] | None = None
        self._first_of_session = True
        self._until: float | None = None

    @property
    def believed(self) -> dict[Key, Value] | None:
        """Return the list in force; None while there is none."""
        return self._believed

    @property
    def waits(self) -> int:
        """Return the number of delayed removals."""
        if self._until is None:
            return 0
        return len((self._believed or {}).keys() - (self._listed or {}).keys())

    @property
    def settles_at(self) -> float | None:
        """Return when the hold-down ends; None when none runs."""
        return self._until

    def begin_session(self) -> None:
        """Record that the connection is a new one."""
        self._first_of_session = True

    def apply(self, listed: Mapping[Key, Value], now: float) -> None:
        """Apply a list."""
        first, self._first_of_session = self._first_of_session, False
        self._listed = listed
        missing = len((self._believed or {}).keys() - listed.keys())
        if first:
            self._until = now + self._settle_s if self._is_doubtful(listed, missing) else None
        elif not missing and (listed or self._believed is not None):
            self._until = None
        self._settle(now)

    def expire(self, now: float) -> None:
        """Apply the delayed list when its time has come."""
        if self._listed is not None:
            self._settle(now)

    def drop(self, key: Key) -> None:
        """Apply one removal without further delay."""
        if self._believed is not None and self._listed is not None and key not in self._listed:
            self._believed.pop(key, None)

    def _is_doubtful(self, listed: Mapping[Key, Value], missing: int) -> bool:
        if self._believed is None:
            return self._doubt_empty_start and not listed
        return bool(missing) and (not listed or missing > self._share * len(self._believed))

    def _settle(self, now: float) -> None:
        assert self._listed is not None
        if self._until is not None and now > self._until + _LATE_S:
            self._until = now + _LATE_S
        if self._until is not None and now < self._until:
            if self._believed is not None:
                self._believed = {**self._listed, **{k: v for k, v in self._believed.items() if k not in self._listed}}
            return
        self._until = None
        self._believed = dict(self._listed)


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
                    shm_name=f"tshm-{name}",
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
