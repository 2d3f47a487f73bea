"""Reads recordings as a stream of typed items: a file of any size takes a few hundred kilobytes of memory."""

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lbguard.core.checkpoint import CheckpointError, Node
from lbguard.core.config import EngineConfig
from lbguard.core.events import Event, KernelSnapshot, SettingsChanged
from lbguard.recording.codec import CodecError, Decoder, decode_item, decode_nodes
from lbguard.recording.format import (
    GZIP,
    NS,
    SUFFIX,
    VERSION_WITHOUT_LEARNING,
    EmptyFileError,
    Header,
    RecordingError,
)
from lbguard.recording.writer import SNAPSHOT_ITEMS
from lbguard.settings.bounded_file import FileError, open_regular_file

_CHUNK = 64 * 1024
_LINE_MAX = 16 * 2**20
_MAGIC = b"\x1f\x8b"


class Began(NamedTuple):
    """A file begins. `nodes`: the engine's state there, None where it begins with a new engine."""

    header: Header
    config: EngineConfig
    nodes: list[Node] | None
    path: Path


class Told(NamedTuple):
    """An event was given to the engine."""

    now: float
    event: Event


class Repaired(NamedTuple):
    """The engine was called for repairs."""

    now: float


class Decided(NamedTuple):
    """Result of a call of `decide`."""

    now: float
    said: list[object]


class PacketsRead(NamedTuple):
    """Packets so far by (stream, identifier): given to the target, and of these dropped while held."""

    now: float
    readings: dict[tuple[str, int], tuple[int, int]]


class Committed(NamedTuple):
    """A table was committed (or not: `error`): slots changed, slots in all, seconds."""

    now: float
    stream: str
    slots_changed: int
    slots_total: int
    duration_s: float
    error: str


class ClockSet(NamedTuple):
    """Wall clock minus the engine's clock, seconds, from here on."""

    now: float
    offset: float


class Ended(NamedTuple):
    """A file ended. `torn`: not properly, so that a second or so may be missing."""

    path: Path
    torn: bool


Item = Began | Told | Repaired | Decided | PacketsRead | Committed | ClockSet | Ended


class _Lines:
    """The lines of one file. `offset`: compressed bytes read so far; `number`: lines so far."""

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._on_read = on_read
        self.offset = 0
        self.number = 0
        self.torn = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            with os.fdopen(open_regular_file(self.path), "rb") as stream:
                yield from self._split(iter(lambda: stream.read(_CHUNK), b""))
        except FileError as error:
            raise RecordingError(f"{self.path}: {error}") from None
        except OSError as error:
            raise RecordingError(f"{self.path}: {error.strerror}") from None

    def _split(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        rest = b""
        for text in self._texts(chunks):
            *lines, rest = (rest + text).split(b"\n")
            for line in lines:
                self.number += 1
                yield line
            if len(rest) > _LINE_MAX:
                raise self.damaged("a line has no end")

    def _texts(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        inflater = zlib.decompressobj(GZIP)
        for chunk in chunks:
            if not self.offset and not chunk.startswith(_MAGIC[: len(chunk)]):
                raise RecordingError(
                    f"{self.path}: not a recording of lbguard; give files made with recording.enabled=true"
                )
            waiting = chunk
            # A bound for the text at a time, even for highly compressed chunks.
            while waiting:
                before = inflater.copy()
                try:
                    text = inflater.decompress(waiting, _CHUNK)
                except zlib.error as error:
                    yield from self._up_to_damage(before, waiting)
                    raise self.damaged(f"the packed data is damaged ({error})") from None
                yield text
                waiting = inflater.unconsumed_tail
            self.offset += len(chunk)
            if self._on_read is not None:
                self._on_read(len(chunk))
        self.torn = not inflater.eof

    def _up_to_damage(self, inflater: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
        """Yield the text before the damage, for which the data goes in byte by byte."""
        for place in range(len(data)):
            try:
                text = inflater.decompress(data[place : place + 1])
            except zlib.error:
                self.offset += place
                return
            yield text

    def damaged(self, what: str) -> RecordingError:
        where = f"line {self.number}, about byte {self.offset}"
        return RecordingError(f"{self.path}: {where}: {what}; the file is damaged there, what comes before can be used")


def read_header(path: Path) -> Header:
    """Read the first line of a file.

    Raises:
        RecordingError: it cannot be read, or is no recording that this version reads.
    """
    lines = _Lines(path)
    return _header(lines, iter(lines))


def _header(lines: _Lines, stream: Iterator[bytes]) -> Header:
    first = next(stream, None)
    if first is None:
        raise EmptyFileError(f"{lines.path}: nothing is in it; the service ended before it wrote a line")
    try:
        values = json.loads(first)
    except ValueError:
        raise RecordingError(f"{lines.path}: not a recording of lbguard: its first line is not JSON") from None
    return Header.from_json(values, lines.path)


def read_file(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[Item]:
    """Read a whole file; a torn end is not an error, even if nothing comes before it.

    Args:
        path: the file.
        on_read: called with how many more bytes of it were read.

    Raises:
        RecordingError: the file is damaged, or no recording that this version reads.
    """
    lines = _Lines(path, on_read)
    stream = iter(lines)
    try:
        parser = _Parser(lines, _header(lines, stream))
    except EmptyFileError:
        yield Ended(path, True)
        return
    yield from parser.items(stream)
    yield Ended(path, lines.torn)


class _Parser:
    """Turns lines into items."""

    def __init__(self, lines: _Lines, header: Header) -> None:
        self._lines = lines
        self._header = header
        self._now = header.now
        self._parts: dict[str, list[Any]] = {}
        self._view: dict[str, list[Any]] = {}
        try:
            self._decoder = Decoder(header.types)
        except CodecError as error:
            raise RecordingError(
                f"{lines.path}: written by lbguard {header.lbguard}: {error}; read it with that version"
            ) from None

    def items(self, stream: Iterator[bytes]) -> Iterator[Item]:
        rows = self._rows(stream)
        config = self._decode(next(rows, None))
        if not isinstance(config, EngineConfig):
            raise self._lines.damaged("the configuration of the engine is missing")
        if self._header.version == VERSION_WITHOUT_LEARNING and config.affinity:
            config = dataclasses.replace(config, learn_s=0.0)
        nodes: list[list[Any]] = []
        begun = False
        # A `decide` is complete when the next line is not an `=`.
        decided: Decided | None = None
        for row in rows:
            kind = row[0]
            if kind == "n":
                nodes.append(row[1:])
                continue
            if not begun:
                begun = True
                yield Began(self._header, config, self._nodes(nodes) if kind == "N" else None, self._lines.path)
            if kind == "=":
                if decided is None or len(row) != 2:
                    raise self._lines.damaged("what was said belongs to no decision")
                decided.said.append(self._decode(row[1]))
                continue
            if decided is not None:
                yield decided
                decided = None
            if kind == "d":
                decided = Decided(self._now, [])
            else:
                item = self._item(kind, row)
                if item is not None:
                    yield item
        if not begun:
            # Torn before the state was whole: nothing in it can be used.
            return
        if decided is not None and not self._lines.torn:
            yield decided

    def _rows(self, stream: Iterator[bytes]) -> Iterator[list[Any]]:
        for line in stream:
            try:
                row = json.loads(line)
            except ValueError:
                raise self._lines.damaged("a line that is not JSON") from None
            if not isinstance(row, list) or not row or not isinstance(row[0], str):
                raise self._lines.damaged("a line of an unknown form")
            yield row

    def _item(self, kind: str, row: list[Any]) -> Item | None:
        try:
            match kind:
                case "t":
                    self._pass(row[1])
                    return None
                case "r":
                    return Repaired(self._now)
                case "s":
                    self._part(row[1], row[2:])
                    return None
                case "S":
                    return Told(self._now, self._whole_view())
                case "k":
                    return PacketsRead(self._now, {(s, i): (packets, held) for s, i, packets, held in row[1:]})
                case "c":
                    return Committed(self._now, *row[1:])
                case "w":
                    return ClockSet(self._now, float(row[1]))
                case "N":
                    return None
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise self._lines.damaged(f"a line {kind!r} that cannot be read ({error})") from None
        event = self._decode(row)
        return Told(self._now, SettingsChanged(config=event) if isinstance(event, EngineConfig) else event)

    def _pass(self, time: float) -> None:
        if isinstance(time, float):
            if not math.isfinite(time):
                raise ValueError("not a moment")
            self._now = time
        else:
            self._now = (round(self._now * NS) + time) / NS

    def _part(self, name: str, items: Sequence[Any]) -> None:
        kind, before = SNAPSHOT_ITEMS[name], self._view.get(name, [])
        into = self._parts.setdefault(name, [])
        for item in items:
            if isinstance(item, str):
                first, count = map(int, item.split("+"))
                if first + count > len(before):
                    raise ValueError("refers to what was not in the view before")
                into += before[first : first + count]
            else:
                into.append(decode_item(kind, item))

    def _whole_view(self) -> KernelSnapshot:
        self._view, self._parts = self._parts, {}
        return KernelSnapshot(**{name: tuple(items) for name, items in self._view.items()})

    def _nodes(self, rows: list[list[Any]]) -> list[Node]:
        try:
            return decode_nodes(rows)
        except CheckpointError as error:
            raise self._lines.damaged(f"the state at its beginning: {error}") from None

    def _decode(self, row: Any) -> Any:
        try:
            return self._decoder.decode(row) if row else None
        except CodecError as error:
            raise self._lines.damaged(str(error)) from None


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that paths name, in the order in which they were written; a directory means all files in it.

    An empty file comes last if there are others: a running service has just begun it.

    Raises:
        RecordingError: a path does not exist, is no recording, or there is none.
    """
    found: dict[Path, Header] = {}
    empty: dict[Path, EmptyFileError] = {}
    for path in paths:
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise RecordingError(f"{path}: no recording (*{SUFFIX}) is in it; is recording.enabled true?")
        for file in inside:
            try:
                found[file] = read_header(file)
            except EmptyFileError as error:
                empty[file] = error
    if not found and empty:
        raise next(iter(empty.values()))
    # Within a series the engine's clock is continuous, even if the wall clock was set.
    starts: dict[str, float] = {}
    for header in found.values():
        wall = header.now + header.offset
        starts[header.series] = min(wall, starts.get(header.series, wall))
    in_order = sorted(found, key=lambda file: (starts[found[file].series], found[file].series, found[file].number))
    return [*in_order, *sorted(empty)]
