"""Recording in the running service; when it is switched off, everything here does nothing."""

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Protocol

from lbguard.core.engine import Engine
from lbguard.core.model import TargetKey
from lbguard.distributor.base import CommitResult
from lbguard.recording.format import Limits
from lbguard.recording.recorder import DROP_REASONS, RecordedEngine, Recorder
from lbguard.recording.writer import RecordingWriter
from lbguard.settings.engine_config import engine_config
from lbguard.settings.model import Settings
from lbguard.telemetry.metrics.guard import Metrics


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
