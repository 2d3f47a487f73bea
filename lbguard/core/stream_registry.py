"""Registry of the streams and targets that the source lists, found by name, mark and address."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from lbguard.core.addr import Ip
from lbguard.core.config import EngineConfig
from lbguard.core.effects import Effect, ForgetStream
from lbguard.core.events import OpenDrain
from lbguard.core.fsm import Input
from lbguard.core.lifecycle import Lifecycle
from lbguard.core.manual import ManualControl
from lbguard.core.model import ADMITTED, ManualAction, StreamSpec, TargetKey, TargetSpec
from lbguard.core.netview import NetView
from lbguard.core.path_repair import PathRepair
from lbguard.core.state import Stream, Target


def _identity(spec: StreamSpec) -> tuple[int, int, int, str]:
    """Return the properties that must not change while a stream is served: table size, marks and memory."""
    return spec.max_targets, spec.first_identifier, spec.identifier_offset, spec.shm_name


def _with_identity_of(kept: StreamSpec, listed: StreamSpec) -> StreamSpec:
    """Return a stream as listed now, with the table size and the marks of the kept one."""
    targets = tuple(target for target in listed.targets if target.identifier in kept.identifiers)
    return replace(kept, vips=listed.vips, targets=targets)


class StreamRegistry:
    """Streams and targets, and the work that follows from a change of the list.

    `dirty`: targets to be evaluated again. `review`: streams whose table or availability is to be checked again.
    `attach`: streams whose table has to be attached. `retiring`: marks of targets that left the list, kept in the
    kernel until the distributor confirmed that no packet gets them any more.
    """

    def __init__(
        self, config: EngineConfig, view: NetView, paths: PathRepair, life: Lifecycle, manual: ManualControl
    ) -> None:
        self.streams: dict[str, Stream] = {}
        self.by_mark: dict[int, Target] = {}
        self.by_ip: dict[Ip, dict[Target, None]] = {}
        self.dirty: dict[Target, None] = {}
        self.review: dict[str, None] = {}
        self.attach: dict[str, None] = {}
        self.retiring: dict[int, tuple[str, int]] = {}
        self.ignored: Counter[str] = Counter()
        self._forgotten: list[StreamSpec] = []
        self._postponed: dict[str, StreamSpec] = {}
        self._remembered: dict[OpenDrain, float] = {}
        self._config = config
        self._view = view
        self._paths = paths
        self._life = life
        self._manual = manual

    def configure(self, config: EngineConfig) -> None:
        """Use another configuration from now on."""
        self._config = config

    def target(self, key: TargetKey) -> Target | None:
        """Return a target by its key."""
        stream = self.streams.get(key.stream)
        return stream.targets.get(key.identifier) if stream else None

    def take_dirty(self) -> list[Target]:
        """Return the targets to be evaluated again, each once."""
        dirty = list(self.dirty)
        self.dirty.clear()
        return dirty

    def replace(self, specs: tuple[StreamSpec, ...], now: float) -> None:
        """Apply a full list: targets that it does not contain are removed at once."""
        self._postponed.clear()
        listed = {spec.name for spec in specs}
        for name, stream in self.streams.items():
            if name not in listed and not stream.removed:
                self._remove_stream(stream, now)
        self._update_streams(specs, now)
        self._drain_on(now)

    def remember_drains(self, drains: Iterable[OpenDrain], now: float) -> None:
        """Adopt the drains that an earlier run left open; the first list decides which of them go on."""
        if self._config.affinity and self._config.drain_window_s > 0:
            self._remembered = {drain: now + drain.left_s for drain in drains}

    def _drain_on(self, now: float) -> None:
        """Register the targets of remembered drains again, unless the list has their identifiers or addresses."""
        remembered, self._remembered = self._remembered, {}
        for drain, until in remembered.items():
            stream = self.streams.get(drain.stream)
            if stream is None or stream.adopted or now >= until or self._used_again(stream, drain):
                continue
            target = stream.add(TargetSpec(identifier=drain.identifier, ips=drain.ips), now)
            target.draining = target.unlisted = True
            self._life.drains.set(target.key, until)
            self._add_target(target)

    def _used_again(self, stream: Stream, drain: OpenDrain) -> bool:
        """Return whether the list has a target with the identifier of a remembered drain, or with its address."""
        users = (target for ip in drain.ips for target in self.by_ip.get(ip, ()))
        used = drain.identifier in stream.targets or any(user.key.stream == drain.stream for user in users)
        return used or drain.identifier not in stream.spec.identifiers

    def confirm(self, stream: Stream, registered: frozenset[int], now: float) -> None:
        """Record that the distributor holds exactly these registered identifiers: the marks of others are freed."""
        name = stream.spec.name
        for mark, (owner, identifier) in list(self.retiring.items()):
            if owner == name and identifier not in registered:
                del self.retiring[mark]
                self._paths.retire(mark)
        if stream.removed and not registered:
            del self.streams[name]
            self.review.pop(name, None)
            self.attach.pop(name, None)
            self._forgotten.append(stream.spec)
            postponed, self._postponed = self._postponed, {}
            self._update_streams(postponed.values(), now)

    def take_forgotten(self) -> list[Effect]:
        """Return a ForgetStream effect for each stream that ended since the last call."""
        forgotten, self._forgotten = self._forgotten, []
        return [ForgetStream(stream=spec) for spec in forgotten]

    def adopt(self, stream: Stream, active: frozenset[int], now: float) -> None:
        """Adopt the targets that the distributor already holds; unlisted identifiers are removed from it."""
        stream.adopted = True
        # Beyond max_targets the marks may be another stream's; the first commit removes such entries.
        for identifier in sorted(active - stream.targets.keys()):
            if identifier not in stream.spec.identifiers:
                continue
            self.retiring.setdefault(stream.spec.mark(identifier), (stream.spec.name, identifier))
        for identifier, target in list(stream.targets.items()):
            self.dirty[target] = None
            if identifier in active:
                self._life.adopt(stream, target, now)
            elif target.unlisted:
                # It is out of the table since the earlier run: there is nothing to drain.
                self._remove_target(stream, target, now)

    def _update_streams(self, specs: Iterable[StreamSpec], now: float) -> None:
        """Apply lists: first what leaves them, as an address that another stream takes ends a drain."""
        accepted = [stream for spec in specs if (stream := self._accept(spec, now)) is not None]
        for stream in accepted:
            for target in {target.identifier: target for target in stream.spec.targets}.values():
                self._update_target(stream, target, now)

    def _accept(self, spec: StreamSpec, now: float) -> Stream | None:
        """Apply the list of a stream except for its targets that are new or changed; None: it has to wait."""
        name = spec.name
        stream = self.streams.get(name)
        if stream is None:
            if self._marks_in_use(spec):
                # Another stream uses these marks until it is gone: packets of one would reach targets of the other.
                self.ignored["marks_in_use"] += 1
                self._postponed[name] = spec
                return None
            stream = self.streams[name] = Stream(spec)
            self.attach[name] = None
        elif _identity(stream.spec) != _identity(spec):
            if stream.removed:
                # It is added as a new stream once the old one is gone.
                self._postponed[name] = spec
                return None
            # The size and the marks of a table are fixed when it is made; half a change would misdirect packets.
            # Changes of the targets that fit are applied: a removal always counts.
            self.ignored["stream_identity_changed"] += 1
            spec = _with_identity_of(stream.spec, spec)
        elif stream.spec.vips != spec.vips or stream.removed:
            self.attach[name] = None
        stream.spec, stream.removed = spec, False
        self.review[name] = None
        wanted = {target.identifier for target in spec.targets}
        for identifier in [i for i in stream.targets if i not in wanted]:
            self._leave(stream, stream.targets[identifier], now)
        return stream

    def _update_target(self, stream: Stream, spec: TargetSpec, now: float) -> None:
        target = stream.targets.get(spec.identifier)
        if target is not None and target.unlisted and tuple(target.paths) != spec.ips:
            self.end_drain(target, now, "identifier_used_again")
            target = None
        # A target may have had its address all along: with Meridio, one address is a target of several streams.
        had = () if target is None else tuple(target.paths)
        for ip in [ip for ip in spec.ips if ip not in had]:
            for other in list(self.by_ip.get(ip, ())):
                if other.unlisted:
                    self.end_drain(other, now, "address_used_again")
        if target is None:
            target = stream.add(spec, now)
            self._add_target(target)
        elif tuple(target.paths) != spec.ips:
            self._change_ips(target, spec.ips)
            self._manual.addresses_changed(stream, target, now)
        target.source_drains = spec.draining and self._config.affinity
        drains = target.source_drains or target.overridden(ManualAction.DRAIN)
        if spec.draining and not self._config.affinity:
            self.ignored["draining_without_affinity"] += 1
        if target.unlisted or drains != target.draining:
            target.unlisted = False
            (self._life.drain if drains else self._life.resume)(stream, target, now)
            self.dirty[target] = None

    def _leave(self, stream: Stream, target: Target, now: float) -> None:
        """Drain a target that is not listed any more, or remove it."""
        if target.unlisted:
            return
        window_s = self._config.drain_window_s if self._config.affinity else 0.0
        in_table = stream.committed is None or target.key.identifier in stream.committed[1]
        if window_s <= 0 or not in_table or target.state not in ADMITTED or not target.forwards(now):
            self._remove_target(stream, target, now)
        else:
            target.unlisted = True
            self._life.drain(stream, target, now, until=now + window_s)
            self.dirty[target] = None

    def end_drain(self, target: Target, now: float, reason: str) -> None:
        """Remove a target that is not listed any more, for a named reason."""
        self._remove_target(self.streams[target.key.stream], target, now, reason)

    def _marks_in_use(self, spec: StreamSpec) -> bool:
        """Return whether a stream that is served, or not gone yet, uses any of a new stream's marks."""
        first, last = spec.mark(spec.identifiers[0]), spec.mark(spec.identifiers[-1])
        others = [(other.spec, other.spec.identifiers) for other in self.streams.values()]
        return any(first <= other.mark(all_[-1]) and other.mark(all_[0]) <= last for other, all_ in others)

    def _add_target(self, target: Target) -> None:
        self.by_mark[target.mark] = target
        self.retiring.pop(target.mark, None)
        for ip in target.paths:
            self._follow(target, ip)
        self._paths.register(target)
        self._manual.listed(target)
        self.dirty[target] = None

    def _change_ips(self, target: Target, ips: tuple[Ip, ...]) -> None:
        old = tuple(target.paths)
        for ip in [ip for ip in ips if ip not in old]:
            self._follow(target, ip)
        self._paths.change_ips(target, ips)
        for ip in [ip for ip in old if ip not in ips]:
            self._unfollow(target, ip)
        self.dirty[target] = None

    def _remove_target(self, stream: Stream, target: Target, now: float, reason: str = "") -> None:
        self._life.apply(stream, target, Input.REMOVED, now, reason=reason)
        for ip in target.paths:
            self._unfollow(target, ip)
        self.dirty.pop(target, None)
        self.by_mark.pop(target.mark, None)
        self.retiring[target.mark] = (stream.spec.name, target.key.identifier)
        self.review[stream.spec.name] = None

    def _remove_stream(self, stream: Stream, now: float) -> None:
        stream.removed = True
        # Even an empty table is committed once more: only a confirmation ends the stream.
        stream.committed = None
        self.review[stream.spec.name] = None
        for target in list(stream.targets.values()):
            self._remove_target(stream, target, now)

    def _follow(self, target: Target, ip: Ip) -> None:
        self.by_ip.setdefault(ip, {})[target] = None
        self._view.add_ip(ip)

    def _unfollow(self, target: Target, ip: Ip) -> None:
        self._view.remove_ip(ip)
        users = self.by_ip[ip]
        del users[target]
        if not users:
            del self.by_ip[ip]
            self._paths.unfollow(ip)
