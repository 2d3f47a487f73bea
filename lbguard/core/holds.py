"""Holds of targets: when each loss began, and the deadline that its cause, repairs and mass failures give it."""

import math
from collections.abc import Iterable

from lbguard.core.config import EngineConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.events import OpenHold
from lbguard.core.grace import Grace
from lbguard.core.hold_memory import HoldMemory
from lbguard.core.model import SOFT, Condition, TargetKey, TargetState
from lbguard.core.state import BAD_TO_GOOD, Stream, Target

_JITTER_S = 0.1

REPAIR_TIME_S = 0.5
"""Time for the repair of paths that came back unobserved, in an observation gap or before a start."""


class Holds:
    """Sets the deadlines of held and frozen targets; learns how long losses take to heal.

    The methods that change a hold return whether that is worth a record.
    """

    def __init__(self, config: EngineConfig, deadlines: Deadlines[TargetKey]) -> None:
        self.memory = HoldMemory(families=config.affinity)
        self._deadlines = deadlines
        self._config = config
        self._grace = Grace(config.grace)

    def configure(self, config: EngineConfig) -> None:
        """Use another configuration from now on; `LiveConfig` moves the deadlines that run."""
        self._config = config
        self._grace.configure(config.grace)

    def begin(self, target: Target, now: float, cause: Condition) -> bool:
        """Begin a hold: record the loss, and set the deadline to the end of the grace window."""
        target.lost_at, target.lost_to, target.lost_in = now, cause, target.lost_subnet()
        target.spared_until, target.frozen_at, target.kept = now, math.inf, False
        target.penalty.add_loss(self._config.damping, now)
        # Without flow affinity one forwarding path means a hold without a deadline: there is no time to continue.
        before = None if target.partial and not self.family_waits(target) else self.memory.take(target, now)
        if before is not None:
            self._go_on(target, before, now)
        self.set_deadline(target)
        return True

    def _go_on(self, target: Target, before: OpenHold, now: float) -> None:
        """Count an earlier run's observation of a loss; a path that came back meanwhile gets a repair's time."""
        target.lost_at = now - before.broken_s
        window = self.window_s(target)
        # The time of a repair is granted once over all runs, however short each is.
        repaired_at = min(now + REPAIR_TIME_S, target.lost_at + window + REPAIR_TIME_S)
        target.spared_until = min(max(now + before.left_s, repaired_at), target.lost_at + self._config.grace.max_s)
        if before.frozen_s is not None:
            target.frozen_at = now - before.frozen_s
            # The mass failure may be over, and heals come one after another: one more window, as when it ends.
            target.spared_until = min(now + window, self.freeze_end(target))

    def begin_anew(self, target: Target, now: float, cause: Condition) -> None:
        """Begin another loss: the remaining path of a held target is lost as well."""
        target.lost_at, target.lost_to, target.lost_in = now, cause, target.lost_subnet()
        target.spared_until, target.frozen_at, target.kept = now, math.inf, False
        self._deadlines.cancel(target.key)

    def revise(self, target: Target, now: float, cause: Condition) -> bool:
        """Move the deadline of a hold after a change of its cause, or after a verdict of a repair (HEALING)."""
        if target.partial and not self.family_waits(target):
            return self._revise_partial(target, cause)
        before = self._deadlines.get(target.key)
        if before is not None and cause is target.cause and target.healing_end() == target.healing_until:
            return False
        if before is None and target.partial:
            return self._let_family_wait(target, now, cause)
        if BAD_TO_GOOD[cause] > BAD_TO_GOOD[target.cause]:
            # The path is coming back (its link exists, its route not yet): a milder cause never shortens the deadline.
            # That of an operator's hold is no deadline of the loss.
            target.spared_until = now if before is None or target.kept else before
        elif cause is not target.cause:
            target.spared_until = now
        worth_record = before is None or cause is not target.cause
        self.note_cause(target, cause)
        self.set_deadline(target)
        after = self._deadlines.get(target.key)
        assert after is not None
        moved_s = math.inf if before is None else abs(after - before)
        # Each renewal of HEALING moves the deadline by its transmission jitter; that is not worth a record.
        return moved_s > 0 if worth_record else moved_s > _JITTER_S

    def _revise_partial(self, target: Target, cause: Condition) -> bool:
        """Drop the deadline of a hold when it has passed: families that come back one after another need no record."""
        news = not target.open_ended or cause is not target.cause
        self.note_cause(target, cause)
        if self._deadlines.get(target.key) is not None:
            return False
        target.open_ended = True
        return news

    def _let_family_wait(self, target: Target, now: float, cause: Condition) -> bool:
        """Give a lost family a window: another family than the withdrawn one is lost, or a mass failure goes on."""
        news = target.open_ended
        if news:
            self.begin_anew(target, now, cause)
        self.note_cause(target, cause)
        # In a mass failure a family is not withdrawn for one more window, again and again, as in a freeze.
        target.spared_until = now + self.window_s(target)
        self.set_deadline(target)
        return news

    def freeze(self, target: Target, now: float, cause: Condition) -> bool:
        """Keep a target while a mass failure goes on, until the limit of the freeze."""
        target.thawed_at = math.inf
        if not target.froze:
            target.frozen_at = now
        self._deadlines.set(target.key, self.freeze_end(target))
        return True

    def stay_frozen(self, target: Target, cause: Condition) -> None:
        """Note the cause of a frozen target's loss; without a deadline it gets that of the freeze."""
        self.note_cause(target, cause)
        if self._deadlines.get(target.key) is None:
            self._deadlines.set(target.key, self.freeze_end(target))

    def keep_no_longer(self, target: Target, seen_until: float) -> None:
        """End a hold by hand: a deadline that it outlasted applies now.

        `seen_until`: now, or when the view of the kernel was lost. The deadline moves by the whole time when the view
        is complete again.
        """
        if not target.kept:
            return
        target.kept = False
        if target.state is TargetState.HELD:
            self.set_deadline(target)
        elif target.state is TargetState.FROZEN:
            self._deadlines.set(target.key, self.frozen_deadline(target))
        deadline = self._deadlines.get(target.key)
        if deadline is not None and deadline < seen_until:
            self._deadlines.set(target.key, seen_until)

    def thaw(self, stream: Stream, now: float) -> None:
        """End a mass failure: targets that are still frozen get one more window, since paths heal one after another."""
        for target in stream.targets.values():
            if target.state is TargetState.FROZEN:
                target.thawed_at = now
                if not target.kept:
                    self._deadlines.set(target.key, self.frozen_deadline(target))

    def unseen(self, streams: Iterable[Stream], duration_s: float, now: float) -> None:
        """Exclude a time without observation that ends now: the deadlines of broken targets move by it."""
        for stream in streams:
            for target in stream.targets.values() if stream.held else ():
                if target.state in (TargetState.HELD, TargetState.FROZEN):
                    # A verdict may have started the hold while the view of the kernel was lost.
                    shift_s = min(duration_s, now - target.since)
                    target.lost_at += shift_s
                    target.spared_until += shift_s
                    target.frozen_at += shift_s
                    target.thawed_at += shift_s
                    deadline = self._deadlines.get(target.key)
                    if deadline is not None:
                        self._deadlines.set(target.key, deadline + shift_s)

    def note_cause(self, target: Target, cause: Condition) -> None:
        """Note the cause of a loss, and whether the evidence is soft."""
        target.cause = cause
        # With one family lost for good, soft evidence against the other alone decides whether the target is withdrawn.
        target.soft = cause in SOFT or any(path.condition in SOFT for path in target.paths.values())

    def note_taken_out(self, target: Target, now: float) -> None:
        """Record that no evidence takes a target out: it counts against no budget, and teaches nothing about heals."""
        target.soft, target.lost_in = False, None
        if target.state in (TargetState.ACTIVE, TargetState.DRAINING):
            target.lost_at = now

    def learn(self, target: Target, now: float) -> None:
        """Record how long a loss took to heal, once a loss; heals after the window count too."""
        self._grace.learn(target.lost_in, target.lost_to, target.lost_at, now - target.lost_at)
        target.lost_in = None

    def set_deadline(self, target: Target) -> None:
        """Set the deadline by the cause of the loss and the reported repair.

        None while a path still forwards: without flow affinity the lost family cannot be withdrawn alone.
        """
        target.open_ended = target.partial and not self.family_waits(target)
        if target.open_ended:
            self._deadlines.cancel(target.key)
            return
        target.healing_until = target.healing_end()
        self._deadlines.set(target.key, self.grace_deadline(target))

    def grace_deadline(self, target: Target) -> float:
        """Return when a target that is held is withdrawn."""
        deadline = self._grace.deadline(target.lost_at, target.cause, target.lost_in, target.healing_until)
        kept_until = target.override.until if target.kept and target.override is not None else -math.inf
        return max(deadline, target.spared_until, kept_until)

    def window_s(self, target: Target) -> float:
        """Return the grace window of a target's loss, in seconds."""
        return self._grace.window_s(target.cause, target.lost_in)

    def frozen_deadline(self, target: Target) -> float:
        """Return when a target that is frozen is decided again: one window after the end of the mass failure."""
        return min(self.freeze_end(target), target.thawed_at + self.window_s(target))

    def freeze_end(self, target: Target) -> float:
        """Return when the limit of a target's freeze is reached."""
        return target.frozen_at + self._config.freeze.limit_s

    def family_waits(self, target: Target) -> bool:
        """Return whether a lost family of a target is to be withdrawn alone, which needs flow affinity."""
        return self._config.affinity and bool(target.families_lost())
