"""A directory that others may write to. Everything below it is reached by the descriptor of the directory.

Whoever shares it may put anything in place of what belongs there: a symbolic link, a directory, a FIFO. So no link is
followed, what is opened is checked for its type, and a name is replaced, never written through. Our own names are put
right; a directory with something in it that stands at one of them is set aside under another name.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

_MODE = 0o755
_LOOK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class SharedDirectory:
    """The directory of a path, opened. Names are plain: without a slash.

    Modes are those that are given, whatever the umask. Every method raises OSError when the directory is not there, or
    the kernel refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def open(self) -> None:
        """Open what is at the path, made with its parents if need be; nothing to do while that is still the same.

        Raises:
            OSError: it is a symbolic link or no directory, or cannot be made or opened.
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
        """Return whether the path does not lead to the open directory."""
        try:
            return not os.path.samestat(self.path.lstat(), os.fstat(self._descriptor))
        except OSError:
            return True

    def status(self, name: str) -> os.stat_result | None:
        """Return the type of the entry at a name; None: nothing."""
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_same(self, name: str, descriptor: int) -> bool:
        """Return whether the entry at a name is the open one."""
        status = self.status(name)
        return status is not None and descriptor >= 0 and os.path.samestat(status, os.fstat(descriptor))

    def open_file(self, name: str, flags: int, is_type: Callable[[int], bool] = stat.S_ISREG) -> int:
        """Open what stands at a name and is of a type (a test of its mode), without waiting.

        Raises:
            OSError: it is not there, cannot be opened, or is of another type.
        """
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._descriptor)
        if is_type(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise OSError(0, "it is of another type", name)

    def open_directory(self, name: str, mode: int) -> int:
        """Return a descriptor of a directory below; where there is none, one takes the place. Ours get this mode."""
        status = self.status(name)
        if status is None or not stat.S_ISDIR(status.st_mode):
            self.clear(name)
            os.mkdir(name, mode, dir_fd=self._descriptor)
        descriptor = os.open(name, _LOOK, dir_fd=self._descriptor)
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, mode)
        return descriptor

    def new_file(self, name: str, mode: int) -> int:
        """Make a file that nobody else has open, in place of whatever is there; return its descriptor, to write."""
        self.clear(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, mode, dir_fd=self._descriptor)
        os.fchmod(descriptor, mode)
        return descriptor

    def new_fifo(self, name: str, mode: int) -> int:
        """Make a FIFO in place of whatever is there; return its descriptor, to read and to write."""
        self.clear(name)
        try:
            os.mkfifo(name, mode, dir_fd=self._descriptor)
        except OSError as error:
            error.filename = name  # Of all these calls this one alone does not say it.
            raise
        descriptor = self.open_file(name, os.O_RDWR, stat.S_ISFIFO)
        os.fchmod(descriptor, mode)
        return descriptor

    def rename(self, name: str, to: str) -> None:
        """Let what is at a name take the place of whatever is at another one."""
        status = self.status(to)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self.clear(to)
        os.rename(name, to, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def clear(self, name: str) -> None:
        """See to it that nothing is at a name: it is removed, or, a directory that is not empty, set aside."""
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
