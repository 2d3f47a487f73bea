"""Recorder of the running service's engine; it does not block the loop.

The loop only puts entries into a queue; a thread writes them, in small slices, so that it never holds the interpreter
for long. When the queue is full or the disk refuses, recording stops, because a recording with a gap cannot be
replayed. Entries that are not recorded are counted by reason (`queue_full`, `file_full`, `disk`), and a new file begins
with a checkpoint once there is room again.

When recording is switched off, `ServiceRecording` does nothing.
"""

import asyncio
import logging
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lbguard.core.checkpoint import freeze
from lbguard.core.config import EngineConfig
from lbguard.core.effects import Effect
from lbguard.core.engine import Engine
from lbguard.core.events import Event
from lbguard.core.model import TargetKey
from lbguard.distributor.base import CommitResult
from lbguard.recording.codec import said_of
from lbguard.recording.format import Limits
from lbguard.recording.writer import Checkpoint, Entry, RecordingWriter
from lbguard.settings.model import Settings, engine_config
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.guard import Metrics

_log = logging.getLogger("lbguard.recording")

_LINES_A_SLICE = 16
_PAUSE_S = 0.0002
_RETRY_AFTER_S, _RETRY_AFTER_MAX_S = 10.0, 600.0
_BETWEEN_CHECKPOINTS_S = 10.0
_STOP_LIMIT_S = 1.0


class Tape(Protocol):
    """Sink of entries. `wanted`: 0 no checkpoint is needed, 1 one at a calm moment, 2 one at once."""

    @property
    def wanted(self) -> int:
        """Return how urgently a checkpoint is wanted."""

    def put(self, kind: str, now: float, payload: Any = None) -> None:
        """Take an entry; see `Entry`. A checkpoint's payload is the frozen state."""


class RecordedEngine(Engine):
    """Engine that records every call with its exact time, and its decisions."""

    def __init__(self, config: EngineConfig, tape: Tape) -> None:
        super().__init__(config)
        self.tape_recorder = tape
        self.tape_deciding = False

    def observe(self, event: Event, now: float) -> list[Effect]:
        """Apply one event; see `Engine`."""
        self.tape_recorder.put("told", now, event)
        return super().observe(event, now)

    def repair(self, now: float) -> list[Effect]:
        """Return the repairs; see `Engine`."""
        if not self.tape_deciding:
            self.tape_recorder.put("repair", now)
        return super().repair(now)

    def decide(self, now: float) -> list[Effect]:
        """Judge and return the effects; see `Engine`."""
        self.tape_deciding = True
        try:
            effects = super().decide(now)
        finally:
            self.tape_deciding = False
        said = said_of(effects)
        self.tape_recorder.put("decide", now, said)
        wanted = self.tape_recorder.wanted
        if wanted and (wanted > 1 or (not said and self._calm())):
            self.tape_recorder.put("checkpoint", now, freeze(self))
        return effects

    def _calm(self) -> bool:
        """Return whether nothing is broken, so that a short pause for a checkpoint does no harm."""
        return not any(stream.broken for stream in self.streams())


DROP_REASONS = ("queue_full", "file_full", "disk")
"""Reasons for which entries are missing in a recording."""


class Recorder:
    """Queue and writing thread of the running service. `put` belongs to the loop's thread and never waits.

    Args:
        writer: writes the files, in the recorder's thread from `start` to `close`.
        queue_limit: the most entries that wait; a full view of the kernel counts as one.
        flush_s: entries are on disk after at most this many seconds.
    """

    def __init__(
        self,
        writer: RecordingWriter,
        *,
        queue_limit: int = 262_144,
        flush_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self.recorded = 0
        self._writer = writer
        self._queue: deque[Entry] = deque()
        self._queue_limit = queue_limit
        self._flush_s = flush_s
        self._clock = clock
        self._lost = 0
        self._why = ""
        self._counted: Mapping[TargetKey, tuple[int, int]] = {}
        self._retry_at = 0.0
        self._retry_after_s = _RETRY_AFTER_S
        self._checkpoint_at = float("-inf")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    @property
    def bytes_written(self) -> int:
        """Return the number of bytes written to files."""
        return self._writer.bytes_written

    @property
    def wanted(self) -> int:
        """Return how urgently a checkpoint is wanted."""
        # Files that are too small for the state would want the next one at once, and hold up the loop all the time.
        if self._clock() < self._checkpoint_at + _BETWEEN_CHECKPOINTS_S:
            return 0
        if not self._why:
            return self._writer.wanted
        room = len(self._queue) <= self._queue_limit // 2
        return 2 if room and self._clock() >= self._retry_at else 0

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, kind: str, now: float, payload: Any = None) -> None:
        """Take an entry, or count it as dropped."""
        if kind == "checkpoint":
            payload, self._lost, self._why = Checkpoint(payload, self._lost), 0, ""
            self._checkpoint_at = self._clock()
        elif self._why:
            self._lost += 1
            self.dropped[self._why] += 1
            return
        elif len(self._queue) >= self._queue_limit:
            self._fail("queue_full", 0.0)
            return
        self.recorded += 1
        self._queue.append(Entry(kind, now, payload))

    def put_packets(self, now: float, counts: Mapping[TargetKey, tuple[int, int]]) -> None:
        """Record readings of packets so far (given to each target, dropped while held); those that changed are kept."""
        changed = [(*key, *count) for key, count in counts.items() if self._counted.get(key) != count]
        self._counted = counts
        if changed:
            self.put("packets", now, changed)

    def close(self) -> None:
        """Write what waits, for a second at most, and end the file."""
        if self._thread.is_alive():
            self._stopping.set()
            self._thread.join(_STOP_LIMIT_S)

    def _fail(self, why: str, retry_after_s: float) -> None:
        """Stop recording until a checkpoint: there is a hole now."""
        self._lost += 1
        self.dropped[why] += 1
        self._retry_at = self._clock() + retry_after_s
        self._why = why
        _log.warning("recording interrupted", extra=fields(reason=why))

    # In the recorder's thread

    def _work(self) -> None:
        until = float("inf")
        lines = 0
        while True:
            stopping = self._stopping.is_set()
            if stopping and until == float("inf"):
                until = self._clock() + _STOP_LIMIT_S
            flushed_at = self._clock()
            while self._queue and self._clock() < min(flushed_at + self._flush_s, until):
                lines = self._take(self._queue.popleft(), lines)
            self._attempt(self._writer.flush)
            if self._writer.path is not None:
                self._retry_after_s = _RETRY_AFTER_S
            if stopping and (not self._queue or self._clock() >= until):
                self._attempt(self._writer.close)
                return
            if not self._queue:
                self._stopping.wait(self._flush_s)

    def _take(self, entry: Entry, lines: int) -> int:
        """Write an entry in slices; return how many lines the slice at its end has."""
        try:
            for accepted in self._writer.pieces(entry):
                if not accepted:
                    # All waiting entries up to the next checkpoint follow a gap: the loop is notified at once.
                    self._lost_here("file_full", 0.0)
                    return lines
                lines += 1
                if lines >= _LINES_A_SLICE:
                    time.sleep(_PAUSE_S)
                    lines = 0
        except OSError as error:
            self._disk_failed(error)
        return lines

    def _attempt(self, operation: Callable[[], None]) -> None:
        try:
            operation()
        except OSError as error:
            self._disk_failed(error)

    def _disk_failed(self, error: OSError) -> None:
        _log.error(
            "recording cannot be written",
            extra=fields(reason=error.strerror or str(error), path=str(error.filename or self._writer.path or "")),
        )
        self._writer.abandon()
        self._lost_here("disk", self._retry_after_s)
        self._retry_after_s = min(2 * self._retry_after_s, _RETRY_AFTER_MAX_S)

    def _lost_here(self, why: str, retry_after_s: float) -> None:
        if self._why:
            self._lost += 1
            self.dropped[self._why] += 1
        else:
            self._fail(why, retry_after_s)


class PacketCount(Protocol):
    """A reading of packets so far."""

    @property
    def packets(self) -> int:
        """Return the number of packets."""


class ServiceRecording:
    """Factory of the engine, recorded if the settings say so; it also passes further entries to the recording."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; nothing is written before `start`."""
        wanted = settings.recording
        self._config = engine_config(settings)
        self._recorder: Recorder | None = None
        if wanted.enabled:
            limits = Limits(file_bytes=wanted.max_file, files=wanted.max_files)
            facts = {
                "host": socket.gethostname(),
                "distributor": settings.distributor.kind,
                "table": settings.distributor.table,
                "affinity": settings.affinity.mode if settings.steers_flows else "off",
            }
            writer = RecordingWriter(wanted.directory, self._config, limits=limits, facts=facts)
            self._recorder = Recorder(writer, queue_limit=wanted.queue_limit, flush_s=wanted.flush)

    def make_engine(self) -> Engine:
        """Return the engine of the service."""
        return Engine(self._config) if self._recorder is None else RecordedEngine(self._config, self._recorder)

    def start(self) -> None:
        """Begin to write."""
        if self._recorder is not None:
            self._recorder.start()

    async def close(self) -> None:
        """Write what waits and end the file."""
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)

    def committed(self, result: CommitResult) -> None:
        """Note a commit of one stream."""
        if self._recorder is not None:
            changed, total = result.slots_changed, result.slots_total
            what = (result.stream, changed, total, round(result.duration_s, 6), result.error)
            self._recorder.put("commit", time.monotonic(), what)

    def packets_read(self, hits: Mapping[TargetKey, PacketCount], held: Mapping[TargetKey, PacketCount]) -> None:
        """Note readings of packets so far: given to each target, and dropped while held."""
        if self._recorder is not None:
            counts = {key: (count.packets, held[key].packets if key in held else 0) for key, count in hits.items()}
            self._recorder.put_packets(time.monotonic(), counts)

    def count(self, metrics: Metrics) -> None:
        """Bring the metrics of recording up to date."""
        if self._recorder is not None:
            metrics.record_recording(
                entries=self._recorder.recorded,
                written_bytes=self._recorder.bytes_written,
                # With all names: rate() misses the first increment of a series that appears with it.
                dropped={**dict.fromkeys(DROP_REASONS, 0), **self._recorder.dropped},
            )
