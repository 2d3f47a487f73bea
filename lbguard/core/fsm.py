"""State machine of a target: one literal table of transitions.

A target is in one of six states (`TargetState`), or gone. `PENDING`, `WITHDRAWN`: not in the distributor. `ACTIVE`,
`HELD`, `FROZEN`, `DRAINING`: in it (admitted). Twelve inputs move it:

- `PATH_OK`, `PATH_PARTIAL`, `PATH_BROKEN`: the current condition over all paths of the target. They are levels, not
  edges: one is applied after every change that concerns the target, and repeating it changes nothing. `PATH_PARTIAL`:
  the path of one family is lost, that of the other forwards.
- `DEADLINE`: the state's deadline has passed: the end of the grace window (HELD), the freeze limit or the end of the
  mass failure plus one window (FROZEN), the end of the damping delay (WITHDRAWN with a good path).
- `DEADLINE_MASS`: the same, but several of the stream's admitted targets, and more than `freeze.threshold` of them, are
  broken. Then the fault is probably on this node, and withdrawing all targets helps no connection.
- `DEADLINE_VETOED`: the same, but the loss rests on soft evidence alone and the stream's soft budget is used up. The
  evidence is ignored for a time: the target returns to ACTIVE with a pardon.
- `DEADLINE_FAMILY`: the same for a target that lost one family, with flow affinity: this family is withdrawn alone.
- `DEADLINE_KEPT`: the same for a target that an operator holds: it stays in the table until the operator's hold ends.
- `DRAIN`: the target is to get no new flow (with flow affinity): the source says so, or no longer lists it, or an
  operator does.
- `RESUME`: it is listed again, or the operator's drain is over, and it gets new flows.
- `WITHDRAW`: an operator takes the target out of the table.
- `REMOVED`: the source no longer lists the target.

The rules behind the cells:

1. A broken path never withdraws by itself; only a deadline or the source does. So the table does not change before the
   grace window ends.
2. Recoveries apply at once: an admitted target is ACTIVE again as soon as its path is good. Only a WITHDRAWN target
  waits (damping).
3. REMOVED applies in every state, without grace: the removal is deliberate. Where a drain is configured, it comes at
  the end of the drain.
4. A deadline that fires in a state without a deadline is late and changes nothing.
5. Both families of a target are one entry of the table, so withdrawing it for the loss of one would break the healthy
   connections of the other. PATH_PARTIAL holds without a deadline (a running one is dropped when it passes: it becomes
   PATH_PARTIAL); the grace window begins when the last path is lost.
   A target that is not in the table is not admitted: new connections of the lost family would be sent to it.
   With flow affinity the kernel serves each family by itself: the lost family gets the grace window, and is withdrawn
   at its end (DEADLINE_FAMILY); the target stays HELD.
6. A draining target is held like any other while its path is broken, and drains on when the path is good again. A
   target that is not in the table is not admitted as long as it is to be drained.
7. An operator's override ends at a moment that is known when it begins. Until then a hold outlasts every deadline, and
   a target that was withdrawn by hand gets no other input than REMOVED. At its end the rules above apply at once.

The engine keeps the timers. This module has no notion of time.
"""

from enum import StrEnum
from typing import NamedTuple

from lbguard.core.model import Action, TargetState

PENDING, ACTIVE, HELD, FROZEN, WITHDRAWN, DRAINING = TargetState


class Input(StrEnum):
    """Input of the state machine of a target."""

    PATH_OK = "path_ok"
    PATH_PARTIAL = "path_partial"
    PATH_BROKEN = "path_broken"
    DEADLINE = "deadline"
    DEADLINE_MASS = "deadline_mass"
    DEADLINE_VETOED = "deadline_vetoed"
    DEADLINE_FAMILY = "deadline_family"
    DEADLINE_KEPT = "deadline_kept"
    DRAIN = "drain"
    RESUME = "resume"
    WITHDRAW = "withdraw"
    REMOVED = "removed"


class Transition(NamedTuple):
    """The next state (None: the target is forgotten) and the action of the transition."""

    state: TargetState | None
    action: Action


_OK, _PARTIAL, _BROKEN, _DEADLINE, _MASS, _VETOED, _FAMILY, _KEPT, _DRAIN, _RESUME, _WITHDRAW, _REMOVED = Input

TRANSITIONS: dict[tuple[TargetState, Input], Transition] = {
    (PENDING, _OK): Transition(ACTIVE, Action.ADMIT),
    (PENDING, _PARTIAL): Transition(PENDING, Action.STAY),
    (PENDING, _BROKEN): Transition(PENDING, Action.STAY),
    (PENDING, _DEADLINE): Transition(PENDING, Action.STAY),
    (PENDING, _MASS): Transition(PENDING, Action.STAY),
    (PENDING, _VETOED): Transition(PENDING, Action.STAY),
    (PENDING, _FAMILY): Transition(PENDING, Action.STAY),
    (PENDING, _KEPT): Transition(PENDING, Action.STAY),
    (PENDING, _DRAIN): Transition(PENDING, Action.STAY),
    (PENDING, _RESUME): Transition(PENDING, Action.STAY),
    (PENDING, _WITHDRAW): Transition(PENDING, Action.STAY),
    (PENDING, _REMOVED): Transition(None, Action.FORGET),
    (ACTIVE, _OK): Transition(ACTIVE, Action.STAY),
    (ACTIVE, _PARTIAL): Transition(HELD, Action.HOLD),
    (ACTIVE, _BROKEN): Transition(HELD, Action.HOLD),
    (ACTIVE, _DEADLINE): Transition(ACTIVE, Action.STAY),
    (ACTIVE, _MASS): Transition(ACTIVE, Action.STAY),
    (ACTIVE, _VETOED): Transition(ACTIVE, Action.STAY),
    (ACTIVE, _FAMILY): Transition(ACTIVE, Action.STAY),
    (ACTIVE, _KEPT): Transition(ACTIVE, Action.STAY),
    (ACTIVE, _DRAIN): Transition(DRAINING, Action.DRAIN),
    (ACTIVE, _RESUME): Transition(ACTIVE, Action.STAY),
    (ACTIVE, _WITHDRAW): Transition(WITHDRAWN, Action.TAKE_OUT),
    (ACTIVE, _REMOVED): Transition(None, Action.REMOVE),
    (HELD, _OK): Transition(ACTIVE, Action.RECOVER),
    (HELD, _PARTIAL): Transition(HELD, Action.REVISE),
    (HELD, _BROKEN): Transition(HELD, Action.REVISE),
    (HELD, _DEADLINE): Transition(WITHDRAWN, Action.WITHDRAW),
    (HELD, _MASS): Transition(FROZEN, Action.FREEZE),
    (HELD, _VETOED): Transition(ACTIVE, Action.PARDON),
    (HELD, _FAMILY): Transition(HELD, Action.WITHDRAW_FAMILY),
    (HELD, _KEPT): Transition(HELD, Action.KEEP),
    (HELD, _DRAIN): Transition(HELD, Action.STAY),
    (HELD, _RESUME): Transition(HELD, Action.STAY),
    (HELD, _WITHDRAW): Transition(WITHDRAWN, Action.TAKE_OUT),
    (HELD, _REMOVED): Transition(None, Action.REMOVE),
    (FROZEN, _OK): Transition(ACTIVE, Action.RECOVER),
    (FROZEN, _PARTIAL): Transition(HELD, Action.REVISE),
    (FROZEN, _BROKEN): Transition(FROZEN, Action.STAY),
    (FROZEN, _DEADLINE): Transition(WITHDRAWN, Action.WITHDRAW),
    (FROZEN, _MASS): Transition(FROZEN, Action.STAY),
    (FROZEN, _VETOED): Transition(ACTIVE, Action.PARDON),
    (FROZEN, _FAMILY): Transition(FROZEN, Action.STAY),
    (FROZEN, _KEPT): Transition(FROZEN, Action.KEEP),
    (FROZEN, _DRAIN): Transition(FROZEN, Action.STAY),
    (FROZEN, _RESUME): Transition(FROZEN, Action.STAY),
    (FROZEN, _WITHDRAW): Transition(WITHDRAWN, Action.TAKE_OUT),
    (FROZEN, _REMOVED): Transition(None, Action.REMOVE),
    (WITHDRAWN, _OK): Transition(WITHDRAWN, Action.WAIT),
    (WITHDRAWN, _PARTIAL): Transition(WITHDRAWN, Action.RELAPSE),
    (WITHDRAWN, _BROKEN): Transition(WITHDRAWN, Action.RELAPSE),
    (WITHDRAWN, _DEADLINE): Transition(ACTIVE, Action.READMIT),
    (WITHDRAWN, _MASS): Transition(ACTIVE, Action.READMIT),
    (WITHDRAWN, _VETOED): Transition(ACTIVE, Action.READMIT),
    (WITHDRAWN, _FAMILY): Transition(WITHDRAWN, Action.STAY),
    (WITHDRAWN, _KEPT): Transition(WITHDRAWN, Action.STAY),
    (WITHDRAWN, _DRAIN): Transition(WITHDRAWN, Action.STAY),
    (WITHDRAWN, _RESUME): Transition(WITHDRAWN, Action.STAY),
    (WITHDRAWN, _WITHDRAW): Transition(WITHDRAWN, Action.STAY),
    (WITHDRAWN, _REMOVED): Transition(None, Action.FORGET),
    (DRAINING, _OK): Transition(DRAINING, Action.STAY),
    (DRAINING, _PARTIAL): Transition(HELD, Action.HOLD),
    (DRAINING, _BROKEN): Transition(HELD, Action.HOLD),
    (DRAINING, _DEADLINE): Transition(DRAINING, Action.STAY),
    (DRAINING, _MASS): Transition(DRAINING, Action.STAY),
    (DRAINING, _VETOED): Transition(DRAINING, Action.STAY),
    (DRAINING, _FAMILY): Transition(DRAINING, Action.STAY),
    (DRAINING, _KEPT): Transition(DRAINING, Action.STAY),
    (DRAINING, _DRAIN): Transition(DRAINING, Action.DRAIN),
    (DRAINING, _RESUME): Transition(ACTIVE, Action.RESUME),
    (DRAINING, _WITHDRAW): Transition(WITHDRAWN, Action.TAKE_OUT),
    (DRAINING, _REMOVED): Transition(None, Action.REMOVE),
}
