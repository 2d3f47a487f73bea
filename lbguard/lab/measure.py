"""From what the client noted down to the numbers of the table; pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lbguard.lab.traffic import INTERVAL_S, OPEN, RESET, Channel, TrafficResult

STALLED_AFTER_S = 2.0
"""A connection that had no answer in this last part of the run is stalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The numbers of one run. Gaps are the longest pause of each unbroken connection after the scenario started.

    `broken` and `moved` count connections of targets that come back or never left; those of targets lost for
    good stand in `lost_broken`. Broken is `reset` or `stalled` (no answer for the rest of the run) or closed. Moved
    means that the packets reached another target: it answered, or it refused (RST) what it does not know.
    `disturbed` counts the connections whose path the scenario breaks, and those that broke or moved although it does
    not, as today, where the withdrawal of one target moves slots of others: so no more are broken than are disturbed.
    `median_gap_s` is over those whose path was broken and that survived, `recovered_s` from the start of the scenario
    to the last of their first answers. `client_late_s` is how late the client itself was, at worst: gaps no longer than
    that say nothing about the network.
    """

    opened: int = 0
    disturbed: int = 0
    broken: int = 0
    reset: int = 0
    stalled: int = 0
    moved: int = 0
    lost_connections: int = 0
    lost_broken: int = 0
    udp_sent: int = 0
    udp_lost: int = 0
    udp_moved: int = 0
    longest_gap_s: float = 0.0
    median_gap_s: float = 0.0
    recovered_s: float = 0.0
    client_late_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Decisions of the deciding process after the scenario started.

    `holds`, `withdrawals` count those of targets that come back or never left. `lost_after_s`: when the last of the
    targets lost for good was withdrawn (seconds after the start; None: not all were, or none is lost). `dropped`:
    verdicts that were dropped for a named reason.
    """

    holds: int = 0
    withdrawals: int = 0
    lost_after_s: float | None = None
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Channels that a scenario disturbs and targets that it removes for ever. `family` None means both."""

    disturbed: frozenset[int]
    lost: frozenset[int] = frozenset()
    family: int | None = None

    def disturbs(self, channel: Channel) -> bool:
        """Return whether a channel's path is broken by the scenario."""
        return channel.target in self.disturbed and self.family in (None, channel.family)


def count_decisions(records: Sequence[dict[str, Any]], since: float, lost: frozenset[int], dropped: int = 0) -> Decided:
    """Count decisions in the log of the process that decides, from `since` (seconds since the epoch) on."""
    decisions = [r for r in records if r.get("event") == "decision" and r["ts"] >= since]
    others = [r["action"] for r in decisions if r.get("identifier") not in lost]
    gone = {
        r["identifier"]: r["ts"] - since for r in decisions if r["action"] == "withdraw" and r["identifier"] in lost
    }
    return Decided(
        holds=others.count("hold"),
        withdrawals=others.count("withdraw"),
        lost_after_s=max(gone.values()) if lost and gone.keys() == lost else None,
        dropped=dropped,
    )


def is_stalled(channel: Channel, ended: float) -> bool:
    """Return whether a channel that is still open had no answer at the end of the run."""
    return channel.ending == OPEN and ended - channel.last_at >= STALLED_AFTER_S


def _is_broken(channel: Channel, ended: float) -> bool:
    return channel.ending != OPEN or is_stalled(channel, ended)


def is_moved(channel: Channel) -> bool:
    """Return whether another target than the first answered, or refused, a connection."""
    return channel.wrong > 0 or channel.ending == RESET


def longest_gap(channel: Channel, since: float) -> tuple[float, float]:
    """Return the longest pause that ended after `since` as (length, end), or (interval, since) when there was none."""
    gaps = [(length, start + length) for start, length in channel.gaps if start + length > since]
    return max(gaps, default=(INTERVAL_S, since))


def measure(result: TrafficResult, since: float, scope: Scope) -> Measurement:
    """Count what happened to the traffic from `since` (seconds since the epoch) on."""
    kept = [c for c in result.connections if c.target not in scope.lost]
    lost = [c for c in result.connections if c.target in scope.lost]
    stalled = [c for c in kept if is_stalled(c, result.ended)]
    survived = [c for c in kept if not _is_broken(c, result.ended)]
    gaps = [longest_gap(c, since) for c in survived]
    disturbed_gaps = [longest_gap(c, since) for c in survived if scope.disturbs(c)]
    return Measurement(
        opened=len(result.connections),
        disturbed=_count(result.connections, lambda c: scope.disturbs(c) or is_moved(c) or _is_broken(c, result.ended)),
        broken=len(kept) - len(survived),
        reset=_count(kept, lambda c: c.ending == RESET),
        stalled=len(stalled),
        moved=_count(kept, is_moved),
        lost_connections=len(lost),
        lost_broken=_count(lost, lambda c: _is_broken(c, result.ended)),
        udp_sent=sum(flow.sent for flow in result.flows),
        udp_lost=sum(flow.sent - flow.answered for flow in result.flows),
        udp_moved=sum(flow.wrong for flow in result.flows),
        longest_gap_s=max((length for length, _ in gaps), default=0.0),
        median_gap_s=median(length for length, _ in disturbed_gaps) if disturbed_gaps else 0.0,
        recovered_s=max((end - since for _, end in disturbed_gaps), default=0.0),
        client_late_s=result.late_s,
    )


def _count(channels: Sequence[Channel], condition: Callable[[Channel], bool]) -> int:
    return sum(1 for channel in channels if condition(channel))
