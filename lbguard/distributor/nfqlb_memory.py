"""The memory that nfqlb keeps for a stream: its layout, who may open it, and how to change it under a running reader.

`nfqlb init` makes one file per stream under /dev/shm; the packet path maps it read-only and looks packets up in it.
The file is native-endian 4-byte fields (nfqlb's `shmem.c`, `maglevdyn.c`)::

    int own_fwmark; unsigned M, N, len;      header; len counts the bytes after own_fwmark, or more
    int lookup[M];                           slot -> target index, -1 when nobody answers
    unsigned permutation[N][M];              rows, written once by init
    int active[N];                           target index -> fwmark, negative when inactive

A packet is forwarded with `active[lookup[hash % M]]`, with no lock anywhere. The stock commands empty the whole lookup
array and refill it in place, so packets that come meanwhile are dropped. Here the new table is computed aside, and only
the slots that differ are stored, in an order in which every intermediate state forwards correctly.

What is read is read with pread(2): should another process truncate the file (`nfqlb init` on an existing name does),
a read comes back short and is reported, where touching the mapping would end this process with SIGBUS. The mapping is
used for stores alone, right after a check that the file is still the one that was validated.
"""

import errno
import itertools
import mmap
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal, NamedTuple

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableCalculator, TableKind

SHM_DIR = Path("/dev/shm")
"""Where POSIX shared memory lives on Linux."""

FIELD_BYTES = 4
HEADER_BYTES = 4 * FIELD_BYTES
ROW_CHUNK_BYTES = 4096
"""How much of a row is read at a time: most of a row is never looked at when there are many targets."""

MARK_MAX = 2**31 - 1
"""nfqlb holds fwmarks as signed integers; a negative one means inactive."""


class FileIdentity(NamedTuple):
    """What tells one incarnation of a memory file from the next.

    `nfqlb init` on an existing name truncates and rewrites the same inode, so the inode is not enough; the time of
    modification tells. Stores through a mapping may change that time too (they do when they are the first touch of a
    page), so whoever has stored takes the identity anew. The stores of others then look like a new incarnation, which
    does no harm: the table is read and put right again.
    """

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        """Take the identity from a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def change_since(self, path: Path) -> str:
        """Say what happened to the file since this identity was taken; empty when it is still the same."""
        try:
            now = FileIdentity.of(path.stat())
        except OSError as error:
            return f"{path} was removed" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
        if now == self:
            return ""
        same_file = (now.device, now.inode) == (self.device, self.inode)
        return f"{path} was initialised anew or written by another process" if same_file else f"{path} was replaced"


def memory_path(shm_dir: Path, stream: StreamSpec) -> Path:
    """Return the file of a stream's memory: its `shm_name`, or `tshm-<stream>`.

    Raises:
        DistributorError: the name would leave the directory.
    """
    name = stream.shm_name or f"tshm-{stream.name}"
    if "/" in name or "\0" in name or name in {".", ".."}:
        raise DistributorError(f"stream {stream.name}: {name!r} is no name of a shared memory: it must be a plain name")
    return shm_dir / name


def check_identifiers(table: StreamTable, room: int) -> None:
    """Check that a table fits a memory with room for so many targets.

    Raises:
        DistributorError: an identifier or a fwmark is out of range.
    """
    for identifier in table.registered | table.active:
        if not 1 <= identifier <= room:
            raise DistributorError(f"target {table.stream.name}/{identifier}: the memory has identifiers 1 to {room}")
        if not 0 <= table.stream.mark(identifier) <= MARK_MAX:
            raise DistributorError(
                f"target {table.stream.name}/{identifier}: nfqlb takes fwmarks 0 to {MARK_MAX},"
                f" not {table.stream.mark(identifier)}"
            )


def check_room(path: Path, stream: StreamSpec, room: int) -> None:
    """Check that a memory has room for the targets of its stream.

    Raises:
        DistributorError: N is smaller than `max_targets`.
    """
    if room < stream.max_targets:
        raise DistributorError(
            f"{path} has room for N={room} targets, and stream {stream.name} may have {stream.max_targets}:"
            f" make it anew (nfqlb init --N={stream.max_targets}) or lower max_targets"
        )


class _Layout(NamedTuple):
    """Where things are in a memory: byte offsets, from the number of slots and of targets."""

    slots: int
    targets: int

    @property
    def lookup(self) -> int:
        return HEADER_BYTES

    @property
    def permutation(self) -> int:
        return self.lookup + FIELD_BYTES * self.slots

    @property
    def active(self) -> int:
        return self.permutation + FIELD_BYTES * self.slots * self.targets

    @property
    def end(self) -> int:
        return self.active + FIELD_BYTES * self.targets


class _Rows:
    """The permutation rows, read from the file piece by piece as they are asked for."""

    def __init__(self, path: Path, descriptor: int, layout: _Layout) -> None:
        self._path = path
        self._descriptor = descriptor
        self._layout = layout

    @property
    def size(self) -> int:
        return self._layout.slots

    def row(self, index: int) -> Iterable[int]:
        return itertools.chain.from_iterable(self._pieces(index))

    def _pieces(self, index: int) -> Iterator[list[int]]:
        length = FIELD_BYTES * self._layout.slots
        start = self._layout.permutation + index * length
        for offset in range(start, start + length, ROW_CHUNK_BYTES):
            count = min(ROW_CHUNK_BYTES, start + length - offset) // FIELD_BYTES
            yield _read(self._path, self._descriptor, "I", offset, count)


class StreamMemory:
    """One stream's memory file, opened and validated. One thread at a time may use it."""

    def __init__(self, path: Path, stream: StreamSpec, kind: TableKind, *, read_only: bool) -> None:
        """Open the file; with `read_only` it need not be writable, and `write` fails.

        Raises:
            DistributorError: it is missing, not accessible, malformed or too small; the message says what to do.
        """
        self.path = path
        self._descriptor = _open(path, read_only=read_only)
        self._views: list[memoryview] = []
        self._mapping: mmap.mmap | None = None
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DistributorError(f"{path} is no regular file, so it is no memory of nfqlb")
            self.identity = FileIdentity.of(status)
            self.layout = self._validated_layout()
            check_room(path, stream, self.layout.targets)
            if not read_only:
                self._mapping = _map(path, self._descriptor, self.identity.size)
        except BaseException:
            self.close()
            raise
        self._calculator = TableCalculator(_Rows(path, self._descriptor, self.layout), kind)

    def _validated_layout(self) -> _Layout:
        """Trust nothing in the header before it agrees with the size of the file."""
        size = self.identity.size
        if size < HEADER_BYTES:
            raise DistributorError(f"{self.path} is truncated: {size} bytes, less than its header of {HEADER_BYTES}")
        _own, slots, targets, length = self._read("I", 0, 4)
        layout = _Layout(slots, targets)
        if slots < 2 or not 1 <= targets <= slots:
            raise DistributorError(f"{self.path} is malformed: M={slots} slots, N={targets} targets")
        if layout.end > size:
            raise DistributorError(
                f"{self.path} is truncated: {size} bytes, and M={slots}, N={targets} take {layout.end}"
            )
        # The length field does not count own_fwmark, the first field of the file.
        if not layout.end <= length + FIELD_BYTES <= size:
            raise DistributorError(
                f"{self.path} is malformed: its length field says {length}, and {layout.end - FIELD_BYTES}"
                f" to {size - FIELD_BYTES} is possible"
            )
        # `nfqlb init` writes the header first and the rows in order. Two slots of one row are never equal.
        tail = self._read("I", layout.active - 2 * FIELD_BYTES, 2)
        if tail[0] == tail[1]:
            raise DistributorError(f"{self.path} is not initialised yet: its last row is empty")
        return layout

    def active(self) -> list[int]:
        """Return the fwmark of every target index, negative when inactive."""
        return self._read("i", self.layout.active, self.layout.targets)

    def lookup(self) -> list[int]:
        """Return the target index of every slot, -1 when nobody answers."""
        return self._read("i", self.layout.lookup, self.layout.slots)

    def table(self, registered: AbstractSet[int], active: AbstractSet[int]) -> list[int]:
        """Compute the target index of every slot from the rows in the memory, for sets of target indexes.

        Raises:
            DistributorError: the rows are no permutations.
        """
        try:
            return self._calculator.table(registered, active)
        except ValueError as error:
            raise DistributorError(f"{self.path} is malformed: {error}") from error

    def write(self, lookup: Sequence[int], active: Sequence[int]) -> int:
        """Store what differs and return how many slots did.

        Every store is an aligned 4-byte one: `memoryview.cast("i")` copies a whole int, which compiles to one store
        and is carried out in one piece, so a reader sees the old or the new value and never a mixture. (A slice
        assignment would be a memmove, which promises nothing of the kind.)

        The order: marks of newly active targets, then slots, then the marks of the withdrawn ones. No slot ever points
        at an index without a mark, except for the reader that looked its slot up before it was re-pointed and comes
        for the mark after it was cleared; it drops that one packet of a target that is being withdrawn anyway. (A
        machine with weaker ordering than x86-64 may show two of these stores the other way round for nanoseconds, at
        the same price.)

        Raises:
            DistributorError: the file was opened to be read only, or is no longer the one that was validated.
        """
        if self._mapping is None:
            raise DistributorError(f"{self.path} was opened to be read only")
        old_active, old_lookup = self.active(), self.lookup()
        changed = [slot for slot, (old, new) in enumerate(zip(old_lookup, lookup, strict=True)) if old != new]
        marked = [index for index, mark in enumerate(active) if mark >= 0 and mark != old_active[index]]
        cleared = [index for index, mark in enumerate(active) if mark < 0 and mark != old_active[index]]
        if not (changed or marked or cleared):
            return 0
        if change := self.identity.change_since(self.path):
            raise DistributorError(f"{change} during a commit")
        lookup_view, active_view = self._stores()
        for index in marked:
            active_view[index] = active[index]
        for slot in changed:
            lookup_view[slot] = lookup[slot]
        for index in cleared:
            active_view[index] = active[index]
        # In this order, so that a file initialised anew before or after the first line is noticed by one of the two.
        self.identity = FileIdentity.of(os.fstat(self._descriptor))
        if self.active() != list(active):
            raise DistributorError(f"{self.path} was initialised anew or written by another process during a commit")
        return len(changed)

    def close(self) -> None:
        """Unmap and close; the memory stays as it is."""
        for view in reversed(self._views):
            view.release()
        self._views = []
        if self._mapping is not None:
            self._mapping.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _stores(self) -> tuple[memoryview, memoryview]:
        """Return the lookup and the active array as views of the mapping."""
        if not self._views:
            assert self._mapping is not None
            layout = self.layout
            whole = memoryview(self._mapping)[: layout.end].cast("i")
            self._views = [
                whole,
                whole[layout.lookup // FIELD_BYTES : layout.permutation // FIELD_BYTES],
                whole[layout.active // FIELD_BYTES : layout.end // FIELD_BYTES],
            ]
        return self._views[1], self._views[2]

    def _read(self, typecode: Literal["i", "I"], offset: int, count: int) -> list[int]:
        return _read(self.path, self._descriptor, typecode, offset, count)


def _open(path: Path, *, read_only: bool) -> int:
    flags = os.O_RDONLY if read_only else os.O_RDWR
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise DistributorError(
            f"{path} does not exist: nfqlb has not made it yet, or this container does not share the load balancer's"
            " memory volume at /dev/shm"
        ) from error
    except PermissionError as error:
        raise DistributorError(_permission_remedy(path)) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DistributorError(f"{path} is a symbolic link, so it is no memory of nfqlb") from error
        raise DistributorError(f"{path} cannot be opened: {error.strerror}") from error


def _map(path: Path, descriptor: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, size)
    except (OSError, ValueError) as error:
        # ValueError: the file has become shorter since its size was read.
        raise DistributorError(f"{path} cannot be mapped: {error}") from error


def _permission_remedy(path: Path) -> str:
    uid = os.geteuid()
    try:
        status = path.stat()
    except OSError as error:
        return f"{path} cannot be reached by uid {uid}: {error.strerror}"
    return (
        f"{path} is owned by uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}, and this process runs as"
        f" uid {uid}: run it as uid {status.st_uid}, or give it the capability DAC_OVERRIDE"
    )


def _read(path: Path, descriptor: int, typecode: Literal["i", "I"], offset: int, count: int) -> list[int]:
    """Read 4-byte fields; a file that another process has made shorter is an error, not a crash."""
    data = os.pread(descriptor, count * FIELD_BYTES, offset)
    if len(data) != count * FIELD_BYTES:
        raise DistributorError(f"{path} is truncated: another process has made it shorter")
    return memoryview(data).cast(typecode).tolist()
