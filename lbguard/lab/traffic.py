"""Messages between the traffic processes, the client's records, and what both processes need; no sockets here.

A request is 8 bytes: its number. An answer is the request followed by one byte, the identifier of the target that
answers. The client sends one request per interval on every *channel* (a TCP connection or a UDP flow). In some
scenarios it also opens a *new connection* every `NEW_EVERY_S`, which lives on and sends less often.
"""

import resource
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

PORT = 5000
INTERVAL_S = 0.05
BIN_S = 0.1
NEW_EVERY_S = 0.02
NEW_MAX = 1000
"""Bound on the new connections of one run."""
NEW_INTERVAL_S = 4 * INTERVAL_S
"""A new connection sends less often than the others: there are several times as many."""
GAP_INTERVALS = 3
"""Pauses of fewer intervals are the scheduler's and are not noted."""
PAUSE_MIN_S = 0.02
"""Shorter pauses of the client itself are not noted."""

REQUEST = struct.Struct("!Q")
ANSWER = struct.Struct("!QB")

OPEN = "open"
RESET = "reset"
CLOSED = "closed"


@dataclass(slots=True)
class Channel:
    """One TCP connection or UDP flow as the client saw it. Times are seconds since the epoch.

    `target` is the target of the first answer; `wrong` counts answers of any other. `gaps` are (start, length) of the
    pauses between two answers. `ending` is `open`, `reset` (RST), `closed` (FIN) or the error that ended it.
    `opened_at` and `connect_s` (None: never connected) are noted of new connections only; `connect_s` is without the
    time that the client itself paused.
    """

    number: int
    family: int
    target: int = 0
    sent: int = 0
    answered: int = 0
    wrong: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    ended_at: float = 0.0
    ending: str = OPEN
    gaps: list[tuple[float, float]] = field(default_factory=list)
    interval_s: float = INTERVAL_S
    opened_at: float = 0.0
    connect_s: float | None = None

    def answer(self, now: float, target: int, count: int = 1) -> None:
        """Note `count` answers of a target that arrived together."""
        if self.target == 0:
            self.target, self.first_at = target, now
        elif now - self.last_at >= GAP_INTERVALS * self.interval_s:
            self.gaps.append((self.last_at, now - self.last_at))
        if target != self.target:
            self.wrong += count
        self.answered += count
        self.last_at = now

    def end(self, now: float, ending: str) -> None:
        """Note how and when the channel ended."""
        if self.ending == OPEN:
            self.ending, self.ended_at = ending, now


@dataclass(slots=True)
class AnswerCounts:
    """Answers per target and time bin of `BIN_S` seconds, for the timeline."""

    start: float
    bins: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    def add(self, now: float, target: int, count: int = 1) -> None:
        """Count answers of a target at a time."""
        self.bins[target][int((now - self.start) / BIN_S)] += count

    def series(self, end: float) -> dict[str, list[int]]:
        """Return one list of counts per target, from `start` to `end`."""
        length = int((end - self.start) / BIN_S) + 1
        return {str(target): [counts.get(index, 0) for index in range(length)] for target, counts in self.bins.items()}


@dataclass(slots=True, kw_only=True)
class TrafficResult:
    """All that the client measured in one run.

    `newcomers` are the new connections, in the order in which they were opened.

    `late_s` is how late the client itself ever was to send (seconds): on a machine that is too busy it pauses, and then
    so does every connection, whatever the network does.
    """

    started: float
    ended: float
    connections: list[Channel]
    flows: list[Channel]
    tcp_bins: dict[str, list[int]]
    udp_bins: dict[str, list[int]]
    late_s: float = 0.0
    newcomers: list[Channel] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `to_json` made.

        Raises:
            KeyError, TypeError: the data is something else.
        """
        return cls(
            started=data["started"],
            ended=data["ended"],
            connections=_channels(data["connections"]),
            flows=_channels(data["flows"]),
            tcp_bins=data["tcp_bins"],
            udp_bins=data["udp_bins"],
            late_s=data["late_s"],
            newcomers=_channels(data["newcomers"]),
        )


def allow_many_files() -> None:
    """Allow this process as many open files as the system lets it: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def paused_s(pauses: Iterable[tuple[float, float]], since: float, until: float) -> float:
    """Return how much of a time the pauses (from, to) cover."""
    return sum(max(0.0, min(end, until) - max(start, since)) for start, end in pauses)


def _channels(items: Iterable[dict[str, Any]]) -> list[Channel]:
    return [Channel(**{**item, "gaps": [(start, length) for start, length in item["gaps"]]}) for item in items]
