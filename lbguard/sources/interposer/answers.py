"""FIFOs for answers to the program `nfqlb`, of which some are made ready for callers."""

import contextlib
import os
import stat
import time
import uuid
from itertools import islice

from lbguard.sources.interposer.directory import FIFO_MODE, SharedDirectory
from lbguard.sources.interposer.protocol import REQUEST_ID

_STALE_S = 5.0
_SWEPT_MAX = 4096
_ANSWERS_MODE = 0o2770
_DIRECTORIES = ("offers", "answers")
_OFFERS = 8
"""FIFOs that are ready: Meridio makes one call per stream at a time."""


class Answers:
    """The FIFOs for answers, one for each caller that waits: under `offers/` or, where there was none, `answers/`.

    `offers/` has FIFOs made ready, because to make one costs a caller as much as the whole answer. A caller claims one
    by creating the file `.NAME` beside it. A FIFO under `answers/` is made by its caller. Both are used once: this
    class removes them when it answers.
    """

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self._descriptors = dict.fromkeys(_DIRECTORIES, -1)
        self._offered: set[str] = set()

    def prepare(self) -> None:
        """Create the directories that are missing or another type of file, and the offers; their group is kept.

        Raises:
            OSError: they cannot be made.
        """
        for name, descriptor in self._descriptors.items():
            if not self._directory.is_same(name, descriptor):
                self._close(name)
                self._descriptors[name] = self._directory.open_directory(name, _ANSWERS_MODE)
                self._offered.clear()
        self.offer()

    def close(self) -> None:
        """Close the directories; safe to call twice."""
        for name in self._descriptors:
            self._close(name)

    def _close(self, name: str) -> None:
        if self._descriptors[name] >= 0:
            os.close(self._descriptors[name])
            self._descriptors[name] = -1

    def offer(self) -> None:
        """Make FIFOs ready, in place of those that were used.

        Raises:
            OSError: they cannot be made.
        """
        offers = self._descriptors["offers"]
        while len(self._offered) < _OFFERS:
            name = str(uuid.uuid4())
            os.mkfifo(name, FIFO_MODE, dir_fd=offers)
            descriptor = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=offers)
            try:
                os.fchmod(descriptor, FIFO_MODE)  # The umask has no effect.
            finally:
                os.close(descriptor)
            self._offered.add(name)

    def open(self, request_id: str) -> int | None:
        """Open the FIFO of a caller, and remove it; None when no caller waits. The protocol has checked the id."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        for directory in self._descriptors.values():
            try:
                descriptor = os.open(request_id, flags, dir_fd=directory)
            except OSError:
                continue
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                self._remove(directory, request_id)
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
        """Remove the FIFOs and claims of killed callers, and the offers of an earlier run; return how many names.

        Other files stay.
        """
        removed = 0
        for directory in self._descriptors.values():
            with contextlib.suppress(OSError), os.scandir(directory) as entries:
                stale = {
                    entry.name.removeprefix(".")
                    for entry in islice(entries, _SWEPT_MAX)
                    if REQUEST_ID.fullmatch(entry.name.removeprefix("."))
                    and entry.name not in self._offered
                    and self._is_stale(entry)
                }
                for name in stale:
                    self._remove(directory, name)
                removed += len(stale)
        return removed

    def _is_stale(self, entry: "os.DirEntry[str]") -> bool:
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            of_type = stat.S_ISREG if entry.name.startswith(".") else stat.S_ISFIFO
            return of_type(status.st_mode) and time.time() - status.st_mtime > _STALE_S
        return False

    def _remove(self, directory: int, name: str) -> None:
        self._offered.discard(name)
        for each in (name, f".{name}") if directory == self._descriptors["offers"] else (name,):
            with contextlib.suppress(OSError):
                os.unlink(each, dir_fd=directory)
