"""Connections that the probe monitors, events of a source of them, and their making from addresses.

connections:
  - id: lb-a                                # unique
    local: [172.16.0.2, "fd00:0::2"]        # local addresses
    remote: [172.16.0.1, "fd00:0::1"]       # addresses of the far end; each is pinged from each local one
    subject: connection                     # subject of verdicts: connection, link, target or self
    interface: nsm-0                        # pings leave here; without it, through the link that has the address
"""

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import Field, PlainValidator, ValidationError

from lbguard.core.addr import Ip, format_ip, is_ipv4, is_ipv4_mapped, parse_ip
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, TargetSubject
from lbguard.settings.probe import SubjectKind
from lbguard.settings.yaml_file import (
    MAX_PROBLEMS,
    FileError,
    YamlError,
    YamlFileError,
    YamlMapping,
    parse_yaml,
    read_yaml,
)
from lbguard.sources.watched_file import POLL_INTERVAL_S, STILL_S, WatchedFile


class Pair(NamedTuple):
    """One direction that is pinged: from one of our addresses to one of the other end's, both of one family."""

    source: Ip
    destination: Ip


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection to monitor, as a source lists it.

    A change of `subject`, `ifname`, `pairs` or `mac` begins a new generation: earlier results do not apply to it.
    A change of `healing_s` alone does not.

    Attributes:
        id: name of the connection, unique within one monitor.
        subject: subject of the verdicts. The addresses of a ConnectionSubject should be those of `pairs`.
        pairs: address pairs to ping; at least one, no pair twice.
        ifname: the link of the pings; empty: the routing table chooses.
        mac: link-layer address of the subject, if the source knows it. When it changes the link was re-created, and the
            verdicts of the new generation carry it as `new_mac`.
        healing_s: expected duration of a repair by the mesh, above 0 while the mesh reports one. Verdicts are then
            HEALING instead of DOWN.
    """

    id: str
    subject: Subject
    pairs: tuple[Pair, ...]
    ifname: str = ""
    mac: bytes = b""
    healing_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"connection {self.id!r} has no address pair to ping")
        if len(set(self.pairs)) != len(self.pairs):
            raise ValueError(f"connection {self.id!r} lists an address pair twice")
        for pair in self.pairs:
            if len(pair.source) not in (4, 16) or len(pair.source) != len(pair.destination):
                raise ValueError(f"connection {self.id!r}: the addresses of a pair must be of one family")


def pairs_of(sources: Sequence[Ip], destinations: Sequence[Ip]) -> tuple[Pair, ...]:
    """Return each source with each destination of its family, in order, without repetitions."""
    pairs = (Pair(source, dst) for source in sources for dst in destinations if is_ipv4(source) == is_ipv4(dst))
    return tuple(dict.fromkeys(pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionList:
    """List of all connections, with unique ids; it also ends an earlier ConnectionsLost.

    `left_out` lists the connections that are not monitored, with reasons for a log.
    """

    connections: tuple[Connection, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsLost:
    """The source cannot be read: the last list stays in force."""

    reason: str


Emit = Callable[[ConnectionList | ConnectionsLost], None]
"""Receiver of a source's events, in the thread of the event loop. It must not block."""


class ConnectionSource(Protocol):
    """Source of connections."""

    async def run(self) -> None:
        """Report the list and every change of it until cancelled."""

    def reload(self) -> None:
        """Report the list again, changed or not (SIGHUP)."""


def connections_of(
    *,
    id: str,
    kind: SubjectKind,
    local: Sequence[Ip],
    remote: Sequence[Ip],
    ifname: str = "",
    mac: bytes = b"",
    healing_s: float = 0.0,
) -> tuple[Connection, ...]:
    """Return the connections between two ends; none when no family has an address at both.

    Args:
        id: the only connection's id, and the beginning of the ids of several.
        kind: what the verdicts speak of.
        local: our addresses.
        remote: addresses of the far end.
        ifname: see Connection.
        mac: see Connection.
        healing_s: see Connection.
    """
    return connections_between(
        id=id, kind=kind, pairs=pairs_of(local, remote), ifname=ifname, mac=mac, healing_s=healing_s
    )


def connections_between(
    *,
    id: str,
    kind: SubjectKind,
    pairs: Sequence[Pair],
    ifname: str = "",
    mac: bytes = b"",
    healing_s: float = 0.0,
) -> tuple[Connection, ...]:
    """Return the connections that consist of these pairs of addresses; none without any. See `connections_of`."""
    pairs = tuple(dict.fromkeys(pairs))
    if not pairs:
        return ()
    if kind == "connection":
        whole = ConnectionSubject(
            id=id,
            lb_ips=tuple(dict.fromkeys(pair.destination for pair in pairs)),
            peer_ips=tuple(dict.fromkeys(pair.source for pair in pairs)),
        )
        return (Connection(id=id, subject=whole, pairs=pairs, ifname=ifname, mac=mac, healing_s=healing_s),)
    groups: dict[LinkSubject | TargetSubject, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(_subject(kind, pair), []).append(pair)
    return tuple(
        Connection(
            id=f"{id}/{_name(subject)}",
            subject=subject,
            pairs=tuple(members),
            ifname=ifname,
            mac=mac,
            healing_s=healing_s,
        )
        for subject, members in groups.items()
    )


def far_ends(connection: Connection) -> tuple[Ip, ...]:
    """Return the load balancer's addresses at the far end, IPv4 first; none when the far end is not a load balancer."""
    match connection.subject:
        case ConnectionSubject(lb_ips=ips):
            return tuple(sorted(ips, key=lambda ip: (not is_ipv4(ip), ip)))
        case LinkSubject(lb_ip=ip):
            return (ip,)
    return ()


def _subject(kind: SubjectKind, pair: Pair) -> LinkSubject | TargetSubject:
    if kind == "link":
        return LinkSubject(lb_ip=pair.destination, proxy_ip=pair.source)
    return TargetSubject(ip=pair.destination if kind == "target" else pair.source)


def _name(subject: LinkSubject | TargetSubject) -> str:
    if isinstance(subject, TargetSubject):
        return format_ip(subject.ip)
    return f"{format_ip(subject.proxy_ip)}-{format_ip(subject.lb_ip)}"


MAX_PAIRS = 200_000
"""Pairs of addresses in one file: each is pinged, so thousands are many."""

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "unknown key",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long",
    "too_short": "must not be empty",
    "too_long": "has too many addresses",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "literal_error": "must be connection, link, target or self",
}


class ConnectionsFileError(YamlFileError):
    """The file cannot be used. `problems` holds every reason with its place, the text the first."""


def _ip(value: object) -> Ip:
    if not isinstance(value, str):
        raise ValueError("an address is text; quote an IPv6 one")
    ip = parse_ip(value)
    kind = ipaddress.ip_address(ip)
    if kind.is_multicast or kind.is_unspecified:
        raise ValueError(f"{value} cannot be pinged (multicast or unspecified)")
    if is_ipv4_mapped(ip):
        raise ValueError(f"{value} is an IPv4-mapped address; write {format_ip(ip[12:])}")
    return ip


_Addresses = Annotated[
    tuple[Annotated[bytes, PlainValidator(_ip)], ...], Field(min_length=1, max_length=64, fail_fast=True)
]


class _Entry(YamlMapping):
    id: Annotated[str, Field(min_length=1, max_length=253)]
    local: _Addresses
    remote: _Addresses
    subject: SubjectKind = "connection"
    interface: Annotated[str, Field(max_length=15)] = ""


class _Document(YamlMapping):
    connections: tuple[Any, ...]


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
            content = read_yaml(self.path)
        except FileError as error:
            raise ConnectionsFileError(self.path, [str(error)]) from None
        return self.parse(content)

    def parse(self, content: bytes) -> tuple[Connection, ...]:
        """Parse and check the content of a file.

        Raises:
            ConnectionsFileError: it cannot be used; every problem is listed. Nothing else is raised, whatever the
                content.
        """
        made: list[tuple[Connection, ...]] = []
        try:
            entries, problems = _read(parse_yaml(content))
            if not problems:
                made = [_connections(entry) for entry in entries]
                problems = list(islice(_problems(entries, made), MAX_PROBLEMS))
        except YamlError as error:
            problems = [str(error)]
        except Exception as error:  # on any error the last good list stays in force
            problems = [f"cannot be used: {type(error).__name__}: {str(error)[:200]}"]
        if problems:
            raise ConnectionsFileError(self.path, problems)
        return tuple(connection for several in made for connection in several)


def _read(raw: Any) -> tuple[list[_Entry], list[str]]:
    """Return the entries, and the errors of single values."""
    if not isinstance(raw, dict):
        return [], ["holds no 'connections:' list"]
    entries: list[_Entry] = []
    problems: list[str] = []
    try:
        listed = _Document.model_validate(raw).connections
    except ValidationError as error:
        return [], list(_explain(error, raw))
    for position, item in enumerate(listed):
        try:
            entries.append(_Entry.model_validate(item))
        except ValidationError as error:
            problems += _explain(error, raw, ("connections", position))
            if len(problems) >= MAX_PROBLEMS:
                break
    pairs = sum(len(entry.local) * len(entry.remote) for entry in entries)
    if pairs > MAX_PAIRS:
        problems.append(f"lists {pairs:,} pairs of addresses; at most {MAX_PAIRS:,} are possible")
    return entries, problems


def _connections(entry: _Entry) -> tuple[Connection, ...]:
    return connections_of(
        id=entry.id, kind=entry.subject, local=entry.local, remote=entry.remote, ifname=entry.interface
    )


def _problems(entries: list[_Entry], made: list[tuple[Connection, ...]]) -> Iterator[str]:
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


def _explain(error: ValidationError, raw: dict[str, Any], place: tuple[str | int, ...] = ()) -> Iterator[str]:
    """Return the path of each wrong value, by the id of the connection instead of its position."""
    for detail in error.errors(include_url=False):
        top, *rest = place + detail["loc"]
        where, key = "", str(top)
        if rest:
            position, *keys = rest
            listed = raw.get("connections")
            entry = listed[position] if isinstance(listed, list | tuple) and isinstance(position, int) else None
            id = entry.get("id") if isinstance(entry, dict) else None
            where = f"connection {id!r}: " if isinstance(id, str) else f"connection number {int(position) + 1}: "
            key = "".join(f"[{part + 1}]" if isinstance(part, int) else str(part) for part in keys)
        message = _WORDS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
        yield f"{where}{key} {message}".replace("  ", " ").strip()


class ConnectionsFileSource(WatchedFile[ConnectionList, ConnectionsLost]):
    """Watcher of a connections file that reports every good list and every failure.

    A failure is reported once, until its reason changes; the last good list stays in force at the receiver.
    """

    def __init__(
        self, path: Path, emit: Emit, *, poll_interval_s: float = POLL_INTERVAL_S, still_s: float = STILL_S
    ) -> None:
        file = ConnectionsFile(path)
        super().__init__(
            path,
            lambda content: ConnectionList(connections=file.parse(content)),
            lambda reason: ConnectionsLost(reason=reason),
            lambda new, old: {*old.connections} <= {*new.connections},
            emit,
            poll_interval_s=poll_interval_s,
            still_s=still_s,
        )
