"""Time in which the kernel could not be looked at, and what it does to targets that are broken.

The process was stopped, its loop was held up, or the view of the kernel was lost: a target may have healed meanwhile.
So that time counts against no target, and what came back in it gets the time of a repair before anything is held
against it.
"""

from collections.abc import Mapping

from lbguard.core.commits import Availability
from lbguard.core.lifecycle import REPAIR_TIME_S, Lifecycle
from lbguard.core.model import ADMITTED, SOFT, Condition
from lbguard.core.state import Stream, Target

LOOK_S = 0.25
"""The time between two looks counts against a broken target up to so much: the state at both is known, and what lies
between them is not. It is a fraction of any useful window, and more than a busy loop needs to come round; so a process
that is starved all the time still comes to its decisions."""

_SOON_MENDED = SOFT | {Condition.ROUTE_MISSING}
"""Faults that may still show at the first look after a while, although they have healed: routes are programmed and
verdicts arrive only now. The state of links and addresses is known at once."""


class Observation:
    """Follows since when the kernel is not seen.

    `blind_since`: the moment up to which its state was known, when that was lost. `repaired_at`: until then, what came
    back unseen is being repaired.
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
        """Record that it is whole again."""
        self.was_blind(now - self.blind_since, now)

    def was_blind(self, duration_s: float, now: float) -> None:
        """Hold a time up to now, in which nothing was looked at, against no target."""
        self._life.unseen(self._streams.values(), unseen_s(duration_s), now)
        self.repaired_at = now + REPAIR_TIME_S
        self._availability.postpone(self.repaired_at)

    def soon_mended(self, target: Target, now: float) -> bool:
        """Return whether a target whose deadline has come may have healed unseen, and is only being repaired."""
        return now < self.repaired_at and target.state in ADMITTED and target.cause in _SOON_MENDED

    def acts_at(self, target: Target, at: float) -> float:
        """Return when a target's deadline that is looked at at a moment is acted on."""
        return self.repaired_at if self.soon_mended(target, at) else at


def unseen_s(duration_s: float) -> float:
    """Return how much of the time between two looks, in seconds, does not count."""
    return max(0.0, duration_s - LOOK_S)
