"""Files shared with the program `nfqlb` in the load balancer's container: FIFOs of calls and answers, missed calls.

The load balancer's container writes there, and it may be compromised. So lines are bounded, names have a fixed
alphabet, all files are opened through `SharedDirectory`, and no read or write blocks.
"""

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from lbguard.sources.interposer.answers import Answers
from lbguard.sources.interposer.directory import FIFO_MODE, SharedDirectory
from lbguard.sources.interposer.protocol import LINE_MAX
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.sources.interposer")

MISSED_MAX = 1_000_000
"""From this size (bytes) on, callers record nothing more in `missed`: the file is incomplete."""

_READ_MAX = 64 * 1024


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
        descriptor = self._directory.new_fifo(".requests.new", FIFO_MODE)
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
        os.close(self._directory.new_file(".missed.new", FIFO_MODE))
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
