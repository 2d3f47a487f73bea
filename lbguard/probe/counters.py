"""Counters of the monitor, for export."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from lbguard.core.model import VerdictState

RTT_BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """Counts by upper bound, in seconds; the last count is of what exceeds every bound."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, value_s: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds_s, value_s)] += times
        self.sum_s += value_s * times


@dataclass(slots=True)
class ProbeCounters:
    """Counters of the monitor since it was made. Keys by family are True for IPv4.

    Attributes:
        rounds: judged rounds by outcome: `good`, `partial` (some pairs without a reply), `bad` (no pair with a reply),
            `untested` (no reply, but pings left late or not at all).
        pings: sent pings, by family.
        replies: replies in time, by family.
        late_replies: replies after the end of their round, and those to pings of the round before, by family.
        stray_replies: replies to pings of closed or changed connections, and duplicates.
        astray_replies: replies that came in by another link than the connection's.
        send_errors: pings that could not be sent, by errno name.
        doubts: rounds shortened to re-check a connection that stopped answering.
        overflows: packets that the kernel dropped because they were not read in time.
        changes: verdicts that changed the state, by the new one.
        rtt: round-trip times, by family.
        lag: delay of pings behind their scheduled time.
    """

    rounds: Counter[str] = field(default_factory=Counter)
    pings: Counter[bool] = field(default_factory=Counter)
    replies: Counter[bool] = field(default_factory=Counter)
    late_replies: Counter[bool] = field(default_factory=Counter)
    stray_replies: int = 0
    astray_replies: int = 0
    send_errors: Counter[str] = field(default_factory=Counter)
    doubts: int = 0
    overflows: int = 0
    changes: Counter[VerdictState] = field(default_factory=Counter)
    rtt: dict[bool, Histogram] = field(
        default_factory=lambda: {True: Histogram(RTT_BOUNDS_S), False: Histogram(RTT_BOUNDS_S)}
    )
    lag: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS_S))
