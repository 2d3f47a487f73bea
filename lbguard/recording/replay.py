"""Replay: run an engine on a recording and compare its decisions with the recorded ones, bit for bit."""

import datetime
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, assert_never

from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.checkpoint import CheckpointError, restore
from lbguard.core.engine import Engine
from lbguard.core.model import Action, Decision, TargetKey
from lbguard.core.status import GuardStatus
from lbguard.recording.codec import core_digest, said_of
from lbguard.recording.format import AFTER_LOSS, GOES_ON, EmptyFileError, Header, RecordingError, local_time
from lbguard.recording.reader import (
    Began,
    ClockSet,
    Committed,
    Decided,
    Ended,
    Item,
    PacketsRead,
    Repaired,
    Told,
    read_file,
    read_header,
)
from lbguard.settings.notation import parse_duration

_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?")

_SAME_MOMENT_S = 0.001  # wall clock times are written with less than the clock's own precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """First difference between the recorded and the replayed decisions; None: one side has no (further) decision."""

    path: Path
    now: float
    wall_time: float
    recorded: object | None
    replayed: object | None


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """Result of a replay. Wall times are seconds since the epoch.

    `core_differs`: versions of lbguard whose core is not this one; then a difference may be a change of behaviour.
    `torn`: files without a proper end. `lost`: entries that the service could not record. `hosts`: where it was
    recorded, as far as the files tell; a service of one is replayed after that of another. `drained`: how often each
    target began to drain. `families`: how often each family (`IPv4`, `IPv6`) of a target was withdrawn alone.
    """

    files: int = 0
    events: int = 0
    calls: int = 0
    decisions: int = 0
    restarts: int = 0
    lost: int = 0
    began: float | None = None
    ended: float | None = None
    torn: list[Path] = field(default_factory=list)
    core_differs: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    drained: Counter[TargetKey] = field(default_factory=Counter)
    families: Counter[tuple[TargetKey, str]] = field(default_factory=Counter)
    difference: Difference | None = None


class Continuity:
    """Check at each beginning of a file whether it continues the engine of the previous file."""

    def __init__(self) -> None:
        self._before: Header | None = None
        self._torn = False

    def begins(self, header: Header) -> bool:
        """Record a file; return whether it continues the one before without a gap."""
        goes_on = self.would(header)
        self._before = header
        return goes_on

    def would(self, header: Header) -> bool:
        """Return whether a file would continue the one before without a gap."""
        before = self._before
        return (
            before is not None
            and not self._torn
            and header.begins == GOES_ON
            and header.series == before.series
            and header.number == before.number + 1
        )

    def ended(self, item: Ended) -> None:
        """Record how a file ended."""
        self._torn = item.torn


def restore_engine(began: Began) -> Engine:
    """Return the engine at the beginning of a file that does not begin with a new one.

    Raises:
        RecordingError: another version of the core wrote it.
    """
    assert began.nodes is not None
    header = began.header
    try:
        if header.core != core_digest():
            raise CheckpointError("it was written by another version of the core")
        return restore(began.nodes)
    except CheckpointError as error:
        raise RecordingError(
            f"{began.path}: begins in the middle of a run, and the state there cannot be used: {error}; use lbguard "
            f"{header.lbguard} as it was then, or begin with file 1 of series {header.series} if it is still there"
        ) from None


class Replayer:
    """Player that feeds items to an engine.

    `engine` and `now`: its current state; `offset`: wall clock minus engine's clock.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.now = 0.0
        self.offset = 0.0
        self.report = ReplayReport()
        self._continuity = Continuity()
        self._path = Path()

    def take(self, item: Item) -> Difference | None:
        """Take one item; return the difference that it brought to light."""
        self.now = getattr(item, "now", self.now)
        match item:
            case Began():
                self._begin(item)
            case ClockSet():
                self.offset = item.offset
            case Ended():
                self._continuity.ended(item)
                if item.torn:
                    self.report.torn.append(item.path)
            case Told():
                self.report.events += 1
                self._engine().observe(item.event, item.now)
            case Repaired():
                self.report.calls += 1
                self._engine().repair(item.now)
            case Decided():
                self.report.calls += 1
                return self._compare(item)
            case PacketsRead() | Committed():
                pass  # for the tuner: the engine is not told
            case _:
                assert_never(item)
        return None

    def status(self, now: float) -> GuardStatus:
        """Return the state at a moment of the engine's clock."""
        return self._engine().status(now)

    def wall(self, item: Item) -> float:
        """Return when an item happened, seconds since the epoch."""
        if isinstance(item, Began):
            return item.header.now + item.header.offset
        return float(getattr(item, "now", self.now)) + self.offset

    def continues(self, item: Began) -> bool:
        """Return whether a file continues without a gap; call it before the file is used."""
        return self._continuity.would(item.header)

    def _engine(self) -> Engine:
        assert self.engine is not None
        return self.engine

    def _begin(self, item: Began) -> None:
        header, report = item.header, self.report
        self._path = item.path
        self.now, self.offset = header.now, header.offset
        report.files += 1
        report.hosts.add(header.host)
        if header.core != core_digest():
            report.core_differs.add(header.lbguard)
        goes_on = self._continuity.begins(header)
        if header.begins == AFTER_LOSS:
            report.lost += header.lost
        if goes_on and self.engine is not None:
            return
        if item.nodes is None:
            report.restarts += 1
            self.engine = Engine(item.config)
        else:
            self.engine = restore_engine(item)

    def _count(self, decision: Decision) -> None:
        if decision.action is Action.DRAIN:
            self.report.drained[decision.target] += 1
        elif decision.action is Action.WITHDRAW_FAMILY:
            lost = {_family(evidence.ip) for evidence in decision.evidence if evidence.withdrawn}
            self.report.families.update((decision.target, family) for family in lost)

    def _compare(self, item: Decided) -> Difference | None:
        said = said_of(self._engine().decide(item.now))
        self.report.decisions += len(item.said)
        for decision in item.said:
            if isinstance(decision, Decision):
                self._count(decision)
        if said == item.said:
            return None
        both = zip(item.said + [None] * len(said), said + [None] * len(item.said), strict=False)
        recorded, replayed = next((one, other) for one, other in both if one != other)
        return Difference(
            path=self._path, now=item.now, wall_time=item.now + self.offset, recorded=recorded, replayed=replayed
        )


def _family(ip: Ip) -> str:
    return "IPv4" if is_ipv4(ip) else "IPv6"


def items_of(files: Sequence[Path], on_read: Callable[[int], None] | None = None) -> Iterator[Item]:
    """Read files one after another, as `find_files` put them in order."""
    for path in files:
        yield from read_file(path, on_read)


def replay(files: Sequence[Path], on_read: Callable[[int], None] | None = None) -> ReplayReport:
    """Replay files up to the first difference.

    Raises:
        RecordingError: a file is damaged or of another version, or the core never ran in them.
    """
    replayer = Replayer()
    report = replayer.report
    items = items_of(files, on_read)
    for item in items:
        report.difference = replayer.take(item)
        if replayer.engine is None:
            continue
        report.ended = replayer.now + replayer.offset
        if report.began is None:
            report.began = report.ended
        if report.difference is not None:
            # The check sum at the end of the file tells whether it is the file that is wrong.
            next(rest for rest in items if isinstance(rest, Ended))
            break
    if replayer.engine is None:
        raise RecordingError(f"{files[0]}: the core never ran in it; give a recording that is longer")
    return report


class Past(NamedTuple):
    """The state at a moment (seconds since the epoch), on a host (empty: unknown)."""

    status: GuardStatus
    at: float
    host: str


class _NotThenError(RecordingError):
    """Nothing was recorded at the moment in question."""


def state_at(files: Sequence[Path], text: str, on_read: Callable[[int], None] | None = None) -> Past:
    """Return the state at a moment (see `parse_moment`).

    Raises:
        RecordingError: nothing was recorded at that moment, or on several hosts; or a file cannot be read.
        ValueError: the text is no moment.
    """
    by_host: dict[str, list[Path]] = {}
    began = math.inf
    for path in files:
        try:
            header = read_header(path)
        except EmptyFileError:
            continue
        began = min(began, header.now + header.offset)
        by_host.setdefault(header.host, []).append(path)
    at = parse_moment(text, began)
    try:
        local_time(at)
    except (OverflowError, OSError) as error:
        raise ValueError(f"{text} is out of range") from error
    found: list[Past] = []
    missed: list[_NotThenError] = []
    for host, some in by_host.items():
        try:
            found.append(Past(_state_at(some, at, on_read), at, host))
        except _NotThenError as error:
            missed.append(error)
    if len(found) > 1:
        hosts = ", ".join(sorted(past.host or "an unnamed host" for past in found))
        raise RecordingError(f"{local_time(at)} was recorded on several hosts: {hosts}; give the files of one of them")
    if not found:
        raise missed[0] if len(missed) == 1 else RecordingError("; ".join(str(error) for error in missed))
    return found[0]


def _state_at(files: Sequence[Path], at: float, on_read: Callable[[int], None] | None) -> GuardStatus:
    replayer = Replayer()
    began = 0.0
    for item in items_of(files, on_read):
        wall, end = replayer.wall(item), replayer.now + replayer.offset
        if replayer.engine is None:
            if not isinstance(item, Began):
                continue
            began = wall
            if at < wall - _SAME_MOMENT_S:
                raise _NotThenError(
                    f"{local_time(at)} is before the beginning of what was recorded, {local_time(wall)}"
                )
        elif wall > at + (_SAME_MOMENT_S if isinstance(item, Began) else 0.0):
            if isinstance(item, Began) and not replayer.continues(item) and at > end + _SAME_MOMENT_S:
                raise _NotThenError(
                    f"{local_time(at)}: nothing was recorded from {local_time(end)} to {local_time(wall)}"
                )
            return replayer.status(max(replayer.now, at - replayer.offset))
        replayer.take(item)
    if replayer.engine is None:
        raise RecordingError(f"{files[0]}: the core never ran in it; give a recording that is longer")
    end = replayer.now + replayer.offset
    if at > end + _SAME_MOMENT_S:
        raise _NotThenError(
            f"{local_time(at)} is after the end of what was recorded, which goes from {local_time(began)} to "
            f"{local_time(end)}"
        )
    return replayer.status(max(replayer.now, at - replayer.offset))


def parse_moment(text: str, began: float) -> float:
    """Read a moment: `+90s` after the beginning, `12:03:04.5` (local time), an ISO date and time, or epoch seconds.

    Args:
        text: what was given.
        began: beginning of the recording, seconds since the epoch; a time of day is the first one after it.

    Raises:
        ValueError: it is none of these.
    """
    text = text.strip()
    if text.startswith("+"):
        return began + parse_duration(text[1:])
    if re.fullmatch(r"\d{9,}(\.\d+)?", text):
        return float(text)
    if _CLOCK.fullmatch(text):
        day = datetime.datetime.fromtimestamp(began).astimezone()
        moment = datetime.datetime.combine(
            day.date(), datetime.time.fromisoformat(text.zfill(len(text) + (text[1] == ":")))
        )
        if moment.timestamp() < math.floor(began):
            moment += datetime.timedelta(days=1)
        return moment.timestamp()
    return datetime.datetime.fromisoformat(text).timestamp()
