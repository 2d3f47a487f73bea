"""The directory that lbguard shares with the program `nfqlb` in front of the load balancer: FIFOs and missed calls.

Whoever writes there is the load balancer's container, or somebody in it who means harm. So lines are bounded, names
are taken from a fixed alphabet, everything is reached as `SharedDirectory` says, and no read or write waits.

Whoever shares the directory may put anything in place of what belongs there: a symbolic link, a directory, a FIFO. So
no link is followed, what is opened is checked for its type, and a name is replaced, never written through. Our own
names are put right; a directory with something in it that stands at one of them is set aside under another name.
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


_log = logging.getLogger("lbguard.sources.interposer")

MISSED_MAX = 1_000_000
"""From this size (bytes) on nothing more is noted in `missed`: the file does not tell all."""

_READ_MAX = 64 * 1024
_STALE_S = 5.0
_SWEPT_MAX = 4096
_FIFO_MODE = 0o660  # The two containers may share a group rather than a user.
_ANSWERS_MODE = 0o2770


class Lines:
    """Puts lines together from the pieces that a FIFO gives."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete, without the empty ones. An endless one is cut off."""
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
        """Make the FIFO anew and open it.

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
        """Return whether the FIFO was removed, so that no call can arrive."""
        try:
            return not self._directory.is_same("requests", self.descriptor)
        except OSError:
            return True

    def read(self) -> list[bytes]:
        """Return the lines that have come."""
        try:
            return self._lines.take(os.read(self.descriptor, _READ_MAX))
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
    """The FIFOs under `answers/`, each made by a caller that waits at it."""

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self._descriptor = -1

    def prepare(self) -> None:
        """Make the directory if it is not there, or is something else; it keeps the group of the shared one.

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
        """Open the FIFO of a caller; None when no caller waits there. The protocol has checked the id."""
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
        """Send an answer and close the way; false when the caller is gone."""
        try:
            return os.write(descriptor, answer) == len(answer)
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def sweep(self) -> int:
        """Remove the FIFOs that callers left behind that were killed; return how many. Nothing else is touched."""
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

    While anything stands in it, callers do not ask. So it is taken at once, whole: a new, empty file replaces it. One
    who had the old one open may still add a line, so that is looked at once more.
    """

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self._old = -1
        self._lines = Lines()

    def prepare(self) -> None:
        """Make the file if it is not there, or is something else.

        Raises:
            OSError: it cannot be made.
        """
        status = self._directory.status("missed")
        if status is None or not stat.S_ISREG(status.st_mode):
            self._replace()

    @property
    def waiting(self) -> bool:
        """Return whether any call waits to be read."""
        try:
            status = self._directory.status("missed")
        except OSError:
            return False
        return status is not None and status.st_size > 0

    def take(self, on_line: Callable[[bytes], None]) -> bool:
        """Take what is there, in order; false when the file may be incomplete.

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
        """Stop looking at the old file."""
        if self._old >= 0:
            os.close(self._old)
            self._old = -1

    def _drain(self, on_line: Callable[[bytes], None]) -> None:
        # More than the limit is nobody's writing but a mischief-maker's.
        for _ in range(2 * MISSED_MAX // _READ_MAX):
            data = os.read(self._old, _READ_MAX) if self._old >= 0 else b""
            if not data:
                return
            for line in self._lines.take(data):
                on_line(line)

    def _replace(self) -> None:
        os.close(self._directory.new_file(".missed.new", _FIFO_MODE))
        self._directory.rename(".missed.new", "missed")


class SharedFiles:
    """The shared directory with all that stands in it. `problem` says why it cannot be used (empty: it can)."""

    def __init__(self, path: Path) -> None:
        self.problem = ""
        self.directory = SharedDirectory(path)
        self.requests = RequestFifo(self.directory)
        self.answers = Answers(self.directory)
        self.missed = Missed(self.directory)

    def put_right(self, *steps: Callable[[], None]) -> bool:
        """Bring everything but the FIFO for requests into order, then take more steps; log once why that fails."""
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
        """Close what is open; the reader closes the FIFO for requests."""
        self.missed.close()
        self.answers.close()
        self.directory.close()
