"""Writes a recording: entries become lines, lines become files of bounded size, of which a bounded number is kept."""

import json
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lbguard import __version__
from lbguard.core.checkpoint import Node
from lbguard.core.config import EngineConfig
from lbguard.core.events import AddressSeen, KernelSnapshot, LinkRouteSeen, LinkSeen, NeighborSeen, SettingsChanged
from lbguard.core.model import Route, Rule
from lbguard.recording.codec import core_digest, encode, encode_item, encode_nodes, schema
from lbguard.recording.format import AFTER_LOSS, GOES_ON, GZIP, NS, PATTERN, START, SUFFIX, Header, Limits

SNAPSHOT_ITEMS: dict[str, type] = {
    "links": LinkSeen,
    "addresses": AddressSeen,
    "neighbors": NeighborSeen,
    "routes": Route,
    "rules": Rule,
    "link_routes": LinkRouteSeen,
}
"""The parts of a full view and what each consists of."""

_ITEMS_A_LINE = 64
_UNFLUSHED_BYTES = 32 * 1024
_ANCHOR_EVERY_S = 60.0
_LEVEL = 6
_WHEN_CALM, _AT_ONCE = 0.75, 0.9


class Entry(NamedTuple):
    """One entry of a recording, at a time of the engine's clock (seconds).

    `kind`, `payload`: `told` an event; `repair` None; `decide` its result; `packets` readings (stream, identifier,
    packets, held); `commit` (stream, slots changed, slots in all, seconds, error); `checkpoint` the state, and the
    number of entries lost before it.
    """

    kind: str
    now: float
    payload: Any = None


class Checkpoint(NamedTuple):
    """The payload of a `checkpoint`."""

    nodes: list[Node]
    lost: int = 0


def _text(row: object) -> str:
    return json.dumps(row, separators=(",", ":"))


class _File:
    """One file that is being written. `size`: bytes on disk."""

    def __init__(self, path: Path, unflushed_max: int) -> None:
        self.path = path
        self.size = 0
        # Addresses and names must not be readable by other users.
        self._stream = FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640), "w")
        self._compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, GZIP)
        self._lines: list[str] = []
        self._unflushed = 0
        self._unflushed_max = unflushed_max

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._unflushed += len(line) + 1
        if self._unflushed >= self._unflushed_max:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            text = "\n".join(self._lines) + "\n"
            self._lines.clear()
            self._unflushed = 0
            self._write(self._compressor.compress(text.encode()) + self._compressor.flush(zlib.Z_SYNC_FLUSH))

    def finish(self) -> None:
        try:
            self.flush()
            self._write(self._compressor.flush())
        finally:
            self._stream.close()

    def abandon(self) -> None:
        self._stream.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = self._stream.write(view)
            view = view[written:]
        self.size += len(data)


class RecordingWriter:
    """Writer of entries to files in a directory, in the calling thread.

    A new file begins with each `checkpoint`. `wanted` is the urgency of one: 1 at the next calm moment, 2 at once. A
    file at its size limit accepts nothing more, and `write` reports that.
    """

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        *,
        limits: Limits | None = None,
        facts: dict[str, Any] | None = None,
        wall_offset: Callable[[], float] = lambda: time.time() - time.monotonic(),
    ) -> None:
        """Set where and what; nothing is touched before the first entry."""
        self.bytes_written = 0
        self._directory = directory
        self._config = config
        self._limits = limits or Limits()
        self._facts = facts or {}
        self._wall_offset = wall_offset
        self._series = secrets.token_hex(4)
        self._number = 0
        self._file: _File | None = None
        self._whole = False
        self._finished_bytes = 0
        self._moment_ns: int | None = None
        self._anchored_at = 0.0
        self._view: dict[str, Sequence[Any]] = {}

    @property
    def path(self) -> Path | None:
        """The file being written, if any."""
        return self._file.path if self._file else None

    @property
    def wanted(self) -> int:
        """Return how urgently a checkpoint is wanted: 0 not, 1 at a calm moment, 2 at once."""
        size = self._file.size if self._file else 0
        share = size / self._limits.file_bytes
        return 2 if share >= _AT_ONCE else 1 if share >= _WHEN_CALM else 0

    def write(self, entry: Entry) -> bool:
        """Write an entry whole; false when the file is full and a checkpoint has to come first.

        Raises:
            OSError: the disk is full, or the directory cannot be written.
        """
        return all(list(self.pieces(entry)))

    def pieces(self, entry: Entry) -> Iterator[bool]:
        """Write an entry piece by piece, as `write` does, so that the caller can give way between two pieces."""
        if entry.kind == "checkpoint":
            begins = AFTER_LOSS if entry.payload.lost or not self._file else GOES_ON
            self._begin(entry.now, begins, entry.payload.lost)
            rows = (["n", *row] for row in encode_nodes(entry.payload.nodes))
            for row in chain(rows, (["N"],)):
                yield self._add(_text(row))
            self._whole = True
            return
        if self._file is None:
            if self._number:
                yield False
                return
            self._begin(entry.now, START, 0)
            self._whole = True
        assert self._file is not None
        if self._file.size >= self._limits.file_bytes:
            yield False
            return
        for line in self._lines(entry):
            yield self._add(line)

    def flush(self) -> None:
        """Bring everything to the disk (the kernel's, not the platter's)."""
        if self._file:
            self._file.flush()
            self.bytes_written = self._finished_bytes + self._file.size

    def close(self) -> None:
        """End the file properly."""
        if self._file:
            file, self._file = self._file, None
            try:
                file.finish()
            finally:
                self._finished_bytes += file.size
                self.bytes_written = self._finished_bytes

    def abandon(self) -> None:
        """Leave the file as it is, after an error: only a checkpoint begins another.

        A file that never came as far as the end of its beginning is of no use, and would push out one that is.
        """
        if self._file:
            self._finished_bytes += self._file.size
            self._file.abandon()
            if not (self._whole and self._file.size):
                with suppress(OSError):
                    self._file.path.unlink()
            self._file = None
        self._number = max(self._number, 1)

    def _add(self, line: str) -> bool:
        assert self._file is not None
        self._file.add(line)
        self.bytes_written = self._finished_bytes + self._file.size
        return True

    def _begin(self, now: float, begins: str, lost: int) -> None:
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._make_room()
        self._number += 1
        offset = self._wall_offset()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now + offset))
        name = f"lbguard-{stamp}-{self._series}-{self._number:06}{SUFFIX}"
        self._whole = False
        self._file = _File(self._directory / name, min(_UNFLUSHED_BYTES, self._limits.file_bytes // 8))
        header = Header(
            lbguard=__version__,
            core=core_digest(),
            series=self._series,
            number=self._number,
            begins=begins,
            now=now,
            offset=offset,
            lost=lost,
            facts=self._facts,
            types=schema(),
        )
        self._moment_ns = _nanoseconds(now)
        self._anchored_at = now
        self._view = {}
        self._add(_text(header.to_json()))
        self._add(_text(encode(self._config)))

    def _make_room(self) -> None:
        """Delete the oldest recordings, of earlier runs too, so that one more stays within the limit."""
        with os.scandir(self._directory) as entries:
            # A directory or the like with the name of a recording is not a recording.
            kept = sorted(
                entry.name
                for entry in entries
                if PATTERN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            )
        for name in kept[: max(0, len(kept) - self._limits.files + 1)]:
            (self._directory / name).unlink(missing_ok=True)

    # Lines

    def _lines(self, entry: Entry) -> Iterator[str]:
        yield from self._time(entry.now)
        match entry.kind:
            case "told" if type(entry.payload) is KernelSnapshot:
                yield from self._snapshot(entry.payload)
            case "told" if type(entry.payload) is SettingsChanged:
                # A row of its own: its reader finds the fields by the names that the file gives.
                self._config = self._config.with_live(entry.payload.config)
                yield _text(encode(entry.payload.config))
            case "told":
                yield _text(encode(entry.payload))
            case "repair":
                yield '["r"]'
            case "decide":
                yield '["d"]'
                for said in entry.payload:
                    yield _text(["=", encode(said)])
            case "packets":
                for start in range(0, len(entry.payload), _ITEMS_A_LINE):
                    yield _text(["k", *entry.payload[start : start + _ITEMS_A_LINE]])
            case "commit":
                yield _text(["c", *entry.payload])

    def _time(self, now: float) -> Iterator[str]:
        moment = _nanoseconds(now)
        if moment is None:
            yield _text(["t", now])
        elif self._moment_ns is None:
            # Nothing to count from: the time in full, as nanoseconds since zero would not tell it from a difference.
            yield _text(["t", float(now)])
        elif moment != self._moment_ns:
            yield f'["t",{moment - self._moment_ns}]'
        self._moment_ns = moment
        if now - self._anchored_at >= _ANCHOR_EVERY_S:
            self._anchored_at = now
            yield _text(["w", self._wall_offset()])

    def _snapshot(self, event: KernelSnapshot) -> Iterator[str]:
        for name, kind in SNAPSHOT_ITEMS.items():
            items: tuple[Any, ...] = getattr(event, name)
            before = self._view.get(name, ())
            self._view[name] = items
            if items == before:
                if items:
                    yield _text(["s", name, f"0+{len(items)}"])
                continue
            line: list[Any] = ["s", name]
            for item in _by_reference(items, before):
                line.append(item if isinstance(item, str) else encode_item(kind, item))
                if len(line) > _ITEMS_A_LINE:
                    yield _text(line)
                    line = ["s", name]
            if len(line) > 2:
                yield _text(line)
        yield '["S"]'


def _by_reference(items: Sequence[Any], before: Sequence[Any]) -> Iterator[Any]:
    """Return items, with each run that the previous sequence contains replaced by its position: `FIRST+COUNT`."""
    places = {item: place for place, item in enumerate(before)}
    first = count = 0
    for item in items:
        place = places.get(item)
        if count and place == first + count:
            count += 1
            continue
        if count:
            yield f"{first}+{count}"
            count = 0
        if place is None:
            yield item
        else:
            first, count = place, 1
    if count:
        yield f"{first}+{count}"


def _nanoseconds(now: float) -> int | None:
    """Return a moment in whole nanoseconds, if exactly the same number comes back from that."""
    moment = round(now * NS)
    return moment if moment / NS == now else None
