"""Watcher of a file that reads it again when it changes.

Watching is polling: one `stat` of the resolved path. It detects changes that inotify on one path does not: an atomic
replace, the symbolic link swap of a Kubernetes ConfigMap volume (`..data` points to a new directory), and a file that
is created again.

A file may be half written: an editor, `cp` or `kubectl cp` writes in place and may pause anywhere. So a file counts as
complete

- at once, when a symbolic link leads to another file than before, when its inode changed after its last write (renaming
  a file into place does that, writing does not), or when it is another inode that no process has open for writing and
  that was not written after it got its name;
- else when its list, or the file itself, has not changed for `still_s`.

Before that, only additions of a file apply, and only while its last line is ended; an unchanged list counts as one. Its
removals and errors apply when it is complete.
"""

import asyncio
import contextlib
import os
import queue
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from lbguard.settings.bounded_file import FileError, is_written_by_nobody
from lbguard.settings.yaml_file import YamlFileError, read_yaml

STILL_S = 2.0
"""Longest pause of an in-place write during which the file does not count as complete."""

POLL_INTERVAL_S = 0.25

_STUCK_S = 30.0
_REST = 4
"""Pause between two reads, in durations of a read: a file that always changes costs a fifth of a CPU."""

Listed = TypeVar("Listed")
Lost = TypeVar("Lost")
Result = TypeVar("Result")


class Signature(NamedTuple):
    """Identity of a state of a file; `changed_ns` is when its inode changed, by the file system."""

    resolved: str
    device: int
    inode: int
    modified_ns: int
    size: int
    changed_ns: int
    regular: bool

    def is_content_of(self, other: "Signature | None") -> bool:
        """Return whether both are one content of one file, even if it was renamed or its mode changed meanwhile."""
        return other is not None and self[:5] == other[:5]


def signature(path: Path) -> Signature | None:
    """Return the state of the file that a path leads to; None when it cannot be read."""
    try:
        resolved = os.path.realpath(path)
        found = Path(resolved).stat()
    except (OSError, ValueError):
        return None
    regular = stat.S_ISREG(found.st_mode)
    return Signature(resolved, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns, regular)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content(Generic[Listed, Lost]):
    """Content of a file: a list, or the reason why there is none. `is_ended`: the last line is ended."""

    listed: Listed | None = None
    lost: Lost | None = None
    is_ended: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked(Generic[Listed, Lost]):
    """Observations so far.

    `read` is the state that was read when complete, `glanced` a state that was read before; `says` is the content of
    the file since `says_since`.
    """

    read: Signature | None = None
    glanced: Signature | None = None
    says: _Content[Listed, Lost] | None = None
    says_since: float = 0.0


class WatchedFile(Generic[Listed, Lost]):
    """Watcher of a file that reports its list at every change, and when it cannot be used.

    `emit` is called in the thread of the event loop (from `run`) or of the caller (from `poll`), one call at a time,
    and never twice in a row with equal values.

    Args:
        path: the file.
        parse: converts the content to a value, in another thread; raises YamlFileError.
        lost: makes the event for a file that cannot be used, from the reason.
        only_adds: returns whether a list removes and changes nothing of an earlier one (the second).
        emit: receives what is reported.
        poll_interval_s: interval of the polls, seconds.
        still_s: see above, seconds.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], Listed],
        lost: Callable[[str], Lost],
        only_adds: Callable[[Listed, Listed], bool],
        emit: Callable[[Listed | Lost], None],
        *,
        poll_interval_s: float = POLL_INTERVAL_S,
        still_s: float = STILL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._parse = parse
        self._lost = lost
        self._only_adds = only_adds
        self._emit = emit
        self._poll_interval_s = poll_interval_s
        self._still_s = still_s
        self._clock = clock
        self._looked: _Looked[Listed, Lost] = _Looked()
        self._in_force: Listed | None = None
        self._last: Listed | Lost | None = None
        self._asked = False
        self._wake = asyncio.Event()

    def reload(self) -> None:
        """Make the running watcher read the file now, complete or not, and report it even if unchanged."""
        self._looked, self._last, self._asked = _Looked(), None, True
        self._wake.set()

    def poll(self) -> None:
        """Check the file in this thread."""
        self._take(*self._look(self._looked, self._in_force, self._asked))

    async def run(self) -> None:
        """Read the file, then watch it until cancelled. Reading, up to seconds for huge files, is in a thread."""
        thread = DaemonThread("watched-file")
        try:
            while True:
                self._wake.clear()
                began = self._clock()
                found = await self._look_apart(thread)
                if self._wake.is_set():
                    continue  # a reload was requested meanwhile: check again
                took_s = self._clock() - began
                self._take(*found)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), max(self._poll_interval_s, _REST * took_s))
        finally:
            thread.end()

    async def _look_apart(
        self, thread: "DaemonThread"
    ) -> "tuple[_Looked[Listed, Lost], _Content[Listed, Lost] | None]":
        """Check in another thread; a hanging file system is reported, and does not keep the service from ending."""
        looking = thread.do(partial(self._look, self._looked, self._in_force, self._asked))
        done, _ = await asyncio.wait({looking}, timeout=_STUCK_S)
        if not done:
            self._report(self._lost(f"{self._path}: cannot be read: its file system does not answer"))
        return await looking

    def _take(self, looked: "_Looked[Listed, Lost]", content: "_Content[Listed, Lost] | None") -> None:
        self._looked = looked
        if content is not None:
            self._asked = False
            if content.listed is not None:
                self._in_force = content.listed
                self._report(content.listed)
            elif content.lost is not None:
                self._report(content.lost)

    def _report(self, found: Listed | Lost) -> None:
        if found != self._last:
            self._last = found
            self._emit(found)

    def _look(
        self, looked: "_Looked[Listed, Lost]", in_force: Listed | None, asked: bool
    ) -> "tuple[_Looked[Listed, Lost], _Content[Listed, Lost] | None]":
        """Return the new observations, and the event to report, if any."""
        now, found = self._clock(), signature(self._path)
        if found is not None and found.is_content_of(looked.read):
            return looked, None
        complete = asked or found is None or self._is_complete(found, looked.read, starts=in_force is None)
        glanced = found is not None and found.is_content_of(looked.glanced)
        if glanced and not complete and now - looked.says_since < self._still_s:
            return looked, None
        content = self._read()
        after = signature(self._path)
        if after is not found and (after is None or not after.is_content_of(found)):
            return looked, None  # written to while it was read: the content may be a mixture
        if content != looked.says or (content.listed is None and not glanced):
            looked = replace(looked, says=content, says_since=now)
        if complete or now - looked.says_since >= self._still_s:
            return replace(looked, read=found, glanced=None), content
        listed = content.listed
        adds = listed is not None and content.is_ended and in_force is not None and self._only_adds(listed, in_force)
        return replace(looked, glanced=found), content if adds else None

    def _read(self) -> "_Content[Listed, Lost]":
        try:
            content = read_yaml(self._path)
            return _Content(listed=self._parse(content), is_ended=content.endswith(b"\n"))
        except FileError as error:
            return _Content(lost=self._lost(f"{self._path}: {error}"))
        except YamlFileError as error:
            return _Content(lost=self._lost(str(error)))

    def _is_complete(self, found: Signature, last: Signature | None, *, starts: bool) -> bool:
        """Return whether a state is complete by its history; `starts`: no list is in force yet."""
        if not found.regular or found.changed_ns > found.modified_ns:
            return True
        if last is not None and last.resolved != found.resolved:
            return True
        # The file system may have another clock, so its times prove little about a file in use.
        if last is not None and (last.device, last.inode) == (found.device, found.inode):
            return False
        if time.time() - found.modified_ns / 1e9 >= self._still_s:
            return True
        return (starts or _came_complete(found)) and is_written_by_nobody(self._path)


def _came_complete(found: Signature) -> bool:
    """Return whether a file was last written no later than its directory: not after it got its name."""
    try:
        return Path(found.resolved).parent.stat().st_mtime_ns >= found.modified_ns
    except OSError:
        return False


class DaemonThread:
    """Worker thread that runs one task after another and that the process does not wait for at its end.

    `asyncio.to_thread` would keep the process from ending while a file system hangs; starting a thread for each check
    would make the loop wait for its start.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], Result]) -> "asyncio.Future[Result]":
        """Run a task after all earlier ones; the result arrives in the caller's loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits any more
                loop.call_soon_threadsafe(settle, result, error)

        self._jobs.put(job)
        return future

    def end(self) -> None:
        """Let the thread end when its tasks are done; the call does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
