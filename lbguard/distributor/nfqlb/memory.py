"""Memory file of nfqlb for a stream: its layout, its validation, and changes to it under a running reader.

`nfqlb init` makes one file per stream under /dev/shm; the packet path maps it read-only and looks packets up in it.
The file is native-endian 4-byte fields (nfqlb's `shmem.c`, `maglevdyn.c`)::

    int own_fwmark; unsigned M, N, len;      header; len counts the bytes after own_fwmark, or more
    int lookup[M];                           slot -> target index, -1 when there is none
    unsigned permutation[N][M];              rows, written once by init
    int active[N];                           target index -> fwmark, negative when inactive

A packet is forwarded with `active[lookup[hash % M]]`, with no lock anywhere. The stock commands empty the whole lookup
array and refill it in place, so packets that arrive meanwhile are dropped. Here the new table is computed separately,
and only the slots that differ are stored, in an order in which every intermediate state forwards correctly.

This process never accesses the mapping itself: if another process truncates the file (`nfqlb init` on an existing name
does), SIGBUS would end this process. Reads use pread(2). Stores go to a private file first, from which preadv(2) copies
them into the mapping: the kernel writes, and fails with EFAULT where no page is left. (pwrite(2) would extend a
truncated file again, with zeros.)
"""

import errno
import itertools
import mmap
import operator
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal, NamedTuple

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableCalculator, TableKind

SHM_DIR = Path("/dev/shm")
"""Directory of POSIX shared memory on Linux."""

SLOTS_MAX = 1 << 22
"""Limit of slots: a sparse file may claim more slots than fit into memory; nfqlb has 100 per target."""

FIELD_BYTES = 4
HEADER_BYTES = 4 * FIELD_BYTES
ROW_CHUNK_BYTES = 4096
"""Bytes of a row that are read at once: with many targets most of a row is never needed."""

STORE_BYTES = 56
"""Bytes that the kernel copies at once: several aligned words of 8 bytes, and few enough that it copies word by word.

On x86-64 it copies less than 64 bytes by 8-byte moves or, on processors that say they are fast at it, by an instruction
that stores no less at once; on arm64 by moves of 8 or 16 bytes. So no reader meets half a field.
"""

_PIECES_A_CALL = 512

MARK_MAX = 2**31 - 1
"""nfqlb holds fwmarks as signed integers; a negative one means inactive."""


class FileIdentity(NamedTuple):
    """Identity of one incarnation of a memory file.

    `nfqlb init` on an existing name truncates and rewrites the same inode, so the inode is not enough; the time of
    modification decides. Stores through a mapping may change that time too (the first store to a page does), so the
    writer reads the identity again. Stores of other writers then look like a new incarnation, which is harmless: the
    table is read and corrected again.
    """

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        """Return the identity in a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def change_since(self, path: Path) -> str:
        """Return how the file changed since this identity was read; empty when it is the same file."""
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
        raise DistributorError(
            f"stream {stream.name}: {name!r} is not a valid shared memory name: it must be a plain name"
        )
    return shm_dir / name


def check_identifiers(table: StreamTable, room: int) -> None:
    """Check that a table fits a memory with room for `room` targets.

    Raises:
        DistributorError: an identifier or a fwmark is out of range.
    """
    for identifier in table.registered | table.active:
        first = table.stream.first_identifier
        if not first <= identifier < first + room:
            raise DistributorError(
                f"target {table.stream.name}/{identifier}: the memory has identifiers {first} to {first + room - 1}"
            )
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
    """Byte offsets in a memory, computed from the number of slots and of targets."""

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
    """Permutation rows, read from the file in pieces on demand."""

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
        """Open the file; with `read_only` it does not have to be writable, and `write` fails.

        Raises:
            DistributorError: it is missing, not accessible, malformed or too small; the message says what to do.
        """
        self.path = path
        self._descriptor = _open(path, read_only=read_only)
        self._mapping: mmap.mmap | None = None
        self._view: memoryview | None = None
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DistributorError(f"{path} is not an nfqlb memory file: not a regular file")
            self.identity = FileIdentity.of(status)
            self.layout = self._validated_layout()
            check_room(path, stream, self.layout.targets)
            if not read_only:
                self._mapping = _map(path, self._descriptor, self.identity.size)
                self._view = memoryview(self._mapping)
        except BaseException:
            self.close()
            raise
        self._calculator = TableCalculator(_Rows(path, self._descriptor, self.layout), kind)

    def _validated_layout(self) -> _Layout:
        """Validate the header against the size of the file before any field is used."""
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
        if slots > SLOTS_MAX:
            raise DistributorError(f"{self.path} is malformed: M={slots} slots, more than {SLOTS_MAX}")
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
        """Return the target index of every slot, -1 when there is none."""
        return self._read("i", self.layout.lookup, self.layout.slots)

    def table(self, registered: AbstractSet[int], active: AbstractSet[int]) -> list[int]:
        """Compute the target index of every slot from the rows in the memory, for sets of target indexes.

        Raises:
            DistributorError: the rows are not permutations.
        """
        try:
            return self._calculator.table(registered, active)
        except ValueError as error:
            raise DistributorError(f"{self.path} is malformed: {error}") from error

    def write(self, lookup: Sequence[int], active: Sequence[int]) -> int:
        """Store the fields that differ and return how many slots changed.

        Every field is stored in one piece, so a reader sees the old or the new value and never a mixture. Neighbouring
        fields may be stored again with their current value.

        The order: marks of newly active targets, then slots, then the marks of the withdrawn ones. No slot ever points
        at an index without a mark. The exception is a reader that read its slot before the change and reads the mark
        after it was cleared; it drops that one packet, of a target that is being withdrawn. (A machine with weaker
        ordering than x86-64 may show two of these stores in the other order for nanoseconds, with the same effect.)

        Raises:
            DistributorError: the file was opened to be read only, or is no longer the one that was validated.
        """
        if self._view is None:
            raise DistributorError(f"{self.path} was opened to be read only")
        old_active, old_lookup = self.active(), self.lookup()
        assert len(lookup) == len(old_lookup)
        changed: int = sum(map(operator.ne, old_lookup, lookup))
        if not changed and list(active) == old_active:
            return 0
        if change := self.identity.change_since(self.path):
            raise DistributorError(f"{change} during a commit")
        # Withdrawn targets keep their marks until no slot points at them.
        meanwhile = [mark if mark >= 0 else old for old, mark in zip(old_active, active, strict=True)]
        try:
            source = os.memfd_create("lbguard-table", os.MFD_CLOEXEC)
            try:
                self._store(source, self.layout.active, meanwhile)
                self._store(source, self.layout.lookup, lookup)
                self._store(source, self.layout.active, active)
            finally:
                os.close(source)
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise _truncated(self.path) from None
            raise DistributorError(f"{self.path} cannot be written: {error.strerror}") from error
        self._renew_identity(active)
        return changed

    def close(self) -> None:
        """Unmap and close; the memory stays unchanged."""
        if self._view is not None:
            self._view.release()
            self._view = None
        if self._mapping is not None:
            self._mapping.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _store(self, source: int, offset: int, values: Sequence[int]) -> None:
        """Store the fields at an offset of the file that differ, in whole words of 8 bytes.

        Raises:
            OSError: with EFAULT, the file has become shorter; or the kernel refuses.
        """
        assert self._view is not None
        start, end = offset & -8, offset + FIELD_BYTES * len(values)
        was = os.pread(self._descriptor, ((end + 7) & -8) - start, start)
        if len(was) < end - start:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        wanted = was[: offset - start] + array("i", values).tobytes() + was[end - start :]
        # At the same offset in a page as in the file, so that words are aligned in both.
        shift = start % mmap.PAGESIZE
        os.pwrite(source, wanted, shift)
        for first, after in _runs(was, wanted):
            cuts = [start + at for at in range(first, after, STORE_BYTES)] + [start + after]
            pieces = [self._view[cut:following] for cut, following in itertools.pairwise(cuts)]
            try:
                if os.preadv(source, pieces, shift + first) != after - first:
                    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            finally:
                # The traceback of an error would keep them, and the mapping could not be closed.
                for piece in pieces:
                    piece.release()

    def _renew_identity(self, active: Sequence[int]) -> None:
        """Read the identity again after stores.

        Raises:
            DistributorError: another process has changed the file meanwhile; the old identity stays, so that it is
                opened and validated again.
        """
        # In this order: one of the two notices a file that is initialised again before or after the first line.
        identity = FileIdentity.of(os.fstat(self._descriptor))
        if identity.size < self.identity.size:
            raise _truncated(self.path)
        if self.active() != list(active):
            raise DistributorError(f"{self.path} was initialised anew or written by another process during a commit")
        self.identity = identity

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
            raise DistributorError(f"{path} is not an nfqlb memory file: a symbolic link") from error
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
    """Read 4-byte fields; a file that another process has truncated is an error, not a crash."""
    data = os.pread(descriptor, count * FIELD_BYTES, offset)
    if len(data) != count * FIELD_BYTES:
        raise _truncated(path)
    return memoryview(data).cast(typecode).tolist()


def _runs(was: bytes, wanted: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of differing pieces of `STORE_BYTES`, at most as long as one call may store."""
    first = -1
    for at in range(0, len(wanted), STORE_BYTES):
        if was[at : at + STORE_BYTES] == wanted[at : at + STORE_BYTES]:
            if first >= 0:
                yield first, at
            first = -1
        elif first < 0:
            first = at
        elif at - first >= STORE_BYTES * _PIECES_A_CALL:
            yield first, at
            first = at
    if first >= 0:
        yield first, len(wanted)


def _truncated(path: Path) -> DistributorError:
    return DistributorError(f"{path} is truncated: another process has made it shorter")
