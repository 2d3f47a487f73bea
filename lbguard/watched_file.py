"""A file that is watched and read again when it changes.

Watching is polling: one `stat` of the resolved path. It sees what inotify on one path does not: an atomic replace, the
symbolic link swap of a Kubernetes ConfigMap volume (`..data` points to a new directory), and a file that comes back.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Told = TypeVar("Told")

Signature = tuple[str, int, int, int]
"""Resolved path, inode, modification time in nanoseconds, size in bytes."""


def signature(path: Path) -> Signature | None:
    """Return what tells one state of a file from another; None when it cannot be looked at."""
    try:
        resolved = os.path.realpath(path)
        status = Path(resolved).stat()
    except OSError:
        return None
    return resolved, status.st_ino, status.st_mtime_ns, status.st_size


class WatchedFile(Generic[Told]):
    """Watches a file and tells what it says, whenever that changes.

    `read` makes a value of the file, or of the reason why it cannot be used; it raises nothing, and `run` calls it in
    another thread. `emit` is called in the thread of the event loop (from `run`) or of the caller (from `poll`), one
    call at a time, and never twice in a row with equal values.
    """

    def __init__(
        self, path: Path, read: Callable[[], Told], emit: Callable[[Told], None], *, poll_interval_s: float = 0.5
    ) -> None:
        self._path = path
        self._read = read
        self._emit = emit
        self._poll_interval_s = poll_interval_s
        self._seen: Signature | None = None
        self._last: Told | None = None
        self._wake = asyncio.Event()

    def reload(self) -> None:
        """Ask the running watcher to read the file now and tell what it says, changed or not (SIGHUP)."""
        self._seen = self._last = None
        self._wake.set()

    def poll(self) -> None:
        """Read the file in this thread if it changed since the last look."""
        self._tell(*self._look(self._seen))

    async def run(self) -> None:
        """Read the file, then watch it until cancelled. Reading, up to a second for huge files, is off the loop."""
        while True:
            self._wake.clear()
            found = await asyncio.to_thread(self._look, self._seen)
            if self._wake.is_set():
                continue  # asked to reload meanwhile: look again, forgetting this
            self._tell(*found)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._poll_interval_s)

    def _tell(self, seen: Signature | None, told: Told | None) -> None:
        self._seen = seen
        if told is not None and told != self._last:
            self._last = told
            self._emit(told)

    def _look(self, seen: Signature | None) -> tuple[Signature | None, Told | None]:
        """Return the signature to remember and what to tell, if anything."""
        before = signature(self._path)
        if before is not None and before == seen:
            return seen, None
        told = self._read()
        if signature(self._path) == before:
            return before, told
        # Written to while it was read: what was read may be half of each, so it is neither told nor remembered, and
        # the next look reads again.
        return None, None
