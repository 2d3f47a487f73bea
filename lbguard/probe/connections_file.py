"""Connections from a YAML file that is watched and read again (see `watched_file`).

connections:
  - id: lb-a                                # unique
    local: [172.16.0.2, "fd00:0::2"]        # our addresses
    remote: [172.16.0.1, "fd00:0::1"]       # addresses of the far end; each is pinged from each local one
    subject: connection                     # what is judged: connection, link, target or self
    interface: nsm-0                        # pings leave here; without it, through the link that has the address
"""

import ipaddress
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from lbguard.core.addr import Ip, parse_ip
from lbguard.probe.connection import Connection
from lbguard.probe.source import ConnectionList, ConnectionsLost, Emit, SubjectKind, connections_of
from lbguard.watched_file import WatchedFile

MAX_BYTES = 16 * 2**20
"""A file larger than this is refused unread."""

SHOWN_PROBLEMS = 10
"""How many problems the text of an error lists."""

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is no known key",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long",
    "too_short": "must not be empty",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "literal_error": "must be connection, link, target or self",
}


class ConnectionsFileError(Exception):
    """The file cannot be used. `problems` holds every reason with its place, the text the first."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        super().__init__(f"{path}: " + "; ".join(problems[:SHOWN_PROBLEMS]) + more)
        self.path = path
        self.problems = tuple(problems)


def _ip(value: object) -> Ip:
    if not isinstance(value, str):
        raise ValueError("an address is text; quote an IPv6 one")
    ip = parse_ip(value)
    kind = ipaddress.ip_address(ip)
    if kind.is_multicast or kind.is_unspecified:
        raise ValueError(f"{value} cannot be pinged (multicast or unspecified)")
    return ip


_Addresses = Annotated[tuple[Annotated[bytes, PlainValidator(_ip)], ...], Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Annotated[str, Field(min_length=1, max_length=253)]
    local: _Addresses
    remote: _Addresses
    subject: SubjectKind = "connection"
    interface: Annotated[str, Field(max_length=15)] = ""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    connections: tuple[_Entry, ...]


class ConnectionsFile:
    """A YAML file of connections."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Connection, ...]:
        """Read and check the file.

        Raises:
            ConnectionsFileError: it cannot be read or used; every problem is listed.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ConnectionsFileError(self.path, [f"cannot be read: {error.strerror}"]) from None
        return self.parse(content)

    def parse(self, content: bytes) -> tuple[Connection, ...]:
        """Check the content of a file.

        Raises:
            ConnectionsFileError: it cannot be used; every problem is listed.
        """
        if len(content) > MAX_BYTES:
            raise ConnectionsFileError(self.path, [f"is larger than {MAX_BYTES // 2**20} MiB"])
        try:
            raw = yaml.load(content, Loader=_Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConnectionsFileError(self.path, [f"is no valid YAML: {' '.join(str(error).split())}"]) from None
        if not isinstance(raw, dict):
            raise ConnectionsFileError(self.path, ["holds no 'connections:' list"])
        try:
            entries = _Document.model_validate(raw).connections
        except ValidationError as error:
            raise ConnectionsFileError(self.path, list(_explain(error, raw))) from None
        made = [_connections(entry) for entry in entries]
        problems = list(_problems(entries, made))
        if problems:
            raise ConnectionsFileError(self.path, problems)
        return tuple(connection for several in made for connection in several)


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _connections(entry: _Entry) -> tuple[Connection, ...]:
    return connections_of(
        id=entry.id, kind=entry.subject, local=entry.local, remote=entry.remote, ifname=entry.interface
    )


def _problems(entries: tuple[_Entry, ...], made: list[tuple[Connection, ...]]) -> Iterator[str]:
    for id, count in Counter(entry.id for entry in entries).items():
        if count > 1:
            yield f"connection {id!r} is listed {count} times"
    for entry, connections in zip(entries, made, strict=True):
        if not connections:
            yield f"connection {entry.id!r}: local and remote have no address family in common"
    subjects = Counter(connection.subject for several in made for connection in several)
    for entry, connections in zip(entries, made, strict=True):
        if entry.subject != "connection" and any(subjects[connection.subject] > 1 for connection in connections):
            yield f"connection {entry.id!r}: what it judges (subject {entry.subject}) is judged by another one too"


def _explain(error: ValidationError, raw: dict[Any, Any]) -> Iterator[str]:
    """Say where each wrong value stands, by the id of the connection rather than by its position."""
    for detail in error.errors(include_url=False):
        top, *rest = detail["loc"]
        place, key = "", str(top)
        if rest:
            position, *keys = rest
            listed = raw.get("connections")
            entry = listed[position] if isinstance(listed, list | tuple) and isinstance(position, int) else None
            id = entry.get("id") if isinstance(entry, dict) else None
            place = f"connection {id!r}: " if isinstance(id, str) else f"connection number {int(position) + 1}: "
            key = "".join(f"[{part + 1}]" if isinstance(part, int) else str(part) for part in keys)
        message = _WORDS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
        yield f"{place}{key} {message}".replace("  ", " ").strip()


class ConnectionsFileSource(WatchedFile[ConnectionList | ConnectionsLost]):
    """Watches a connections file and tells of every good list and of every failure.

    A failure is told once, until its reason changes; the last good list stays in force at the receiver.
    """

    def __init__(self, path: Path, emit: Emit, *, poll_interval_s: float = 0.5) -> None:
        self._file = ConnectionsFile(path)
        super().__init__(path, self._read_file, emit, poll_interval_s=poll_interval_s)

    def _read_file(self) -> ConnectionList | ConnectionsLost:
        try:
            return ConnectionList(connections=self._file.read())
        except ConnectionsFileError as error:
            return ConnectionsLost(reason=str(error))
