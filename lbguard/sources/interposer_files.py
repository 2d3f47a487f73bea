"""The directory that lbguard shares with the program `nfqlb` in front of the load balancer: FIFOs and missed calls.

Whoever writes there is the load balancer's container, or somebody in it who means harm. So lines are bounded, names
are taken from a fixed alphabet, links are not followed, and no read or write waits.
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from lbguard.sources.interposer_protocol import LINE_MAX

MISSED_MAX = 1_000_000
"""From this size (bytes) on nothing more is noted in `missed`: the file does not tell all."""

_READ_MAX = 64 * 1024
_STALE_S = 5.0
_MODE = 0o660  # The two containers may share a group rather than a user.


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

    def __init__(self, directory: Path) -> None:
        self.path = directory / "requests"
        self._lines = Lines()
        self.descriptor = -1

    def open(self) -> None:
        """Make the FIFO anew and open it.

        Raises:
            OSError: it cannot be made.
        """
        new = self.path.with_name(".requests.new")
        new.unlink(missing_ok=True)
        os.mkfifo(new)
        new.chmod(_MODE)
        self.descriptor = os.open(new, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        new.replace(self.path)

    @property
    def lost(self) -> bool:
        """Whether somebody took the FIFO away, so that nobody can ask."""
        try:
            return not os.path.samestat(self.path.lstat(), os.fstat(self.descriptor))
        except FileNotFoundError:
            return True

    def read(self) -> list[bytes]:
        """Return the lines that have come."""
        try:
            return self._lines.take(os.read(self.descriptor, _READ_MAX))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Take the FIFO away, so that nobody asks any more, and close it."""
        if self.descriptor >= 0:
            if not self.lost:
                self.path.unlink()
            os.close(self.descriptor)
            self.descriptor = -1


class Answers:
    """The FIFOs under `answers/`, each made by a caller that waits at it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "answers"

    def prepare(self) -> None:
        """Make the directory; it keeps the group of the shared one.

        Raises:
            OSError: it cannot be made.
        """
        with contextlib.suppress(FileExistsError):
            self._directory.mkdir()
            self._directory.chmod(0o2770)

    def open(self, request_id: str) -> int | None:
        """Open the way back to a caller; None when nobody waits there. The id is one that the protocol has checked."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._directory / request_id, flags)
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
        """Remove what callers left behind that were killed; returns how many."""
        removed = 0
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S:
                            Path(entry.path).unlink()
                            removed += 1
        except OSError:
            return removed
        return removed


class Missed:
    """The file `missed`: calls that went to the real program without our being told.

    While anything stands in it, callers do not ask. So it is taken at once, whole: a new, empty file replaces it. One
    who had the old one open may still add a line, so that is looked at once more.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "missed"
        self._old = -1
        self._lines = Lines()

    def prepare(self) -> None:
        """Make the file if it is not there, or is something else.

        Raises:
            OSError: it cannot be made.
        """
        try:
            if stat.S_ISREG(self.path.lstat().st_mode):
                return
        except FileNotFoundError:
            pass
        self._replace()

    @property
    def waiting(self) -> bool:
        """Whether there is anything to be taken."""
        try:
            return self.path.lstat().st_size > 0
        except OSError:
            return False

    def take(self, on_line: Callable[[bytes], None]) -> bool:
        """Take what is there, in order; false when the file may not tell all.

        Raises:
            OSError: the file cannot be replaced.
        """
        self._drain(on_line)
        if not self.waiting:
            return True
        self.close()
        old = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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
        new = self.path.with_name(".missed.new")
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
        new.chmod(_MODE)
        new.replace(self.path)
