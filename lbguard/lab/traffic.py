"""Messages between the traffic processes and the client's records; no sockets here.

A request is 8 bytes: its number. An answer is the request followed by one byte, the identifier of the target that
answers. The client sends one request per interval on every *channel* (a TCP connection or a UDP flow).
"""

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

PORT = 5000
INTERVAL_S = 0.05
BIN_S = 0.1
GAP_MIN_S = 3 * INTERVAL_S
"""Shorter pauses are the scheduler's and are not noted."""

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

    def answer(self, now: float, target: int, count: int = 1) -> None:
        """Note `count` answers of a target that arrived together."""
        if self.target == 0:
            self.target, self.first_at = target, now
        elif now - self.last_at >= GAP_MIN_S:
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
        )


def _channels(items: Iterable[dict[str, Any]]) -> list[Channel]:
    return [Channel(**{**item, "gaps": [(start, length) for start, length in item["gaps"]]}) for item in items]
