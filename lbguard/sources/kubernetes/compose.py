"""Composes the core's list from the objects of the API. Pure.

What was read of an object or endpoint stays while its newer version cannot be used. Unlike Meridio's registry, the API
server answers a list from its database, so what it does not list is gone, and a target that leaves a list leaves at
once. One removal is delayed: that of all targets of a stream together. It is the trace of an accident more often than
of a wish (an object that its controller deletes and makes again, a definition that is installed again), it breaks every
connection, and a delay costs little: lbguard watches the paths of the targets itself, and withdraws those that are
gone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lbguard.core.addr import Ip, Prefix, format_ip
from lbguard.core.model import DEFAULT_OFFSET, StreamSpec, TargetSpec
from lbguard.sources.flavour import Flavour
from lbguard.sources.hold_down import RemovalHoldDown
from lbguard.sources.kubernetes.endpoint_slices import merge
from lbguard.sources.kubernetes.identifiers import IdentifierAllocator, RememberedStream, RememberedTarget
from lbguard.sources.kubernetes.objects import BadObjectError, Endpoint, ObjectEntries, Read
from lbguard.sources.nsp.offsets import OffsetAllocator, is_possible
from lbguard.sources.skipped import Reason, Skipped, shown

Object = Mapping[str, Any]
Memory = Mapping[str, RememberedStream]
"""Marks and targets by stream, as a later run needs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsConfig:
    """The streams that objects give targets for. Times in seconds.

    `streams`: those that exist even without an object. `numbered`: the objects give identifiers, from 0, and nfqlb's
    memory has the name of the stream, as in Meridio-2. `settle_s`: how long the removal of all targets of a stream is
    delayed.
    """

    streams: tuple[str, ...] = ()
    numbered: bool = False
    max_targets: int = 100
    offset_start: int = DEFAULT_OFFSET
    vips: Mapping[str, tuple[Prefix, ...]] = field(default_factory=dict)
    settle_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The core's list, what of the objects is not in it, and what a later run has to know."""

    streams: tuple[StreamSpec, ...]
    skipped: tuple[Skipped, ...]
    memory: Memory


class Objects:
    """The objects of the API by name, as last read."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._entries: dict[str, ObjectEntries] = {}
        self._bad: dict[str, Skipped] = {}

    def replace(self, objects: Iterable[Object]) -> None:
        """Apply a full list."""
        names = {self.put(each) for each in objects}
        self._entries = {name: entries for name, entries in self._entries.items() if name in names}
        self._bad = {name: problem for name, problem in self._bad.items() if name in names}

    def put(self, raw: Object) -> str:
        """Apply a new version of one object, and return its name."""
        name = object_name(raw)
        self._bad.pop(name, None)
        try:
            entries = self._read(raw)
        except BadObjectError as error:
            self._bad[name] = Skipped(Reason.BAD_OBJECT, f"object {shown(name)}: {error}")
            return name
        if entries is None:
            self._entries.pop(name, None)
        else:
            self._entries[name] = _with_last_good(entries, self._entries.get(name))
        return name

    def remove(self, raw: Object) -> None:
        """Apply the deletion of an object."""
        name = object_name(raw)
        self._entries.pop(name, None)
        self._bad.pop(name, None)

    def by_stream(self) -> dict[str, dict[str, Endpoint]]:
        """Return the listed endpoints by stream and key."""
        listed: dict[str, list[Endpoint]] = {}
        for _, entries in sorted(self._entries.items()):
            listed.setdefault(entries.stream, []).extend(entries.endpoints)
        return {stream: merge(endpoints) for stream, endpoints in listed.items()}

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Return what could not be read."""
        return (*self._bad.values(), *(each for entries in self._entries.values() for each in entries.skipped))


def object_name(raw: Object) -> str:
    """Return the name of an object; empty when it has none."""
    metadata = raw.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


def _with_last_good(entries: ObjectEntries, last: ObjectEntries | None) -> ObjectEntries:
    """Return the content of an object with the last usable version of each endpoint that cannot be used now."""
    if last is None or last.stream != entries.stream:
        return entries
    kept = tuple(each for each in last.endpoints if each.key in entries.unreadable)
    return replace(entries, endpoints=entries.endpoints + kept)


class Composer:
    """Composes the list.

    Args:
        config: the streams.
        memory: of an earlier run. Its targets count as known, so that their loss is noticed.
    """

    def __init__(self, config: StreamsConfig, memory: Memory | None = None) -> None:
        self._config = config
        self._memory = dict(memory or {})
        self._offsets = OffsetAllocator(config.offset_start)
        self._listed: dict[str, dict[str, Endpoint]] = {}
        self._holds: dict[str, RemovalHoldDown[str, Endpoint]] = {}
        self._served: dict[str, dict[str, Endpoint]] = {}
        self._allocators: dict[str, IdentifierAllocator] = {}

    @property
    def waits(self) -> int:
        """Return the number of delayed removals."""
        return sum(hold.waits for hold in self._holds.values())

    @property
    def settles_at(self) -> float | None:
        """Return when the next delay ends; None when none runs."""
        return min((hold.settles_at for hold in self._holds.values() if hold.settles_at is not None), default=None)

    def remembered(self) -> dict[str, dict[str, Endpoint]]:
        """Return the endpoints of the earlier run, by stream and key; empty when there are none."""
        names = self._config.streams or tuple(self._memory)
        found = {name: self._remembered(name) for name in names}
        return {name: endpoints for name, endpoints in found.items() if endpoints}

    def compose(self, listed: Mapping[str, Mapping[str, Endpoint]], now: float, rest_s: float) -> Composed:
        """Compose the list from the endpoints by stream and key.

        Args:
            listed: the endpoints.
            now: seconds, monotonic.
            rest_s: how long the identifier of a target that left is not given to another one.
        """
        self._apply(listed, now)
        names = [*self._config.streams, *(name for name in self._holds if name not in self._config.streams)]
        sizes = dict.fromkeys(names, self._config.max_targets)
        seen = {
            name: kept.offset
            for name, kept in self._memory.items()
            if kept.size == self._config.max_targets and is_possible(kept.offset, kept.size)
        }
        assigned = self._offsets.assign(sizes, seen)
        skipped = [Skipped(Reason.NO_MARKS_LEFT, f"stream {name}") for name in assigned.without]
        specs = []
        for name, taken in ((name, assigned.ranges[name]) for name in names if name in assigned.ranges):
            spec = self._stream(name, taken.offset)
            served = self._serve(spec, skipped, now, rest_s)
            self._served[name] = served
            targets = (
                TargetSpec(identifier=each.identifier, ips=each.ips, draining=each.draining)
                for each in served.values()
                if each.identifier is not None
            )
            specs.append(replace(spec, targets=tuple(sorted(targets, key=lambda target: target.identifier))))
        self._memory = {spec.name: self._remember(spec) for spec in specs}
        return Composed(streams=tuple(specs), skipped=tuple(skipped), memory=dict(self._memory))

    def _apply(self, listed: Mapping[str, Mapping[str, Endpoint]], now: float) -> None:
        """Apply the lists of the streams, with the delay where one loses all its targets."""
        for name in dict.fromkeys((*self._config.streams, *sorted(listed), *self._holds, *sorted(self._memory))):
            known = name in self._config.streams or name in listed
            endpoints = dict(listed.get(name, {}))
            hold = self._holds.get(name)
            if hold is None:
                hold = RemovalHoldDown(self._config.settle_s, 1.0)
                remembered = self._remembered(name) if known or not self._config.streams else {}
                if not (known or remembered):
                    continue
                hold.apply(remembered, now)
                self._holds[name] = hold
                self._listed[name] = remembered
            if endpoints != self._listed[name]:
                if not endpoints and hold.settles_at is None:
                    hold.begin_session()  # only a first list is doubted
                hold.apply(endpoints, now)
                self._listed[name] = endpoints
            else:
                hold.expire(now)
            if not (known or hold.believed):
                for kept in (self._holds, self._listed, self._served, self._allocators):
                    kept.pop(name, None)

    def _remembered(self, name: str) -> dict[str, Endpoint]:
        """Return the endpoints of an earlier run."""
        kept = self._memory.get(name)
        if kept is None:
            return {}
        return {
            each.key: Endpoint(
                key=each.key, label=each.key, ips=each.ips, identifier=each.identifier, draining=each.draining
            )
            for each in kept.targets
        }

    def _stream(self, name: str, offset: int) -> StreamSpec:
        config = self._config
        flavour = Flavour.MERIDIO_2 if config.numbered else Flavour.MERIDIO
        return StreamSpec(
            name=name,
            max_targets=config.max_targets,
            identifier_offset=offset,
            vips=config.vips.get(name, ()),
            shm_name=flavour.memory(name),
            first_identifier=flavour.first_identifier,
        )

    def _serve(self, stream: StreamSpec, skipped: list[Skipped], now: float, rest_s: float) -> dict[str, Endpoint]:
        """Return the endpoints of a stream that do not contradict each other, with their identifiers."""
        listed, before = self._listed[stream.name], self._served.get(stream.name) or self._remembered(stream.name)
        believed = self._holds[stream.name].believed or {}
        claims = _Claims(stream, before, numbered=self._config.numbered)

        def rank(each: Endpoint) -> tuple[bool, bool, bool]:
            was = before.get(each.key)
            changed = was is None or was.ips != each.ips or each.identifier not in (None, was.identifier)
            return each.key not in listed, each.draining, changed

        for endpoint in sorted(believed.values(), key=rank):
            claims.add(endpoint)
        skipped += claims.skipped
        if self._config.numbered:
            return claims.served
        return self._number(stream, claims.served, skipped, now, rest_s)

    def _number(
        self, stream: StreamSpec, served: dict[str, Endpoint], skipped: list[Skipped], now: float, rest_s: float
    ) -> dict[str, Endpoint]:
        allocator = self._allocators.get(stream.name)
        if allocator is None:
            kept = self._memory.get(stream.name, RememberedStream(offset=0, size=0))
            given = {each.key: each.identifier for each in kept.targets}
            allocator = self._allocators[stream.name] = IdentifierAllocator(stream.identifiers, given, kept.resting)
        # In the order of the addresses: load balancers that see the same list for the first time give the same ones.
        order = sorted(served.values(), key=lambda each: ([(len(ip), ip) for ip in each.ips], each.key))
        numbers = allocator.assign([each.key for each in order], now, rest_s)
        for each in order:
            if each.key not in numbers:
                what = f"target {shown(each.label)} of {stream.name}: all {stream.max_targets} are taken"
                skipped.append(Skipped(Reason.NO_IDENTIFIER_LEFT, what))
        return {key: replace(served[key], identifier=number) for key, number in numbers.items()}

    def _remember(self, stream: StreamSpec) -> RememberedStream:
        allocator = self._allocators.get(stream.name)
        targets = (
            RememberedTarget(key=key, identifier=each.identifier, ips=each.ips, draining=each.draining)
            for key, each in self._served[stream.name].items()
            if each.identifier is not None
        )
        return RememberedStream(
            offset=stream.identifier_offset,
            size=stream.max_targets,
            targets=tuple(sorted(targets, key=lambda target: target.identifier)),
            resting=allocator.resting if allocator is not None else {},
        )


class _Claims:
    """Identifiers and addresses that the endpoints of one stream claim; the first claim counts.

    An endpoint that cannot have what it claims keeps what it had.
    """

    def __init__(self, stream: StreamSpec, before: Mapping[str, Endpoint], *, numbered: bool) -> None:
        self.served: dict[str, Endpoint] = {}
        self.skipped: list[Skipped] = []
        self._stream = stream
        self._before = before
        self._numbered = numbered
        self._identifiers: dict[int, Endpoint] = {}
        self._ips: dict[Ip, Endpoint] = {}

    def add(self, endpoint: Endpoint) -> None:
        """Serve an endpoint, or what it was before, or report why neither is possible."""
        problem = self._problem(endpoint)
        if problem is not None:
            self.skipped.append(problem)
            before = self._before.get(endpoint.key)
            if before is None or self._problem(before) is not None:
                return
            endpoint = before
        self.served[endpoint.key] = endpoint
        if endpoint.identifier is not None:
            self._identifiers[endpoint.identifier] = endpoint
        self._ips.update(dict.fromkeys(endpoint.ips, endpoint))

    def _problem(self, endpoint: Endpoint) -> Skipped | None:
        what = f"target {shown(endpoint.label)} of {self._stream.name}"
        number = endpoint.identifier
        if self._numbered and number is not None:
            if number not in self._stream.identifiers:
                place = f"{number} is outside 0 to {self._stream.max_targets - 1}"
                return Skipped(Reason.IDENTIFIER_OUT_OF_RANGE, f"{what}: {place}")
            if number in self._identifiers:
                owner = shown(self._identifiers[number].label)
                return Skipped(Reason.DUPLICATE_IDENTIFIER, f"{what}: {number} is the identifier of {owner}")
        for ip in endpoint.ips:
            if ip in self._ips:
                owner = shown(self._ips[ip].label)
                return Skipped(Reason.DUPLICATE_ADDRESS, f"{what}: {format_ip(ip)} is the address of {owner}")
        return None
