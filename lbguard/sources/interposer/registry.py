"""Registry of the targets that the load balancer has activated, and its file, which survives a restart.

A target is registered from its first `activate` until it is deliberately removed. It is *unconfirmed* while the load
balancer does not count it among its targets and is expected to activate it again: Meridio after it deactivated a target
whose path was broken (it tries on every new link, and every 10 s, and makes no call when the target is removed
meanwhile); Meridio-2 after its restart.
"""

import functools
import json
import os
from dataclasses import dataclass, field

from lbguard.core.addr import Ip, format_ip, is_ipv4, parse_ip, why_not_unicast
from lbguard.core.model import MAX_TARGETS, NAME_PATTERN, StreamSpec, TargetSpec
from lbguard.sources.flavour import Flavour
from lbguard.sources.interposer.directory import SharedDirectory
from lbguard.sources.nsp.offsets import Range, is_possible

FORMAT = 1
MAX_BYTES = 16 * 2**20

_NAME = "registry.json"


_text_of = functools.lru_cache(maxsize=1 << 16)(format_ip)  # all addresses are written at every change


class RegistryError(Exception):
    """A registry cannot be read, or an entry cannot be registered; the text says why."""


@dataclass(slots=True)
class Entry:
    """One registered target."""

    ips: tuple[Ip, ...]
    confirmed: bool = True


@dataclass(slots=True)
class RegisteredStream:
    """A stream. `offset` (the mark of a target less its identifier) is None until its first target is known."""

    max_targets: int
    flavour: Flavour = Flavour.MERIDIO
    offset: int | None = None
    targets: dict[int, Entry] = field(default_factory=dict)

    @property
    def identifiers(self) -> range:
        """The identifiers that its targets can have."""
        return range(self.flavour.first_identifier, self.flavour.first_identifier + self.max_targets)


class Registry:
    """The streams and targets that are registered."""

    def __init__(self) -> None:
        self.streams: dict[str, RegisteredStream] = {}

    def begin(self, stream: str, max_targets: int, flavour: Flavour = Flavour.MERIDIO) -> None:
        """Record a new table, in which no target is registered."""
        self.streams[stream] = RegisteredStream(max_targets, flavour)

    def end(self, stream: str) -> None:
        """Forget a stream."""
        self.streams.pop(stream, None)

    def entry(self, stream: str, identifier: int) -> Entry | None:
        """Return a target."""
        known = self.streams.get(stream)
        return known.targets.get(identifier) if known is not None else None

    def register(self, stream: str, identifier: int, mark: int, ips: tuple[Ip, ...]) -> None:
        """Register a target, or confirm it with these addresses.

        Raises:
            RegistryError: the stream is unknown, or the identifier or the mark cannot be the stream's.
        """
        known = self.streams.get(stream)
        if known is None:
            raise RegistryError("stream unknown")
        if identifier not in known.identifiers:
            raise RegistryError(f"the table has indexes 0 to {known.max_targets - 1}")
        for ip in ips:
            if why := why_not_unicast(ip):
                raise RegistryError(f"{format_ip(ip)} cannot be the address of a target: it is {why}")
        offset = mark - identifier
        if known.offset is None:
            self._check_offset(stream, offset, known)
            known.offset = offset
        elif known.offset != offset:
            raise RegistryError(f"the marks of this stream begin at {known.offset + known.identifiers[0]}")
        known.targets[identifier] = Entry(ips)

    def remove(self, stream: str, identifier: int) -> bool:
        """Forget a target; return whether it was there."""
        known = self.streams.get(stream)
        return known is not None and known.targets.pop(identifier, None) is not None

    def specs(self) -> tuple[StreamSpec, ...]:
        """Return the list for the core: the streams whose marks are known."""
        return tuple(
            StreamSpec(
                name=name,
                max_targets=stream.max_targets,
                identifier_offset=stream.offset,
                shm_name=stream.flavour.memory(name),
                first_identifier=stream.flavour.first_identifier,
                targets=tuple(
                    TargetSpec(identifier=identifier, ips=entry.ips)
                    for identifier, entry in sorted(stream.targets.items())
                ),
            )
            for name, stream in sorted(self.streams.items())
            if stream.offset is not None
        )

    def dump(self) -> bytes:
        """Return the content of the file."""
        streams = {
            name: {
                "flavour": stream.flavour,
                "max_targets": stream.max_targets,
                "offset": stream.offset,
                "targets": {
                    str(identifier): {"ips": [_text_of(ip) for ip in entry.ips], "confirmed": entry.confirmed}
                    for identifier, entry in sorted(stream.targets.items())
                },
            }
            for name, stream in sorted(self.streams.items())
        }
        return json.dumps({"format": FORMAT, "streams": streams}).encode() + b"\n"

    @classmethod
    def parse(cls, content: bytes) -> "Registry":
        """Read the content of a file.

        Raises:
            RegistryError: it is not a registry, or has another format.
        """
        try:
            document = json.loads(content)
            if document["format"] != FORMAT:
                raise RegistryError(f"its format is {document['format']!r}, not {FORMAT}")
            registry = cls()
            for name, stream in document["streams"].items():
                registry._read_stream(name, stream)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RegistryError(f"it is malformed: {type(error).__name__}: {error}"[:200]) from None
        return registry

    def _read_stream(self, name: str, stream: dict[str, object]) -> None:
        room, offset, targets = stream["max_targets"], stream["offset"], stream["targets"]
        if NAME_PATTERN.fullmatch(name) is None or not _is_whole(room) or not isinstance(targets, dict):
            raise ValueError(name)
        assert isinstance(room, int)
        if not 1 <= room <= MAX_TARGETS or not (_is_whole(offset) or (offset is None and not targets)):
            raise ValueError(name)
        # Earlier versions knew Meridio alone.
        self.begin(name, room, Flavour(str(stream.get("flavour", Flavour.MERIDIO))))
        known = self.streams[name]
        if isinstance(offset, int):
            self._check_offset(name, offset, known)
            known.offset = offset
        for identifier, entry in targets.items():
            ips, confirmed = tuple(parse_ip(ip) for ip in entry["ips"]), entry["confirmed"]
            families = [is_ipv4(ip) for ip in ips]
            if not ips or len(set(families)) != len(families) or not isinstance(confirmed, bool):
                raise ValueError(f"{name}/{identifier}")
            if int(identifier) not in known.identifiers:
                raise ValueError(f"{name}/{identifier}")
            # An address that an earlier version accepted and no target can have is dropped; other targets stay
            # registered.
            if not any(why_not_unicast(ip) for ip in ips):
                known.targets[int(identifier)] = Entry(ips, confirmed)

    def _check_offset(self, stream: str, offset: int, new: RegisteredStream) -> None:
        wanted = _range(offset, new)
        if not is_possible(*wanted):
            raise RegistryError(f"marks {wanted.offset + 1} to {wanted.offset + wanted.size} cannot be a stream's")
        for name, other in self.streams.items():
            if name != stream and other.offset is not None and wanted.meets(_range(other.offset, other)):
                raise RegistryError(f"the marks are those of stream {name}")


class RegistryFile:
    """Keeps a registry in the file `registry.json`, replaced as a whole at every change."""

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self.path = directory.path / _NAME

    def read(self) -> Registry | None:
        """Return the registry; None when there is no file.

        Raises:
            RegistryError: it cannot be read.
        """
        try:
            descriptor = self._directory.open_file(_NAME, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"it cannot be opened: {error.strerror}") from error
        try:
            with os.fdopen(descriptor, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise RegistryError(f"it cannot be read: {error.strerror}") from error
        if len(content) > MAX_BYTES:
            raise RegistryError("it is too large")
        return Registry.parse(content)

    def write(self, content: bytes) -> None:
        """Replace the file by what `Registry.dump` returned.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        new = f".{_NAME}.new"
        with os.fdopen(self._directory.new_file(new, 0o640), "wb") as file:
            file.write(content)
        self._directory.rename(new, _NAME)


def _range(offset: int, stream: RegisteredStream) -> Range:
    """Return the marks of a stream, as the marks above an offset."""
    return Range(offset + stream.identifiers[0] - 1, stream.max_targets)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
