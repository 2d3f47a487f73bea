"""Source `file`: streams and targets from a YAML file that is read again when it changes (`watched_file.py`)."""

import bisect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from lbguard.core.addr import Ip, format_ip, is_ipv4, prefix_overlaps
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import DEFAULT_OFFSET, MAX_MARK, RESERVED_TABLES, StreamSpec, TargetSpec
from lbguard.settings.yaml_file import (
    MAX_PROBLEMS,
    SHOWN_PROBLEMS,
    FileError,
    YamlError,
    YamlFileError,
    parse_yaml,
    read_yaml,
)
from lbguard.sources.entries import StreamEntry, TargetEntry, TargetsDocument, Vip
from lbguard.sources.flavour import Flavour
from lbguard.sources.watched_file import POLL_INTERVAL_S, STILL_S, WatchedFile


class TargetsFileError(YamlFileError):
    """The file cannot be used. `problems` holds every reason with its place (stream, target), the text the first."""


Item = TypeVar("Item")

_VIPS = TypeAdapter(tuple[Vip, ...])
_TARGETS = TypeAdapter(tuple[TargetEntry, ...])
_AT_ONCE = 1000
_SWITCHES = ("draining",)


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
            content = read_yaml(self.path)
        except FileError as error:
            raise TargetsFileError(self.path, [str(error)]) from None
        return self.parse(content)

    def parse(self, content: bytes) -> tuple[StreamSpec, ...]:
        """Parse and check the content of a file.

        Raises:
            TargetsFileError: it cannot be used; every problem is listed. No content raises another exception.
        """
        streams, problems = _parsed(content)
        if problems:
            raise TargetsFileError(self.path, list(problems))
        return streams


@lru_cache(maxsize=1)
def _parsed(content: bytes) -> tuple[tuple[StreamSpec, ...], tuple[str, ...]]:
    """Return streams and problems; the check of the host and the source read the same file at the start."""
    try:
        streams, problems = _read(parse_yaml(content, switches=_SWITCHES))
        problems = problems or list(islice(_problems(streams), MAX_PROBLEMS))
    except YamlError as error:
        problems = [str(error)]
    except Exception as error:  # on any error the last good list stays in force
        problems = [f"cannot be used: {type(error).__name__}: {str(error)[:200]}"]
    return () if problems else tuple(_spec(stream) for stream in streams), tuple(problems)


def _read(raw: Any) -> tuple[list[StreamEntry], list[str]]:
    """Return the streams and their targets, and the problems of single values."""
    if not isinstance(raw, dict):
        return [], ["holds no 'streams:' list"]
    streams: list[StreamEntry] = []
    problems: list[str] = []
    try:
        listed = TargetsDocument.model_validate(raw).streams
    except ValidationError as error:
        return [], list(_explain(error, raw))
    for number, entry in enumerate(listed):
        try:
            stream = StreamEntry.model_validate(entry)
        except ValidationError as error:
            problems += _explain(error, raw, ("streams", number))
        else:
            vips = _in_parts(_VIPS, stream.vips, raw, ("streams", number, "vips"), problems)
            targets = _in_parts(_TARGETS, stream.targets, raw, ("streams", number, "targets"), problems)
            streams.append(stream.model_copy(update={"vips": vips, "targets": targets}))
        if len(problems) >= MAX_PROBLEMS:
            break
    return streams, problems


def _in_parts(
    adapter: TypeAdapter[tuple[Item, ...]],
    items: Sequence[Any],
    raw: dict[str, Any],
    place: tuple[str | int, ...],
    problems: list[str],
) -> tuple[Item, ...]:
    """Return the items of a list; no other thread runs while a part is checked. Too many problems end it."""
    good: list[Item] = []
    for first in range(0, len(items), _AT_ONCE):
        try:
            good += adapter.validate_python(items[first : first + _AT_ONCE])
        except ValidationError as error:
            problems += _explain(error, raw, place, first)
            if len(problems) >= MAX_PROBLEMS:
                break
    return tuple(good)


def _memory_of(stream: StreamEntry) -> str:
    """Return the name of a stream's memory."""
    return stream.shm_name or Flavour.MERIDIO.memory(stream.name)


def _spec(stream: StreamEntry) -> StreamSpec:
    return StreamSpec(
        name=stream.name,
        max_targets=stream.max_targets,
        identifier_offset=stream.identifier_offset,
        vips=stream.vips,
        shm_name=_memory_of(stream),
        targets=tuple(
            TargetSpec(identifier=target.identifier, ips=target.ips, draining=target.draining)
            for target in stream.targets
        ),
    )


def _explain(
    error: ValidationError, raw: dict[str, Any], place: tuple[str | int, ...] = (), first: int = 0
) -> Iterator[str]:
    """Return the place of each wrong value, by the names of stream and target rather than by list positions.

    Args:
        error: the validation error.
        raw: the whole document.
        place: the location of the checked part in it.
        first: the index of its first item, where it is a part of a list.
    """
    words = {
        "missing": "is missing",
        "extra_forbidden": "unknown key",
        "tuple_type": "must be a list",
        "bool_type": "must be true or false",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "model_type": "must be a mapping",
        "model_attributes_type": "must be a mapping",
    }
    for detail in error.errors(include_url=False):
        where, key = "", ""
        node: Any = raw
        for part in _location(detail["loc"], place, first):
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                node = None
            if isinstance(part, str):
                key = part
            elif key in {"streams", "targets"}:
                label = "name" if key == "streams" else "identifier"
                named = node.get(label) if isinstance(node, dict) else None
                shown = repr(named) if isinstance(named, str | int) else f"number {part + 1}"
                where += f"{key[:-1]} {shown}: "
                key = ""
            else:
                key += f"[{part + 1}]"
        message = words.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
        yield f"{where}{key} {message}".replace("  ", " ").strip()


def _location(inner: tuple[str | int, ...], place: tuple[str | int, ...], first: int) -> tuple[str | int, ...]:
    if inner and isinstance(inner[0], int):
        inner = (inner[0] + first, *inner[1:])
    return place + inner


def _problems(streams: Sequence[StreamEntry]) -> Iterator[str]:
    for name, count in Counter(stream.name for stream in streams).items():
        if count > 1:
            yield f"stream {name!r}: the name is used {count} times"
    for shm_name, count in Counter(_memory_of(stream) for stream in streams).items():
        if count > 1 and len({stream.name for stream in streams}) == len(streams):
            yield f"shm_name {shm_name!r} is used by {count} streams"
    for stream in streams:
        yield from _mark_problems(stream)
        yield from _target_problems(stream)
    yield from _overlaps(streams)
    vips = [(vip, stream.name) for stream in streams for vip in stream.vips]
    for vip, name, other, owner in prefix_overlaps(vips):
        part = "" if vip == other else f", which is part of {other}"
        yield f"streams {owner!r} and {name!r} share VIP {vip}{part}; keep it in one of them, for a packet is for one"


def _overlaps(streams: Sequence[StreamEntry]) -> Iterator[str]:
    """Name streams that share marks, and for the later of each two an identifier_offset that is free."""
    taken = sorted((stream.identifier_offset, _last_mark(stream)) for stream in streams)
    widest: StreamEntry | None = None
    shown = 0
    for stream in sorted(streams, key=lambda stream: stream.identifier_offset):
        if widest is not None and stream.identifier_offset < _last_mark(widest):
            # The search takes time in proportion to the number of streams: it is made for the shown problems only.
            free = _free_offset(taken, stream.max_targets) if shown < SHOWN_PROBLEMS else None
            shown += 1
            remedy = "" if free is None else f"; set identifier_offset of {stream.name!r} to {free}"
            marks = f"marks {_marks(widest)} and {_marks(stream)} overlap"
            yield f"streams {widest.name!r} and {stream.name!r}: {marks}{remedy}"
        if widest is None or _last_mark(stream) > _last_mark(widest):
            widest = stream


def _free_offset(taken: list[tuple[int, int]], size: int) -> int | None:
    """Return and reserve the lowest offset from 5000 up with room for a stream; None when there is none."""
    offset = DEFAULT_OFFSET
    for first, last in taken:
        if offset < last and first < offset + size:
            offset = last
    if offset + size > MAX_MARK:
        return None
    bisect.insort(taken, (offset, offset + size))
    return offset


def _last_mark(stream: StreamEntry) -> int:
    return stream.identifier_offset + stream.max_targets


def _marks(stream: StreamEntry) -> str:
    return f"{stream.identifier_offset + 1}-{_last_mark(stream)}"


def _mark_problems(stream: StreamEntry) -> Iterator[str]:
    first, last = stream.identifier_offset + 1, _last_mark(stream)
    if last > MAX_MARK:
        yield f"stream {stream.name!r}: marks {_marks(stream)} do not fit 32 bits; lower identifier_offset"
    if first < RESERVED_TABLES.stop and last >= RESERVED_TABLES.start:
        yield (
            f"stream {stream.name!r}: marks {_marks(stream)} contain the reserved route tables 253-255;"
            f" raise identifier_offset to {RESERVED_TABLES.stop - 1} or more"
        )


def _target_problems(stream: StreamEntry) -> Iterator[str]:
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


def only_adds(new: SourceSnapshot, old: SourceSnapshot) -> bool:
    """Return whether a list contains an earlier one unchanged."""
    streams: Mapping[str, StreamSpec] = {stream.name: stream for stream in new.streams}
    return all(was.name in streams and _holds(streams[was.name], was) for was in old.streams)


def _holds(now: StreamSpec, was: StreamSpec) -> bool:
    kept = replace(was, vips=now.vips, targets=now.targets)
    return now == kept and {*was.vips} <= {*now.vips} and {*was.targets} <= {*now.targets}


class FileSource(WatchedFile[SourceSnapshot, SourceLost]):
    """Source that reports every good list of a targets file, and every failure.

    A failure is reported once, until its reason changes; the last good list stays in force at the receiver.
    """

    def __init__(
        self,
        path: Path,
        emit: Callable[[SourceSnapshot | SourceLost], None],
        *,
        poll_interval_s: float = POLL_INTERVAL_S,
        still_s: float = STILL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        file = TargetsFile(path)
        super().__init__(
            path,
            lambda content: SourceSnapshot(streams=file.parse(content)),
            lambda reason: SourceLost(reason=reason),
            only_adds,
            emit,
            poll_interval_s=poll_interval_s,
            still_s=still_s,
            clock=clock,
        )
