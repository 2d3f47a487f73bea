"""Registrations: the registry, updated by received calls, missed calls and found tables, and saved for a restart."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.events import SourceSnapshot
from lbguard.core.model import StreamSpec, TargetKey
from lbguard.sources.flavour import Flavour
from lbguard.sources.interposer.protocol import Call, Command
from lbguard.sources.interposer.registry import RegisteredStream, Registry, RegistryError, RegistryFile
from lbguard.sources.nsp.offsets import offset_of_table
from lbguard.telemetry.log import fields


class Core(Protocol):
    """Interface to the core. No method blocks."""

    @property
    def ready(self) -> bool:
        """Return whether the core makes decisions: it has a view of the kernel and a list."""

    @property
    def caught_up(self) -> bool:
        """Return whether the core's view of the kernel is complete and no event waits."""

    def path_lost(self, target: TargetKey, within_s: float) -> bool:
        """Return whether a link of the target's paths is missing, down or unusable, or was within a time.

        Also true while the view of the kernel is incomplete: the path is then unknown, and nothing changes.
        """

    def sound_for_s(self, target: TargetKey) -> float:
        """Return for how long the target has been in the distributor with a good path; 0 when it is not."""

    def drains(self, target: TargetKey) -> bool:
        """Return whether the target stays in the distributor although it is not registered any more."""

    def learns(self, stream: str) -> bool:
        """Return whether a change of the registered targets waits, so that the flows are seen which it would move."""


class Gateways(Protocol):
    """The load balancer's routes."""

    known: bool

    def gateways(self, table: int) -> tuple[Ip, ...]:
        """Return the gateways of the default routes in a table, at most one per family."""

    def take_changed(self) -> set[int]:
        """Return the tables whose routes have changed since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTable:
    """A table found in the distributor: room for targets, and the mark by index, negative where inactive."""

    max_targets: int
    marks: Sequence[int]
    flavour: Flavour = Flavour.MERIDIO


_log = logging.getLogger("lbguard.sources.interposer")

_RESTART_S = 2.0
"""A load balancer that started again activates its targets one after the other, and no target this long after."""
_FAMILY_GONE_S = 0.5
"""Time after which the loss of one family's route is judged; a lost link is known by then."""


class Registrations:
    """Registered streams and targets; every change is passed to `emit`.

    A target that was activated while its addresses were unknown is *deferred*: it is registered when they are known.

    Meridio-2 makes a stream's table again when it starts, before any flow leads packets there, and then activates the
    targets one after the other. Those of before are registered again with the first of them, unconfirmed: the table is
    complete at once, and the same as before.
    """

    def __init__(self, file: RegistryFile, emit: Callable[[SourceSnapshot], None], routes: Gateways) -> None:
        self.registry = Registry()
        self._file = file
        self._emit = emit
        self._routes = routes
        self._owed: dict[TargetKey, Call] = {}
        self._doubted_at: dict[TargetKey, float] = {}
        self._before_restart: dict[str, RegisteredStream] = {}
        self._rerouted: dict[TargetKey, float] = {}
        self._reported: tuple[StreamSpec, ...] | None = None
        self._saved: bytes | None = None
        self._save_failed = ""

    # The start

    def load(self) -> None:
        """Load the registry of an earlier run."""
        try:
            self.registry = self._file.read() or Registry()
        except RegistryError as error:
            what = fields(path=str(self._file.path), reason=str(error))
            _log.warning("registry of an earlier run not used", extra=what)

    def reset(self) -> None:
        """Forget everything: missed calls are unknown."""
        self.registry = Registry()

    def compare(self, found: Mapping[str, FoundTable]) -> None:
        """Forget the streams that have no table, and adopt the active targets that were not announced."""
        for name, stream in list(self.registry.streams.items()):
            if name not in found or found[name].flavour is not stream.flavour:
                self.registry.end(name)
        for name, table in found.items():
            self._adopt(name, table)

    def _adopt(self, name: str, table: FoundTable) -> None:
        if name not in self.registry.streams:
            if offset_of_table(table.marks) is None:
                return
            self.registry.begin(name, table.max_targets, table.flavour)
        for identifier, mark in enumerate(table.marks, table.flavour.first_identifier):
            ips = self._routes.gateways(mark) if mark >= 0 else ()
            if ips and self.registry.entry(name, identifier) is None:
                try:
                    self.registry.register(name, identifier, mark, ips)
                except RegistryError as error:
                    _log.warning("target not adopted", extra=fields(stream=name, mark=mark, reason=str(error)))

    # Calls

    def fits(self, call: Call) -> bool:
        """Return whether a call is one of the load balancer that has the stream of this name, if any."""
        known = self.registry.streams.get(call.stream)
        return known is None or known.flavour is call.flavour

    def addresses(self, call: Call) -> tuple[Ip, ...]:
        """Return the addresses of the target of an activate: those of its routes, else the previous ones."""
        entry = self.registry.entry(call.stream, call.identifier)
        return self._routes.gateways(call.mark) or (entry.ips if entry is not None else ())

    def serves(self, stream: str) -> bool:
        """Return whether a stream was reported to the core."""
        known = self.registry.streams.get(stream)
        return known is not None and known.offset is not None

    def defer(self, call: Call) -> None:
        """Register a target as soon as its addresses are known."""
        self._owed[TargetKey(call.stream, call.identifier)] = call

    def register(self, call: Call, ips: tuple[Ip, ...]) -> None:
        """Register the target of an activate.

        Raises:
            RegistryError: the target cannot belong to this stream.
        """
        self.registry.register(call.stream, call.identifier, call.mark, ips)
        self._owed.pop(TargetKey(call.stream, call.identifier), None)
        self._doubted_at = {key: at for key, at in self._doubted_at.items() if key.stream != call.stream}
        self._register_those_of_before(call.stream)

    def _register_those_of_before(self, name: str) -> None:
        before = self._before_restart.pop(name, None)
        stream = self.registry.streams[name]
        if before is None or before.max_targets != stream.max_targets or stream.offset is None:
            return
        for identifier, entry in before.targets.items():
            if identifier not in stream.targets:
                self.registry.register(name, identifier, stream.offset + identifier, entry.ips)
                stream.targets[identifier].confirmed = False

    def remove(self, call: Call) -> None:
        """Forget a target."""
        self.registry.remove(call.stream, call.identifier)
        self._owed.pop(TargetKey(call.stream, call.identifier), None)

    def end(self, call: Call) -> None:
        """Forget a stream whose memory is about to be made again or deleted."""
        known = self.registry.streams.get(call.stream)
        self._end(call.stream)
        if call.command is Command.INIT and known is not None and not known.flavour.verifies_paths:
            self._before_restart[call.stream] = known

    def begin(self, call: Call) -> None:
        """Record a new table, after `end`."""
        if call.command is Command.INIT:
            self.registry.begin(call.stream, call.max_targets, call.flavour)

    def _end(self, stream: str) -> None:
        # A table that was made by the real program alone is in use as it is.
        self._before_restart.pop(stream, None)
        self.registry.end(stream)
        for key in [key for key in self._owed if key.stream == stream]:
            del self._owed[key]

    def apply(self, call: Call) -> None:
        """Apply a call that the real program carries out, or has carried out."""
        if not self.fits(call):
            return
        match call.command:
            case Command.INIT | Command.DELETE:
                self._end(call.stream)
                self.begin(call)
            case Command.DEACTIVATE:
                self.remove(call)
            case Command.ACTIVATE:
                self.defer(call)
                self.resolve()

    def resolve(self) -> bool:
        """Register the deferred targets whose addresses are known now; return whether there were any."""
        paid = False
        for key, call in list(self._owed.items()):
            ips = self.addresses(call)
            if not ips:
                continue
            del self._owed[key]
            try:
                self.register(call, ips)
                paid = True
            except RegistryError as error:
                _log.warning("target not registered", extra=fields(target=str(key), reason=str(error)))
        return paid

    def drop_unconfirmed(self, sound_for_s: Callable[[TargetKey], float], limit_s: float, now: float) -> bool:
        """Forget unconfirmed targets with good paths that were not activated in time; return whether there were any.

        For the load balancer such a target is gone: it makes no call when a target is removed that it had deactivated,
        or that it does not know from before its restart.
        """
        unconfirmed = {
            TargetKey(name, identifier): limit_s if stream.flavour.verifies_paths else min(limit_s, _RESTART_S)
            for name, stream in self.registry.streams.items()
            for identifier, entry in stream.targets.items()
            if not entry.confirmed
        }
        self._doubted_at = {key: self._doubted_at.get(key, now) for key in unconfirmed}
        dropped = False
        for key, since in self._doubted_at.items():
            if min(sound_for_s(key), now - since) >= unconfirmed[key]:
                _log.info("target removed: not activated again", extra=fields(target=str(key)))
                dropped |= self.registry.remove(key.stream, key.identifier)
        return dropped

    # Changed addresses

    def follow_routes(self, path_lost: Callable[[TargetKey], bool], now: float) -> bool:
        """Follow the addresses of the targets of Meridio-2; return whether any changed.

        It makes no call when the addresses of a target change, but replaces its routes. The kernel deletes routes as
        well, with their link, so a family without a route keeps its address. It loses the address if the other family
        has its route, and no link of the target was lost.
        """
        for table in self._routes.take_changed():
            key = self._target_of(table)
            if key is not None:
                self._rerouted[key] = now
        changed = False
        for key, since in list(self._rerouted.items()):
            entry, stream = self.registry.entry(*key), self.registry.streams.get(key.stream)
            if entry is None or stream is None or stream.offset is None:
                del self._rerouted[key]
                continue
            seen = {is_ipv4(ip): ip for ip in self._routes.gateways(stream.offset + key.identifier)}
            wanted = {is_ipv4(ip): ip for ip in entry.ips} | seen
            if not seen or seen == wanted:
                del self._rerouted[key]
            elif now - since >= _FAMILY_GONE_S:
                del self._rerouted[key]
                wanted = wanted if path_lost(key) else seen
            ips = tuple(wanted[ipv4] for ipv4 in (True, False) if ipv4 in wanted)
            changed |= self._change_addresses(key, stream, ips)
        return changed

    def _change_addresses(self, key: TargetKey, stream: RegisteredStream, ips: tuple[Ip, ...]) -> bool:
        entry = stream.targets[key.identifier]
        if ips == entry.ips or stream.offset is None:
            return False
        confirmed = entry.confirmed
        try:
            self.registry.register(key.stream, key.identifier, stream.offset + key.identifier, ips)
        except RegistryError as error:
            _log.warning("addresses not followed", extra=fields(target=str(key), reason=str(error)))
            return False
        stream.targets[key.identifier].confirmed = confirmed
        _log.info("target has other addresses", extra=fields(target=str(key)))
        return True

    def _target_of(self, mark: int) -> TargetKey | None:
        """Return the registered target of Meridio-2 that has a mark."""
        for name, stream in self.registry.streams.items():
            if stream.offset is not None and not stream.flavour.verifies_paths:
                identifier = mark - stream.offset
                if identifier in stream.targets:
                    return TargetKey(name, identifier)
        return None

    # Telling

    def report(self, *, again: bool = False) -> None:
        """Save the registry for a restart, and report the list if it has changed (or `again`)."""
        specs = self.registry.specs()
        content = self.registry.dump()
        if content != self._saved:
            self._save(content)
        if again or specs != self._reported:
            self._reported = specs
            self._emit(SourceSnapshot(streams=specs))

    def _save(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            if self._save_failed != str(error):
                self._save_failed = str(error)
                _log.error("what is registered cannot be kept for a restart", extra=fields(reason=str(error)))
            return
        self._saved, self._save_failed = content, ""
