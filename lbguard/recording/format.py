"""Format of a recording on disk; `docs/recording.md` describes it for people.

A file is a gzip stream of JSON lines, flushed every second, so that a crash loses only the lines after the last flush,
and `zcat FILE | head` shows the content. The first line is an object (`Header`), every other a list whose first item is
its kind:

    ["LinkSeen", ...]       an event, as the engine received it: type name and fields; see `codec.py`
    ["EngineConfig", ...]   the configuration: of the beginning as the second line, later an event (SettingsChanged)
    ["t", TIME]             the time of the following lines by the engine's clock: an integer is nanoseconds since
                            the last time (of the header at first), a number with a point is seconds
    ["r"]  ["d"]            the engine was called: `repair`, `decide`
    ["=", ROW]              result of that `decide`: a decision, or a change of a stream's availability
    ["s", FIELD, ITEM...]   a part of a full view of the kernel: items are rows, or `"FIRST+COUNT"` of the last view
    ["S"]                   the view is complete: an event
    ["n", KIND, ...]        a part of the engine's state at the beginning of the file; see `codec.py`
    ["N"]                   the state is complete
    ["k", [STREAM, IDENTIFIER, PACKETS, HELD]...]   packet totals of targets, and those dropped while held
    ["c", STREAM, CHANGED, TOTAL, SECONDS, ERROR]   a commit to the distributor: slots changed, of how many
    ["w", OFFSET]           wall clock (seconds since the epoch) minus the engine's clock

Version 2 knows drains, families that are withdrawn alone, and changes of the list that wait for flows; version 3 knows
commands of operators. Earlier versions are read as well: what they do not know did not happen.
"""

import datetime
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lbguard.errors import EXIT_REFUSED, CommandError

FORMAT = "lbguard-recording"
VERSION = 3
VERSION_WITHOUT_LEARNING = 1
"""The version in which flow affinity delayed no change of the list; it is also the oldest one that is read."""
SUFFIX = ".jsonl.gz"
PATTERN = re.compile(r"lbguard-\d{8}T\d{6}Z-[0-9a-f]{8}-(\d{6})\.jsonl\.gz")

START, GOES_ON, AFTER_LOSS = "start", "goes_on", "after_loss"
"""Beginning of a file: with a new engine; where the one before ended; or with a checkpoint after something was lost."""

NS = 1e9
GZIP = 31  # zlib: window of 32 KiB, gzip header and trailer


class RecordingError(CommandError):
    """A recording that cannot be read (or written); the message names the file, the place in it, and a remedy."""

    exit_status = EXIT_REFUSED


class EmptyFileError(RecordingError):
    """A file that ended before its first line: it was just begun, or the service was killed."""


def local_time(wall_time: float) -> str:
    """Write a moment (seconds since the epoch) in local time, in a form that `parse_moment` reads again."""
    return datetime.datetime.fromtimestamp(wall_time).astimezone().isoformat(sep=" ", timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """First line of a file.

    `series`, `number`: the run of the service, and the number of the file in it (from 1). `begins`: `start`, `goes_on`
    or `after_loss`; then `lost` entries are missing before it. `now` and `offset`: the engine's clock at its beginning,
    and the wall clock minus that, seconds. `core`: digest of the core that decided. `facts`: the host, and the
    distributor's kind of table, and the mode of flow affinity. `version`: of the format.
    """

    lbguard: str
    core: str
    series: str
    number: int
    begins: str
    now: float
    offset: float
    lost: int = 0
    version: int = VERSION
    facts: dict[str, Any] = field(default_factory=dict)
    types: dict[str, list[str]] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The name of the host (in a cluster: the pod) that recorded it; empty where it is unknown."""
        return str(self.facts.get("host", ""))

    def to_json(self) -> dict[str, Any]:
        """Return the line as plain values."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_json(values: Any, path: Path) -> "Header":
        """Read the line.

        Raises:
            RecordingError: it is no recording, or a newer one than this version can read.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise RecordingError(f"{path}: not a recording of lbguard; give files made with recording.enabled=true")
        if values.get("version") not in range(VERSION_WITHOUT_LEARNING, VERSION + 1):
            raise RecordingError(
                f"{path}: format version {values.get('version')}, and this lbguard reads versions "
                f"{VERSION_WITHOUT_LEARNING} to {VERSION}; read it "
                f"with lbguard {values.get('lbguard', 'of the version that wrote it')} or newer"
            )
        try:
            header = Header(**{name: values[name] for name in values if name != "format"})
            header.check()
            return header
        except (TypeError, ValueError) as error:
            raise RecordingError(f"{path}: a header that cannot be read ({error}); the file is damaged") from None

    def check(self) -> None:
        """Check the types of the fields of a file.

        Raises:
            ValueError: a field has a value of another kind.
        """
        texts = (self.lbguard, self.core, self.series)
        times = (self.now, self.offset)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name that is not text")
        if not all(type(time) in (int, float) and math.isfinite(time) for time in times):
            raise ValueError("a time that is not a number")
        if not all(type(count) is int for count in (self.number, self.lost, self.version)):
            raise ValueError("a count that is not a whole number")
        if self.begins not in (START, GOES_ON, AFTER_LOSS):
            raise ValueError(f"it begins {self.begins!r}")
        if not isinstance(self.facts, dict):
            raise ValueError("facts that are not an object")
        if not isinstance(self.types, dict) or not all(isinstance(names, list) for names in self.types.values()):
            raise ValueError("types without lists of fields")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a recording: at most `files` files of at most `file_bytes` each in one directory."""

    file_bytes: int = 16 * 2**20
    files: int = 16
