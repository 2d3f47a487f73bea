"""Holds across restarts: those that an earlier run left open, and those open now.

A process that is killed and restarted adopts its targets as ACTIVE. Without a memory, each start would give a broken
target its whole window again, so a process that crashes more often than the window would hold it for ever. Only time in
which the loss was observed counts: the state while lbguard did not run is unknown.

- A target that is broken at its first evaluation continues its hold with the time spent and left.
- With flow affinity the same is true of a target that lost one family: the family is held for the time left, or
  withdrawn again at once.
- A target that is not broken has healed, and its record is dropped. Soft evidence is the exception: after a start it
  arrives only within seconds; until then its absence proves nothing.
"""

from collections.abc import Iterable

from lbguard.core.deadlines import Deadlines
from lbguard.core.events import OpenHold
from lbguard.core.model import SOFT, TargetKey, TargetState
from lbguard.core.state import Stream, Target

_KEPT_S = 60.0
"""A record is dropped when its target was not evaluated within this time."""
_SOFT_EVIDENCE_S = 5.0
"""Within this time after a start, reporters have reconnected and silent neighbours have failed again."""
_BROKEN = (TargetState.HELD, TargetState.FROZEN)


class HoldMemory:
    """The holds of an earlier run, each until its target is evaluated. `families`: those of one family as well."""

    def __init__(self, *, families: bool) -> None:
        self._families = families
        self._holds: dict[TargetKey, tuple[OpenHold, float]] = {}

    def remember(self, holds: Iterable[OpenHold], now: float) -> None:
        """Adopt the holds that an earlier run left open."""
        for hold in holds:
            self._holds[TargetKey(hold.stream, hold.identifier)] = hold, now + _KEPT_S

    def take(self, target: Target, now: float) -> OpenHold | None:
        """Return, once, the remembered hold of a target that is broken now, in the same family or as a whole."""
        hold, until = self._holds.pop(target.key, (None, now))
        if hold is None or now >= until or set(hold.ips) != target.paths.keys():
            return None
        if target.lost_alone() != set(hold.lost):
            return None
        return hold

    def forwards(self, target: Target, now: float) -> None:
        """Record that a target has a path that forwards now."""
        hold, until = self._holds.get(target.key, (None, now))
        if hold is None or (hold.lost and any(path.lost for path in target.paths.values())):
            return
        if hold.cause in SOFT and now < until:
            self._holds[target.key] = hold, min(until, now + _SOFT_EVIDENCE_S)
        else:
            del self._holds[target.key]

    def forget(self, key: TargetKey) -> None:
        """Forget a target that left the source."""
        self._holds.pop(key, None)

    def open_holds(
        self, streams: Iterable[Stream], deadlines: Deadlines[TargetKey], seen_until: float, now: float
    ) -> tuple[OpenHold, ...]:
        """Return the holds that are open now, and the remembered ones whose target was not evaluated yet.

        `seen_until`: the moment up to which the state of the kernel is known.
        """
        remembered = [hold for hold, until in self._holds.values() if now < until]
        broken = [
            OpenHold(
                stream=target.key.stream,
                identifier=target.key.identifier,
                ips=tuple(target.paths),
                cause=target.cause,
                broken_s=max(0.0, seen_until - target.lost_at),
                frozen_s=max(0.0, seen_until - target.frozen_at) if target.froze else None,
                left_s=max(0.0, (deadlines.get(target.key) or seen_until) - seen_until),
                lost=tuple(sorted(target.lost_alone())),
            )
            for stream in streams
            if stream.held
            for target in stream.targets.values()
            if target.state in _BROKEN and (not target.partial or (self._families and target.lost_alone()))
        ]
        return (*remembered, *broken)
