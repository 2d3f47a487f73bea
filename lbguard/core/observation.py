"""Observation gaps: time in which the kernel's state was unknown, and its effect on broken targets.

The process was stopped, its loop was blocked, or the view of the kernel was lost: a target may have healed meanwhile.
So that time does not count towards any deadline, and a path that came back in it gets the time of a repair before its
target is withdrawn.
"""

from collections.abc import Mapping

from lbguard.core.commits import Availability
from lbguard.core.holds import REPAIR_TIME_S
from lbguard.core.lifecycle import Lifecycle
from lbguard.core.model import ADMITTED, SOFT, Condition
from lbguard.core.state import Stream, Target

LOOK_S = 0.25
"""The time between two observations counts towards a broken target's deadline up to this limit: the state at both is
known, the state between is not. It is a fraction of any useful window, and longer than one turn of a busy loop; so a
process without enough CPU still decides."""

_SOON_MENDED = SOFT | {Condition.ROUTE_MISSING}
"""Faults that the first observation after a gap may still show although they have healed: routes are programmed and
verdicts arrive only now. The state of links and addresses is known at once."""


class Observation:
    """Tracks since when the kernel's state is unknown.

    `blind_since`: when the view was lost, the moment up to which the state was known. `repaired_at`: until then, paths
    that came back unobserved are being repaired.
    """

    def __init__(self, streams: Mapping[str, Stream], life: Lifecycle, availability: Availability) -> None:
        self.blind_since = float("-inf")
        self.repaired_at = float("-inf")
        self._streams = streams
        self._life = life
        self._availability = availability

    def lost(self, now: float) -> None:
        """Record that the view of the kernel is lost."""
        self.blind_since = now

    def regained(self, now: float) -> None:
        """Record that the view is complete again."""
        self.was_blind(now - self.blind_since, now)

    def was_blind(self, duration_s: float, now: float) -> None:
        """Exclude from all deadlines a time without observation that ends now."""
        self._life.holds.unseen(self._streams.values(), unseen_s(duration_s), now)
        self.repaired_at = now + REPAIR_TIME_S
        self._availability.postpone(self.repaired_at)

    def soon_mended(self, target: Target, now: float) -> bool:
        """Return whether a target whose deadline has passed may have healed unobserved and is being repaired."""
        return now < self.repaired_at and target.state in ADMITTED and target.cause in _SOON_MENDED

    def acts_at(self, target: Target, at: float) -> float:
        """Return when a target's deadline takes effect, at or after a moment."""
        return self.repaired_at if self.soon_mended(target, at) else at


def unseen_s(duration_s: float) -> float:
    """Return the part of the time between two observations, in seconds, that does not count."""
    return max(0.0, duration_s - LOOK_S)
