"""From what the client noted down to the numbers of the table; pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lbguard.lab.traffic import OPEN, RESET, Channel, TrafficResult

STALLED_AFTER_S = 2.0
"""A connection that had no answer in this last part of the run is stalled."""
AT_ONCE_S = 0.2
"""New connections are to follow a change of the list of targets within this time."""
WAITED_OVER_S = 0.1
"""A new connection that took longer to be connected has waited: the shortest repeat of a lost SYN comes after 1 s."""
GONE = frozenset({"withdraw", "withdraw_family", "remove"})
"""Decisions that end the connections of a target."""
WAITED_FOR_SYN_S = 0.95
"""The same where packets wait in a queue for longer: then only a repeated SYN counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The numbers of one run. Gaps are the longest pause of each unbroken connection after the scenario started.

    `broken` and `moved` count connections of targets that come back or never left; those of targets lost for
    good stand in `lost_broken`, and in `lost_silent` those of them that got neither an answer nor a reset. Broken is
    `reset` or `stalled` (no answer for the rest of the run) or closed. Moved means that the packets reached another
    target: it answered, or it refused (RST) what it does not know.
    `disturbed` counts the connections whose path the scenario breaks, and those that broke or moved although it does
    not, as today, where the withdrawal of one target moves slots of others: so no more are broken than are disturbed.
    `new_opened` counts the new connections that were opened after the first step of the scenario, `new_waited` those of
    them that took longer than `Scope.waited_over_s` to be connected or never were, and `new_broken` those that broke or
    moved. `new_on_relisted` counts those that a target answers which the scenario removed from the list, or added to
    it, at least `AT_ONCE_S` before.
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
    lost_silent: int = 0
    udp_sent: int = 0
    udp_lost: int = 0
    udp_moved: int = 0
    longest_gap_s: float = 0.0
    median_gap_s: float = 0.0
    recovered_s: float = 0.0
    client_late_s: float = 0.0
    new_opened: int = 0
    new_waited: int = 0
    new_broken: int = 0
    new_on_relisted: int = 0
    new_longest_connect_s: float = 0.0
    new_longest_gap_s: float = 0.0


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
    """Channels that a scenario disturbs and targets that it removes for ever. `family` None means both.

    A connection of a lost target counts as one of the others when it ends before `lost_from`: until then the target is
    to keep it (seconds since the epoch). `relisted` targets leave the list or join it.
    `stepped` is when the scenario's first step was done: new connections count from then on (seconds since the epoch).
    """

    disturbed: frozenset[int]
    lost: frozenset[int] = frozenset()
    lost_from: float = 0.0
    relisted: frozenset[int] = frozenset()
    family: int | None = None
    stepped: float = 0.0
    waited_over_s: float = WAITED_OVER_S

    def disturbs(self, channel: Channel) -> bool:
        """Return whether a channel's path is broken by the scenario."""
        return channel.target in self.disturbed and self.family in (None, channel.family)

    def loses(self, channel: Channel) -> bool:
        """Return whether a channel's target is removed for ever, for its family, and not before the channel ended."""
        if channel.target not in self.lost or self.family not in (None, channel.family):
            return False
        return channel.ending == OPEN or channel.ended_at >= self.lost_from


def count_decisions(records: Sequence[dict[str, Any]], since: float, lost: frozenset[int], dropped: int = 0) -> Decided:
    """Count decisions in the log of the process that decides, from `since` (seconds since the epoch) on."""
    decisions = [r for r in records if r.get("event") == "decision" and r["ts"] >= since]
    others = [r["action"] for r in decisions if r.get("identifier") not in lost]
    gone = {r["identifier"]: r["ts"] - since for r in decisions if r["action"] in GONE and r["identifier"] in lost}
    return Decided(
        holds=others.count("hold"),
        withdrawals=others.count("withdraw"),
        lost_after_s=max(gone.values()) if lost and gone.keys() == lost else None,
        dropped=dropped,
    )


def is_stalled(channel: Channel, ended: float) -> bool:
    """Return whether a channel that is still open had no answer at the end of the run."""
    if channel.opened_at and not channel.answered:
        # It waits to be connected, or for its first answer.
        connected_at = ended if channel.connect_s is None else channel.opened_at + channel.connect_s
        return channel.ending == OPEN and ended - connected_at >= STALLED_AFTER_S
    return channel.ending == OPEN and ended - channel.last_at >= STALLED_AFTER_S


def _is_broken(channel: Channel, ended: float) -> bool:
    return channel.ending != OPEN or is_stalled(channel, ended)


def is_moved(channel: Channel) -> bool:
    """Return whether another target than the first answered, or refused, a connection."""
    return channel.wrong > 0 or channel.ending == RESET


def longest_gap(channel: Channel, since: float) -> tuple[float, float]:
    """Return the longest pause that ended after `since` as (length, end), or (interval, since) when there was none."""
    gaps = [(length, start + length) for start, length in channel.gaps if start + length > since]
    return max(gaps, default=(channel.interval_s, since))


def measure(result: TrafficResult, since: float, scope: Scope) -> Measurement:
    """Count what happened to the traffic from `since` (seconds since the epoch) on."""
    kept = [c for c in result.connections if not scope.loses(c)]
    lost = [c for c in result.connections if scope.loses(c)]
    stalled = [c for c in kept if is_stalled(c, result.ended)]
    survived = [c for c in kept if not _is_broken(c, result.ended)]
    gaps = [longest_gap(c, since) for c in survived]
    disturbed_gaps = [longest_gap(c, since) for c in survived if scope.disturbs(c)]
    new = newcomers(result, scope.stepped)
    waits = [connect_s(c, result.ended) for c in new]
    new_survived = [c for c in new if not _is_broken(c, result.ended) and c.answered]
    return Measurement(
        opened=len(result.connections),
        disturbed=_count(result.connections, lambda c: scope.disturbs(c) or is_moved(c) or _is_broken(c, result.ended)),
        broken=len(kept) - len(survived),
        reset=_count(kept, lambda c: c.ending == RESET),
        stalled=len(stalled),
        moved=_count(kept, is_moved),
        lost_connections=len(lost),
        lost_broken=_count(lost, lambda c: _is_broken(c, result.ended)),
        lost_silent=_count(lost, lambda c: is_stalled(c, result.ended)),
        udp_sent=sum(flow.sent for flow in result.flows),
        udp_lost=sum(flow.sent - flow.answered for flow in result.flows),
        udp_moved=sum(flow.wrong for flow in result.flows),
        longest_gap_s=max((length for length, _ in gaps), default=0.0),
        median_gap_s=median(length for length, _ in disturbed_gaps) if disturbed_gaps else 0.0,
        recovered_s=max((end - since for _, end in disturbed_gaps), default=0.0),
        client_late_s=result.late_s,
        new_opened=len(new),
        new_waited=sum(1 for wait_s in waits if wait_s > scope.waited_over_s),
        new_broken=_count(new, lambda c: is_moved(c) or _is_broken(c, result.ended)),
        new_on_relisted=_count(newcomers(result, scope.stepped + AT_ONCE_S), lambda c: c.target in scope.relisted),
        new_longest_connect_s=max(waits, default=0.0),
        new_longest_gap_s=max((longest_gap(c, since)[0] for c in new_survived), default=0.0),
    )


def newcomers(result: TrafficResult, stepped: float) -> list[Channel]:
    """Return the new connections that were opened after a time."""
    return [channel for channel in result.newcomers if channel.opened_at > stepped]


def connect_s(channel: Channel, ended: float) -> float:
    """Return how long a new connection took to be connected; one that never was, how long it waited."""
    return (channel.ended_at or ended) - channel.opened_at if channel.connect_s is None else channel.connect_s


def _count(channels: Sequence[Channel], condition: Callable[[Channel], bool]) -> int:
    return sum(1 for channel in channels if condition(channel))
