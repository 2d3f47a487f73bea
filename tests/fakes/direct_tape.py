"""A tape that writes in the calling thread, for simulated and scripted runs, where nobody waits."""

from typing import Any

from lbguard.recording.writer import Checkpoint, Entry, RecordingWriter


class DirectTape:
    """Writes every entry at once."""

    def __init__(self, writer: RecordingWriter) -> None:
        self._writer = writer

    @property
    def wanted(self) -> int:
        return self._writer.wanted

    def put(self, kind: str, now: float, payload: Any = None) -> None:
        if kind == "checkpoint":
            payload = Checkpoint(payload)
        written = self._writer.write(Entry(kind, now, payload))
        assert written, "a file is full and no checkpoint came"

    def close(self) -> None:
        self._writer.close()
