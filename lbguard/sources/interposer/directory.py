"""The directory that is shared with the program `nfqlb`, in which another program may replace any file.

It may put a symbolic link, a directory or a FIFO there. So no link is followed, the type of an opened file is checked,
and a file is replaced, never written through. Our own names are restored; a non-empty directory at one of them is
renamed.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from itertools import islice
from pathlib import Path

_MODE = 0o755
_LOOK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

FIFO_MODE = 0o660
"""Mode of FIFOs and of what callers write: the two containers may share a group rather than a user."""


class SharedDirectory:
    """The directory of a path, opened. Names are plain: without a slash.

    Modes are exact; the umask has no effect. Every method raises OSError when the directory is missing or the kernel
    refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def open(self) -> None:
        """Open the directory at the path, created with its parents if missing; without effect while it is the same.

        Raises:
            OSError: it is a symbolic link or not a directory, or cannot be created or opened.
        """
        if self._descriptor >= 0 and not self.lost:
            return
        self.close()
        missing = [place for place in (self.path, *self.path.parents) if not os.path.lexists(place)]
        for place in reversed(missing):
            with contextlib.suppress(FileExistsError):
                _make(place, _MODE)
        self._descriptor = os.open(self.path, _LOOK)

    def close(self) -> None:
        """Close it; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def lost(self) -> bool:
        """Return whether the path no longer leads to the open directory."""
        try:
            return not os.path.samestat(self.path.lstat(), os.fstat(self._descriptor))
        except OSError:
            return True

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of the entry at a name; None: there is none."""
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self, limit: int) -> list[str]:
        """Return the names of the entries, at most so many."""
        with os.scandir(self._descriptor) as entries:
            return [entry.name for entry in islice(entries, limit)]

    def is_same(self, name: str, descriptor: int) -> bool:
        """Return whether the entry at a name is the open file."""
        status = self.status(name)
        return status is not None and descriptor >= 0 and os.path.samestat(status, os.fstat(descriptor))

    def open_file(self, name: str, flags: int, is_type: Callable[[int], bool] = stat.S_ISREG) -> int:
        """Open the file of a type (a test of its mode) at a name, without blocking.

        Raises:
            OSError: it is missing, cannot be opened, or has another type.
        """
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._descriptor)
        if is_type(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise OSError(0, "it is of another type", name)

    def open_directory(self, name: str, mode: int) -> int:
        """Return a descriptor of a subdirectory; anything else there is replaced by a new one of this mode."""
        status = self.status(name)
        if status is None or not stat.S_ISDIR(status.st_mode):
            self.clear(name)
            os.mkdir(name, mode, dir_fd=self._descriptor)
        descriptor = os.open(name, _LOOK, dir_fd=self._descriptor)
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, mode)
        return descriptor

    def new_file(self, name: str, mode: int) -> int:
        """Replace the entry at a name by a new file; return its descriptor, to write."""
        self.clear(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, mode, dir_fd=self._descriptor)
        os.fchmod(descriptor, mode)
        return descriptor

    def new_fifo(self, name: str, mode: int) -> int:
        """Replace the entry at a name by a new FIFO; return its descriptor, to read and to write."""
        self.clear(name)
        try:
            os.mkfifo(name, mode, dir_fd=self._descriptor)
        except OSError as error:
            error.filename = name  # Of these calls, only this one does not set it.
            raise
        descriptor = self.open_file(name, os.O_RDWR, stat.S_ISFIFO)
        os.fchmod(descriptor, mode)
        return descriptor

    def rename(self, name: str, to: str) -> None:
        """Rename an entry; replace the entry at the new name."""
        status = self.status(to)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self.clear(to)
        os.rename(name, to, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def clear(self, name: str) -> None:
        """Free a name: the entry is removed, or renamed if it is a non-empty directory."""
        status = self.status(name)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=self._descriptor)
            return
        try:
            os.rmdir(name, dir_fd=self._descriptor)
        except OSError:
            aside = f".aside-{secrets.token_hex(4)}-{name.lstrip('.')}"
            os.rename(name, aside, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)


def _make(path: Path, mode: int) -> None:
    """Make a directory of exactly this mode."""
    path.mkdir(mode)
    descriptor = os.open(path, _LOOK)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
