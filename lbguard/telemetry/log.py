"""Logging: one JSON line a record, or readable text on a terminal, written by a thread of its own.

A full pipe behind stderr must neither stop the event loop nor keep the process from ending, so records pass through a
bounded queue to a thread without waiting for it. What does not fit, or cannot be written (a reader that has gone, a
full disk), is dropped and counted, and the count is logged once there is room.
"""

import atexit
import contextlib
import datetime
import json
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from lbguard.core.addr import format_ip
from lbguard.core.model import Action, Decision, Override
from lbguard.printable import json_text, printable
from lbguard.telemetry.sentences import decision_sentence

QUEUE_LIMIT = 10_000

_CLOSE_LIMIT_S = 3.0
_STALL_LIMIT_S = 1.0

_decisions = logging.getLogger("lbguard.decision")
_SERIOUS = frozenset(
    {Action.HOLD, Action.FREEZE, Action.WITHDRAW, Action.WITHDRAW_FAMILY, Action.TAKE_OUT, Action.KEEP}
)
_COLOURS = {"DEBUG": "\x1b[2m", "INFO": "\x1b[32m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_PLAIN = "\x1b[0m"


def fields(**values: object) -> dict[str, object]:
    """Return what to pass as `extra=` so that a record carries these fields: `log.info("x", extra=fields(n=1))`."""
    return {"fields": values}


def log_decision(decision: Decision, wall_time: float, *, observe: bool = False) -> None:
    """Log a decision: as fields in JSON, as one sentence in text.

    Args:
        decision: the decision.
        wall_time: when it was taken, seconds since the epoch.
        observe: the decision was not carried out; noted in the record.
    """
    level = logging.WARNING if decision.action in _SERIOUS else logging.INFO
    if not _decisions.isEnabledFor(level):
        return
    # Only references are passed on: the writing thread makes the text, so that a thousand decisions of one moment do
    # not wait for each other's JSON.
    _decisions.log(level, "decision", extra={"decision": decision, "observe": observe, "wall_time": wall_time})


def decision_fields(decision: Decision) -> dict[str, object]:
    """Return a decision as plain values for JSON; times are relative, in seconds."""
    left = None if decision.deadline is None else round(max(0.0, decision.deadline - decision.at), 6)
    return {
        "sequence": decision.sequence,
        "action": str(decision.action),
        "stream": decision.target.stream,
        "identifier": decision.target.identifier,
        "state_from": None if decision.state_from is None else str(decision.state_from),
        "state_to": None if decision.state_to is None else str(decision.state_to),
        "cause": decision.cause,
        "deadline_in_s": left,
        "duration_s": None if decision.duration_s is None else round(decision.duration_s, 6),
        "evidence": [
            {
                "ip": format_ip(item.ip),
                "condition": str(item.condition),
                "ifname": item.ifname,
                "neighbor": item.neighbor,
                "detail": item.detail,
                "verdict": item.verdict,
                "withdrawn": item.withdrawn,
            }
            for item in decision.evidence
        ],
    } | ({} if decision.override is None else {"override": override_fields(decision.override, decision.at)})


def override_fields(override: Override, now: float) -> dict[str, object]:
    """Return an override as plain values for JSON; times are relative to a moment, in seconds."""
    return {
        "action": str(override.action),
        "who": override.who,
        "reason": override.reason,
        "age_s": round(now - override.since, 3),
        "ends_in_s": round(max(0.0, override.until - now), 3),
    }


def _when(record: logging.LogRecord) -> float:
    return float(getattr(record, "wall_time", record.created))


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    decision = getattr(record, "decision", None)
    if isinstance(decision, Decision):
        observing = {"observe": True} if getattr(record, "observe", False) else {}
        return decision_fields(decision) | observing
    values = getattr(record, "fields", None)
    return values if isinstance(values, dict) else {}


def _sentence_of(record: logging.LogRecord) -> str:
    decision = getattr(record, "decision", None)
    if isinstance(decision, Decision):
        observing = "(observing) " if getattr(record, "observe", False) else ""
        return observing + decision_sentence(decision)
    values = " ".join(f"{name}={_shown(value)}" for name, value in _fields_of(record).items())
    return f"{record.getMessage()} {values}".rstrip()


class JsonFormatter(logging.Formatter):
    """One JSON object a record: ts (epoch, seconds), time (ISO 8601, UTC), level, logger, event, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without the newline."""
        when = _when(record)
        line: dict[str, object] = {
            "ts": round(when, 6),
            "time": datetime.datetime.fromtimestamp(when, datetime.UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        # A field may not replace what every line has.
        line |= {f"{name}_" if name in line else name: value for name, value in _fields_of(record).items()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json_text(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:34:56.789 WARNING hold stream-a/1: ...`: for people, in local time."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without the newline."""
        clock = datetime.datetime.fromtimestamp(_when(record)).strftime("%H:%M:%S.%f")[:-3]
        level = f"{record.levelname:<7}"
        if self._colour:
            level = f"{_COLOURS.get(record.levelname, '')}{level}{_PLAIN}"
        # Text from outside (file names, kernel messages) must not forge lines or drive the terminal; nor must what an
        # exception quotes, so that the lines of a traceback are marked.
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        lines = [f"{clock} {level} {printable(_sentence_of(record))}", *(f"  | {printable(line)}" for line in trace)]
        return "\n".join(lines)


def _shown(value: object) -> str:
    text = str(value)
    return text if text and not set(text) & set(" \"'=") else json.dumps(text, ensure_ascii=False)


class _BoundedQueueHandler(logging.Handler):
    """Hands records to the writing thread and never waits for it."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.records: queue.Queue[logging.LogRecord | None] = queue.Queue(limit)
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or count it as dropped."""
        try:
            if self.dropped:
                note = logging.LogRecord(
                    "lbguard.log", logging.WARNING, __file__, 0, "log records were dropped", None, None
                )
                note.fields = {"dropped": self.dropped}
                self.records.put_nowait(note)
                self.dropped = 0
            self.records.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def unwritten(self, record: logging.LogRecord) -> None:
        """Count a record that could not be written, or the dropped records that it reports."""
        lost = (getattr(record, "fields", None) or {}).get("dropped", 1) if record.name == "lbguard.log" else 1
        with self.lock or contextlib.nullcontext():
            self.dropped += int(lost)


class Logging:
    """Logging in force: made by `setup_logging`, undone by `close`. `level_before`: the level that `close` restores."""

    def __init__(
        self, handler: _BoundedQueueHandler, formatter: logging.Formatter, stream: TextIO, level_before: int
    ) -> None:
        self._handler = handler
        self._level_before = level_before
        self._formatter = formatter
        self._write = _writer(stream)
        self._done = 0
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="lbguard-log", daemon=True)
        logging.getLogger().addHandler(handler)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Write the queued records and stop; safe to call twice.

        After a second without a written record, or after three seconds in total, the thread keeps the rest: it writes
        it if the reader continues before the process has ended.
        """
        atexit.unregister(self.close)
        logging.getLogger().removeHandler(self._handler)
        if self._closing:
            return
        self._closing = True
        logging.getLogger().setLevel(self._level_before)
        with contextlib.suppress(queue.Full):
            self._handler.records.put_nowait(None)
        done, latest = -1, time.monotonic() + _CLOSE_LIMIT_S
        while self._thread.is_alive() and done != self._done and time.monotonic() < latest:
            done = self._done
            self._thread.join(_STALL_LIMIT_S)

    def _work(self) -> None:
        records = self._handler.records
        while not (self._closing and records.empty()):
            record = records.get()
            if record is not None:
                try:
                    self._write(self._line(record))
                except (OSError, ValueError):  # ValueError: the stream is closed
                    self._handler.unwritten(record)
            self._done += 1
            records.task_done()

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self._formatter.format(record) + "\n"
        except Exception as error:  # An error in one record does not stop the next ones.
            return f"{record.name}: a log record cannot be shown: {error!r}\n"


def setup_logging(
    log_format: str = "auto", level: str = "info", stream: TextIO | None = None, queue_limit: int = QUEUE_LIMIT
) -> Logging:
    """Send every record of the process to `stream` (stderr).

    Args:
        log_format: `json`, `text`, or `auto` (text when the stream is a terminal).
        level: the least severe level written: debug, info, warning or error.
        stream: where to write.
        queue_limit: records that may wait for the writer.
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    as_text = log_format == "text" or (log_format == "auto" and terminal)
    level_before = logging.getLogger().level
    set_level(level)
    formatter = TextFormatter(colour=terminal) if as_text else JsonFormatter()
    return Logging(_BoundedQueueHandler(queue_limit), formatter, stream, level_before)


def set_level(level: str) -> None:
    """Write records of this level (debug, info, warning or error) and above from now on."""
    logging.getLogger().setLevel(level.upper())


def _writer(stream: TextIO) -> Callable[[str], None]:
    """Return what writes text to a stream.

    One with a descriptor is written without Python's buffers: their locks would be held by a thread that waits for a
    reader, and the interpreter could not end.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):

        def write(text: str) -> None:
            stream.write(text)
            stream.flush()

        return write

    def write_descriptor(text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # Another process that shares it has made it non-blocking.
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()

    return write_descriptor
