"""Bounded reading of external files: a limit of bytes, regular files only, and never blocking on a writer.

The path of an expected file may be a FIFO, a device, a directory or a socket, by mistake or on purpose. Opening a FIFO
waits for its writer and reading a device may never end, so the kind is checked before and after opening.
"""

import fcntl
import os
import signal
import stat
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_PIECE_BYTES = 2**20
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FileError(Exception):
    """A file cannot be read; the text has the reason without the file's name."""


def open_regular_file(path: Path) -> int:
    """Return a descriptor of a regular file, to read; symbolic links are followed.

    Raises:
        FileError: it is not a regular file.
        OSError: it does not exist, or cannot be opened.
    """
    _check_kind(path.stat().st_mode)
    descriptor = os.open(path, _FLAGS)
    try:
        _check_kind(os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file; symbolic links are followed.

    Args:
        path: the file.
        max_bytes: a larger one is refused.

    Raises:
        FileError: it does not exist, is not a regular file, is too large or cannot be read.
    """
    try:
        descriptor = open_regular_file(path)
        try:
            status = os.fstat(descriptor)
            content = b"" if status.st_size > max_bytes else _read(descriptor, max_bytes + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise FileError(f"cannot be read: {error}") from None  # a zero byte in the path
    except MemoryError:
        raise FileError("cannot be read: out of memory") from None
    if max(status.st_size, len(content)) > max_bytes:
        raise FileError(f"is larger than {_size(max_bytes)}")
    return content


def is_written_by_nobody(path: Path) -> bool:
    """Return whether no process has a regular file open for writing; false where that is unknown.

    The kernel grants a read lease on such files only (fcntl(2)), to the owner of the file or with CAP_LEASE, and not on
    network file systems. The lease is released at once.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError):
        return False
    try:
        # A process that opens the file for writing now makes the kernel send a signal: SIGURG is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _read(descriptor: int, max_bytes: int) -> bytes:
    pieces = []
    left = max_bytes
    while left and (piece := os.read(descriptor, min(left, _PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise FileError(f"is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"
