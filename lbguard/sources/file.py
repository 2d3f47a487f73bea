"""Streams and targets from a YAML file that is watched and re-read (see `watched_file`)."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from lbguard.core.addr import Ip, Prefix, format_ip, is_ipv4, parse_ip, parse_prefix
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.watched_file import WatchedFile

MAX_BYTES = 16 * 2**20
"""A targets file larger than this is refused unread: 100,000 dual-stack targets need about 8 MiB."""

SHOWN_PROBLEMS = 10
"""How many problems the text of an error lists: it goes into logs and into `lbguard status`."""

NAME_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""Stream and memory names: they become file names, table names and metric labels."""

RESERVED_TABLES = range(253, 256)
"""Route tables default, main and local (/etc/iproute2/rt_tables); table 0 is `unspecified`."""

MAX_MARK = 2**32 - 1
MAX_TARGETS = 1_000_000


class TargetsFileError(Exception):
    """The file cannot be used. `problems` holds every reason with its place (stream, target), the text the first."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        super().__init__(f"{path}: " + "; ".join(problems[:SHOWN_PROBLEMS]) + more)
        self.path = path
        self.problems = tuple(problems)


def _name(value: object) -> str:
    if not isinstance(value, str) or NAME_PATTERN.fullmatch(value) is None:
        raise ValueError(
            "a name is 1 to 63 letters, digits, '.', '_' or '-', and starts and ends with a letter or digit"
        )
    return value


def _ip(value: object) -> Ip:
    if not isinstance(value, str):
        raise ValueError("an address is text; quote an IPv6 one")
    ip = parse_ip(value)
    kind = ipaddress.ip_address(ip)
    if kind.is_multicast or kind.is_unspecified or kind.is_loopback or kind.is_link_local:
        raise ValueError(f"{value} cannot be the address of a target (loopback, link-local, multicast or unspecified)")
    return ip


def _vip(value: object) -> Prefix:
    if not isinstance(value, str):
        raise ValueError("a VIP is text such as 20.0.0.1/32; quote an IPv6 one")
    return parse_prefix(value)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a whole number is needed")
    return value


Name = Annotated[str, PlainValidator(_name)]
Number = Annotated[int, BeforeValidator(_no_bool)]


class _Target(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    identifier: Number
    ips: tuple[Annotated[bytes, PlainValidator(_ip)], ...]


class _Stream(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Name
    max_targets: Number = Field(default=100, ge=1, le=MAX_TARGETS)
    identifier_offset: Number = Field(default=5000, ge=0, le=MAX_MARK)
    vips: tuple[Annotated[Prefix, PlainValidator(_vip)], ...] = ()
    shm_name: Name | None = None
    targets: tuple[_Target, ...] = ()


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    streams: tuple[_Stream, ...]


class TargetsFile:
    """A YAML file of streams and targets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[StreamSpec, ...]:
        """Read and check the file.

        Raises:
            TargetsFileError: it cannot be read or used; every problem is listed.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise TargetsFileError(self.path, [f"cannot be read: {error.strerror}"]) from None
        return self.parse(content)

    def parse(self, content: bytes) -> tuple[StreamSpec, ...]:
        """Check the content of a file.

        Raises:
            TargetsFileError: it cannot be used; every problem is listed.
        """
        if len(content) > MAX_BYTES:
            raise TargetsFileError(self.path, [f"is larger than {MAX_BYTES // 2**20} MiB"])
        try:
            raw = yaml.load(content, Loader=_Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise TargetsFileError(self.path, [f"is no valid YAML: {' '.join(str(error).split())}"]) from None
        if not isinstance(raw, dict):
            raise TargetsFileError(self.path, ["holds no 'streams:' list"])
        try:
            document = _Document.model_validate(raw)
        except ValidationError as error:
            raise TargetsFileError(self.path, list(_explain(error, raw))) from None
        problems = list(_problems(document.streams))
        if problems:
            raise TargetsFileError(self.path, problems)
        return tuple(_spec(stream) for stream in document.streams)


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser reads 10,000 targets about ten times faster


def _spec(stream: _Stream) -> StreamSpec:
    return StreamSpec(
        name=stream.name,
        max_targets=stream.max_targets,
        identifier_offset=stream.identifier_offset,
        vips=stream.vips,
        shm_name=stream.shm_name or f"tshm-{stream.name}",
        targets=tuple(TargetSpec(identifier=target.identifier, ips=target.ips) for target in stream.targets),
    )


def _explain(error: ValidationError, raw: dict[Any, Any]) -> Iterator[str]:
    """Say where each wrong value stands, by the names of the stream and target rather than by list positions."""
    words = {
        "missing": "is missing",
        "extra_forbidden": "is no known key",
        "tuple_type": "must be a list",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "model_type": "must be a mapping",
        "model_attributes_type": "must be a mapping",
    }
    for detail in error.errors(include_url=False):
        place, key, node = "", "", raw
        for part in detail["loc"]:
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                node = None  # type: ignore[assignment]
            if isinstance(part, str):
                key = part
            elif key in {"streams", "targets"}:
                label = "name" if key == "streams" else "identifier"
                named = node.get(label) if isinstance(node, dict) else None
                shown = repr(named) if isinstance(named, str | int) else f"number {part + 1}"
                place += f"{key[:-1]} {shown}: "
                key = ""
            else:
                key += f"[{part + 1}]"
        message = words.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
        yield f"{place}{key} {message}".replace("  ", " ").strip()


def _problems(streams: tuple[_Stream, ...]) -> Iterator[str]:
    for name, count in Counter(stream.name for stream in streams).items():
        if count > 1:
            yield f"stream {name!r}: the name is used {count} times"
    for shm_name, count in Counter(stream.shm_name or f"tshm-{stream.name}" for stream in streams).items():
        if count > 1 and len({stream.name for stream in streams}) == len(streams):
            yield f"shm_name {shm_name!r} is used by {count} streams"
    for stream in streams:
        yield from _mark_problems(stream)
        yield from _target_problems(stream)
    widest: _Stream | None = None
    for stream in sorted(streams, key=lambda stream: stream.identifier_offset):
        if widest is not None and stream.identifier_offset < widest.identifier_offset + widest.max_targets:
            yield f"streams {widest.name!r} and {stream.name!r}: marks {_marks(widest)} and {_marks(stream)} overlap"
        if widest is None or _last_mark(stream) > _last_mark(widest):
            widest = stream


def _last_mark(stream: _Stream) -> int:
    return stream.identifier_offset + stream.max_targets


def _marks(stream: _Stream) -> str:
    return f"{stream.identifier_offset + 1}-{_last_mark(stream)}"


def _mark_problems(stream: _Stream) -> Iterator[str]:
    first, last = stream.identifier_offset + 1, _last_mark(stream)
    if last > MAX_MARK:
        yield f"stream {stream.name!r}: marks {_marks(stream)} do not fit 32 bits; lower identifier_offset"
    if first < RESERVED_TABLES.stop and last >= RESERVED_TABLES.start:
        yield (
            f"stream {stream.name!r}: marks {_marks(stream)} contain the reserved route tables 253-255;"
            f" raise identifier_offset to {RESERVED_TABLES.stop - 1} or more"
        )


def _target_problems(stream: _Stream) -> Iterator[str]:
    place = f"stream {stream.name!r}"
    for identifier, count in Counter(target.identifier for target in stream.targets).items():
        if count > 1:
            yield f"{place}: target {identifier} is listed {count} times"
    owners: dict[Ip, int] = {}
    for target in stream.targets:
        where = f"{place}: target {target.identifier}"
        if not 1 <= target.identifier <= stream.max_targets:
            yield f"{where}: identifier is outside 1 to max_targets ({stream.max_targets})"
        if not target.ips:
            yield f"{where}: ips must not be empty"
        for ipv4, family in ((True, "IPv4"), (False, "IPv6")):
            count = sum(is_ipv4(ip) == ipv4 for ip in target.ips)
            if count > 1:
                yield f"{where}: {count} {family} addresses; at most one is possible"
        for ip in set(target.ips):
            owner = owners.setdefault(ip, target.identifier)
            if owner != target.identifier:
                yield f"{where}: {format_ip(ip)} is the address of target {owner} already"


class FileSource(WatchedFile[SourceSnapshot | SourceLost]):
    """Watches a targets file and tells of every good list and of every failure.

    A failure is told once, until its reason changes; the last good list stays in force at the receiver.
    """

    def __init__(
        self, path: Path, emit: Callable[[SourceSnapshot | SourceLost], None], poll_interval_s: float = 0.5
    ) -> None:
        self._file = TargetsFile(path)
        super().__init__(path, self._read_file, emit, poll_interval_s=poll_interval_s)

    def _read_file(self) -> SourceSnapshot | SourceLost:
        try:
            return SourceSnapshot(streams=self._file.read())
        except TargetsFileError as error:
            return SourceLost(reason=str(error))
