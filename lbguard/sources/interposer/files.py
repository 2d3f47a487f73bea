"""Files shared with the program `nfqlb` in the load balancer's container: FIFOs of calls and answers, missed calls.

The load balancer's container writes there, and it may be compromised. So lines are bounded, names have a fixed
alphabet, all files are opened through `SharedDirectory`, and no read or write blocks.

Another program may replace any file in it: by a symbolic link, a directory, a FIFO. So no link is followed, the type of
an opened file is checked, and a file is replaced, never written through. Our own names are restored; a non-empty
directory at one of them is renamed.
"""

import contextlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from lbguard.sources.interposer.protocol import LINE_MAX, REQUEST_ID
from lbguard.telemetry.log import fields

_MODE = 0o755
_LOOK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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


_log = logging.getLogger("lbguard.sources.interposer")

MISSED_MAX = 1_000_000
"""From this size (bytes) on, callers record nothing more in `missed`: the file is incomplete."""

_READ_MAX = 64 * 1024
_STALE_S = 5.0
_SWEPT_MAX = 4096
_FIFO_MODE = 0o660  # The two containers may share a group rather than a user.
_ANSWERS_MODE = 0o2770


class Lines:
    """Assembles lines from the pieces that a FIFO returns."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        """Add data; return the complete lines without empty ones. An endless line is cut off."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest if len(rest) <= LINE_MAX else rest[: LINE_MAX + 1]
        return [line for line in lines if line]


class RequestFifo:
    """The FIFO `requests`. Opened for reading and writing, so that it never ends and no writer waits for a reader."""

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self._lines = Lines()
        self.descriptor = -1

    def open(self) -> None:
        """Create the FIFO again and open it.

        Raises:
            OSError: it cannot be made.
        """
        descriptor = self._directory.new_fifo(".requests.new", _FIFO_MODE)
        try:
            self._directory.rename(".requests.new", "requests")
        except OSError:
            os.close(descriptor)
            raise
        self.descriptor = descriptor

    @property
    def lost(self) -> bool:
        """Return whether the FIFO was removed, so that no calls can arrive."""
        try:
            return not self._directory.is_same("requests", self.descriptor)
        except OSError:
            return True

    def read(self) -> list[bytes]:
        """Return the lines received since the last call."""
        try:
            return self._lines.add(os.read(self.descriptor, _READ_MAX))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Remove the FIFO, so that no more calls arrive, and close it."""
        if self.descriptor >= 0:
            if not self.lost:
                with contextlib.suppress(OSError):
                    self._directory.clear("requests")
            os.close(self.descriptor)
            self.descriptor = -1


class Answers:
    """The FIFOs under `answers/`, each created by a caller that waits for its answer."""

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self._descriptor = -1

    def prepare(self) -> None:
        """Create the directory if it is missing or another type of file; it has the group of the shared directory.

        Raises:
            OSError: it cannot be made.
        """
        if not self._directory.is_same("answers", self._descriptor):
            self.close()
            self._descriptor = self._directory.open_directory("answers", _ANSWERS_MODE)

    def close(self) -> None:
        """Close the directory; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def open(self, request_id: str) -> int | None:
        """Open the FIFO of a caller; None when no caller waits. The protocol has checked the id."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(request_id, flags, dir_fd=self._descriptor)
        except OSError:
            return None
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None

    def send(self, descriptor: int, answer: bytes) -> bool:
        """Send an answer and close the FIFO; false when the caller is gone."""
        try:
            return os.write(descriptor, answer) == len(answer)
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def sweep(self) -> int:
        """Remove the FIFOs of killed callers; return how many. Other files stay."""
        removed = 0
        with contextlib.suppress(OSError), os.scandir(self._descriptor) as entries:
            for entry in islice(entries, _SWEPT_MAX):
                if REQUEST_ID.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISFIFO(status.st_mode) and time.time() - status.st_mtime > _STALE_S:
                            os.unlink(entry.name, dir_fd=self._descriptor)
                            removed += 1
        return removed


class Missed:
    """File `missed`: calls that went to the real program without lbguard.

    While it is not empty, callers make no requests. So it is read at once and replaced by a new, empty file. A caller
    that had the old file open may still add a line, so the old file is read once more.
    """

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self._old = -1
        self._lines = Lines()

    def prepare(self) -> None:
        """Create the file if it is missing or another type of file.

        Raises:
            OSError: it cannot be made.
        """
        status = self._directory.status("missed")
        if status is None or not stat.S_ISREG(status.st_mode):
            self._replace()

    @property
    def waiting(self) -> bool:
        """Return whether there are unread calls."""
        try:
            status = self._directory.status("missed")
        except OSError:
            return False
        return status is not None and status.st_size > 0

    def read(self, on_line: Callable[[bytes], None]) -> bool:
        """Read the missed calls in order; false when the file may be incomplete.

        Raises:
            OSError: the file cannot be read or replaced.
        """
        self._drain(on_line)
        if not self.waiting:
            return True
        self.close()
        old = self._directory.open_file("missed", os.O_RDONLY)
        complete = os.fstat(old).st_size < MISSED_MAX
        self._old, self._lines = old, Lines()
        self._replace()
        self._drain(on_line)
        return complete

    def close(self) -> None:
        """Close the old file."""
        if self._old >= 0:
            os.close(self._old)
            self._old = -1

    def _drain(self, on_line: Callable[[bytes], None]) -> None:
        # A longer file can only be malicious.
        for _ in range(2 * MISSED_MAX // _READ_MAX):
            data = os.read(self._old, _READ_MAX) if self._old >= 0 else b""
            if not data:
                return
            for line in self._lines.add(data):
                on_line(line)

    def _replace(self) -> None:
        os.close(self._directory.new_file(".missed.new", _FIFO_MODE))
        self._directory.rename(".missed.new", "missed")


class SharedFiles:
    """The shared directory with its files. `problem` says why it cannot be used (empty: it can)."""

    def __init__(self, path: Path) -> None:
        self.problem = ""
        self.directory = SharedDirectory(path)
        self.requests = RequestFifo(self.directory)
        self.answers = Answers(self.directory)
        self.missed = Missed(self.directory)

    def put_right(self, *steps: Callable[[], None]) -> bool:
        """Restore everything except the FIFO for requests, then run more steps; log once why that fails."""
        try:
            for step in (self.directory.open, self.answers.prepare, self.missed.prepare, *steps):
                step()
        except OSError as error:
            path = self.directory.path if error.filename is None else self.directory.path / error.filename
            problem = f"{path}: {error.strerror or error}"
            if problem != self.problem:
                _log.error("calls of nfqlb cannot be taken; trying again", extra=fields(reason=problem))
            self.problem = problem
            return False
        if self.problem:
            _log.info("calls of nfqlb can be taken")
        self.problem = ""
        return True

    def close(self) -> None:
        """Close the open files; the reader closes the FIFO for requests."""
        self.missed.close()
        self.answers.close()
        self.directory.close()
