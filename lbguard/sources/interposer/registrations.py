"""Registrations: the registry, updated by received calls, missed calls and found tables, and saved for a restart."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lbguard.core.addr import Ip
from lbguard.core.events import SourceSnapshot
from lbguard.core.model import StreamSpec, TargetKey
from lbguard.sources.interposer.protocol import Call, Command
from lbguard.sources.interposer.registry import Registry, RegistryError, RegistryFile
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTable:
    """A table found in the distributor: room for targets, and the mark by index, negative where inactive."""

    max_targets: int
    marks: Sequence[int]


_log = logging.getLogger("lbguard.sources.interposer")


class Registrations:
    """Registered streams and targets; every change is passed to `emit`.

    A target that was activated while its addresses were unknown is *deferred*: it is registered when they are known.
    """

    def __init__(self, file: RegistryFile, emit: Callable[[SourceSnapshot], None], routes: Gateways) -> None:
        self.registry = Registry()
        self._file = file
        self._emit = emit
        self._routes = routes
        self._owed: dict[TargetKey, Call] = {}
        self._doubted_at: dict[TargetKey, float] = {}
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
        for name in [name for name in self.registry.streams if name not in found]:
            self.registry.end(name)
        for name, table in found.items():
            self._adopt(name, table)

    def _adopt(self, name: str, table: FoundTable) -> None:
        if name not in self.registry.streams:
            if offset_of_table(table.marks) is None:
                return
            self.registry.begin(name, table.max_targets)
        for index, mark in enumerate(table.marks):
            ips = self._routes.gateways(mark) if mark >= 0 else ()
            if ips and self.registry.entry(name, index + 1) is None:
                try:
                    self.registry.register(name, index + 1, mark, ips)
                except RegistryError as error:
                    _log.warning("target not adopted", extra=fields(stream=name, mark=mark, reason=str(error)))

    # Calls

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

    def remove(self, call: Call) -> None:
        """Forget a target."""
        self.registry.remove(call.stream, call.identifier)
        self._owed.pop(TargetKey(call.stream, call.identifier), None)

    def apply(self, call: Call) -> None:
        """Apply a call that the real program carries out, or has carried out."""
        match call.command:
            case Command.INIT | Command.DELETE:
                self.registry.end(call.stream)
                for key in [key for key in self._owed if key.stream == call.stream]:
                    del self._owed[key]
                if call.command is Command.INIT:
                    self.registry.begin(call.stream, call.max_targets)
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
                self.registry.register(call.stream, call.identifier, call.mark, ips)
                paid = True
            except RegistryError as error:
                _log.warning("target not registered", extra=fields(target=str(key), reason=str(error)))
        return paid

    def drop_unconfirmed(self, sound_for_s: Callable[[TargetKey], float], limit_s: float, now: float) -> bool:
        """Forget unconfirmed targets with good paths that were not activated in time; return whether there were any.

        For the load balancer such a target is gone: it makes no call when a target is removed that it had deactivated.
        """
        unconfirmed = [
            TargetKey(name, identifier)
            for name, stream in self.registry.streams.items()
            for identifier, entry in stream.targets.items()
            if not entry.confirmed
        ]
        self._doubted_at = {key: self._doubted_at.get(key, now) for key in unconfirmed}
        dropped = False
        for key, since in self._doubted_at.items():
            if min(sound_for_s(key), now - since) >= limit_s:
                _log.info("target removed: not activated again", extra=fields(target=str(key)))
                dropped |= self.registry.remove(key.stream, key.identifier)
        return dropped

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
