"""Life cycle of targets: applies the transitions of `fsm.py`, sets deadlines, and writes the decision records."""

import math
from collections.abc import Callable, Iterable

from lbguard.core.config import EngineConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.effects import Record
from lbguard.core.events import OpenHold
from lbguard.core.fsm import TRANSITIONS, Input
from lbguard.core.grace import Grace
from lbguard.core.hold_memory import HoldMemory
from lbguard.core.model import (
    SOFT,
    Action,
    Condition,
    Decision,
    Evidence,
    ManualAction,
    Override,
    TargetKey,
    TargetState,
)
from lbguard.core.state import BAD_TO_GOOD, Stream, Target

MANUAL_CAUSES = {
    ManualAction.DRAIN: "manual_drain",
    ManualAction.HOLD: "manual_hold",
    ManualAction.WITHDRAW: "manual_withdraw",
}
"""Cause of a decision that follows from an operator's override."""

_CAUSES = {
    Action.ADMIT: "path_ok",
    Action.READMIT: "path_ok",
    Action.WAIT: "damped",
    Action.DRAIN: "source",
    Action.RESUME: "source",
    Action.REMOVE: "source",
    Action.FORGET: "source",
    Action.KEEP: MANUAL_CAUSES[ManualAction.HOLD],
    Action.TAKE_OUT: MANUAL_CAUSES[ManualAction.WITHDRAW],
}
"""Actions whose cause is not the condition of the path."""

_SINCE_THE_LOSS = frozenset({Action.RECOVER, Action.WITHDRAW, Action.WITHDRAW_FAMILY, Action.READMIT})
"""Actions whose record says how long the loss lasted, not the state."""

_LEVELS = frozenset({Input.PATH_OK, Input.PATH_PARTIAL, Input.PATH_BROKEN})
_DEADLINES = frozenset({Input.DEADLINE, Input.DEADLINE_MASS, Input.DEADLINE_VETOED, Input.DEADLINE_KEPT})
_JITTER_S = 0.1

REPAIR_TIME_S = 0.5
"""Time for the repair of paths that came back unobserved, in an observation gap or before a start."""


class Lifecycle:
    """Applies inputs to targets; collects the decision records and the names of streams whose targets changed state."""

    def __init__(self, config: EngineConfig, evidence: Callable[[Target], tuple[Evidence, ...]]) -> None:
        self.deadlines: Deadlines[TargetKey] = Deadlines()
        self.pardons: Deadlines[TargetKey] = Deadlines()
        self.drains: Deadlines[TargetKey] = Deadlines()
        self.moved: dict[str, None] = {}
        self.memory = HoldMemory(families=config.affinity)
        self._config = config
        self._evidence = evidence
        self._grace = Grace(config.grace)
        self._records: list[Record] = []
        self._sequence = 0

    def configure(self, config: EngineConfig) -> None:
        """Use another configuration from now on; `LiveConfig` moves the deadlines that run."""
        self._config = config
        self._grace.configure(config.grace)

    def take_records(self) -> list[Record]:
        """Return the decision records since the last call."""
        records, self._records = self._records, []
        return records

    def adopt(self, stream: Stream, target: Target, now: float) -> None:
        """Adopt a target that the distributor already holds, as ACTIVE; its path is evaluated next."""
        stream.move(target, TargetState.ACTIVE, now)
        self.moved[stream.spec.name] = None
        self._record(target, Action.ADOPT, TargetState.PENDING, "found_in_distributor", now)

    def judge(self, stream: Stream, target: Target, now: float) -> None:
        """Apply the current condition of a target's paths."""
        if target.overridden(ManualAction.WITHDRAW):
            # After a restart it may still be in the table.
            self.take_out(stream, target, now)
            return
        if target.draining and target.state in (TargetState.PENDING, TargetState.WITHDRAWN):
            return
        for path in target.paths.values():
            path.withdrawn = path.withdrawn and path.condition is not Condition.OK
        cause = target.judge(now)
        if self.pardons.get(target.key) is not None:
            # The usability of its path may change without a change of state.
            self.moved[stream.spec.name] = None
        if cause is Condition.OK:
            self.memory.forwards(target, now)
            self.apply(stream, target, Input.PATH_OK, now)
            if target.draining and target.state is TargetState.ACTIVE:
                self.apply(stream, target, Input.DRAIN, now, reason=_drain_cause(target))
        elif target.forwards(now):
            self.memory.forwards(target, now)
            self.apply(stream, target, Input.PATH_PARTIAL, now, cause)
        else:
            self.apply(stream, target, Input.PATH_BROKEN, now, cause)

    def expire(self, stream: Stream, target: Target, now: float) -> None:
        """Apply a deadline that has passed, as the input that the stream's condition makes of it."""
        self.apply(stream, target, self.due(stream, target, now), now, target.cause)

    def due(self, stream: Stream, target: Target, at: float) -> Input:
        """Return the input that a target's deadline becomes at a moment, in the stream's current state.

        It changes nothing. Predictions call it as well, so they match the decision.
        """
        broken = target.state in (TargetState.HELD, TargetState.FROZEN)
        if (
            broken
            and target.override is not None
            and target.overridden(ManualAction.HOLD)
            and at < target.override.until
        ):
            return Input.DEADLINE_KEPT
        if target.partial and target.state is TargetState.HELD:
            frozen = stream.mass_failure(self._config) and at < target.lost_at + self._config.freeze.limit_s
            return Input.DEADLINE_FAMILY if self.family_waits(target) and not frozen else Input.PATH_PARTIAL
        # A hold that an earlier run froze has spent a part of the limit, or all of it, before it freezes again.
        limit_passed = at >= self._freeze_end(target)
        if target.state is not TargetState.WITHDRAWN and not limit_passed and stream.mass_failure(self._config):
            return Input.DEADLINE_MASS
        if target.soft and not stream.soft_withdrawal_allowed(self._config):
            return Input.DEADLINE_VETOED
        return Input.DEADLINE

    def ends_at(self, key: TargetKey) -> float | None:
        """Return when the state of a target is decided again: its deadline, or else the end of its drain."""
        deadline = self.deadlines.get(key)
        return self.drains.get(key) if deadline is None else deadline

    def family_waits(self, target: Target) -> bool:
        """Return whether a lost family of a target is to be withdrawn alone, which needs flow affinity."""
        return self._config.affinity and bool(target.families_lost())

    def drain(self, stream: Stream, target: Target, now: float, *, until: float | None = None) -> None:
        """Give a target no new flow, for good or until a moment."""
        target.draining = True
        self.moved[stream.spec.name] = None
        if until is None:
            self.drains.cancel(target.key)
        else:
            self.drains.set(target.key, until)
        if target.state is TargetState.WITHDRAWN:
            target.waiting = False
            self.deadlines.cancel(target.key)
        self.apply(stream, target, Input.DRAIN, now, reason=_drain_cause(target))

    def resume(self, stream: Stream, target: Target, now: float, *, reason: str = "") -> None:
        """End a drain: the target gets new flows again. `reason`: for the record, if it is not the source."""
        target.draining = False
        self.moved[stream.spec.name] = None
        self.drains.cancel(target.key)
        self.apply(stream, target, Input.RESUME, now, reason=reason)

    def take_out(self, stream: Stream, target: Target, now: float) -> None:
        """Take a target out of the table, because an operator withdraws it."""
        if target.state is TargetState.WITHDRAWN and target.waiting:
            target.waiting = False
            self.deadlines.cancel(target.key)
        self.apply(stream, target, Input.WITHDRAW, now)

    def take_back(self, target: Target, now: float) -> None:
        """End a withdrawal by hand: from now on the evidence says why the target is not in the table."""
        if target.state is TargetState.WITHDRAWN:
            target.cause = target.judge(now)

    def keep_no_longer(self, target: Target, now: float) -> None:
        """End a hold by hand: a deadline that it outlasted applies now."""
        if not target.kept:
            return
        target.kept = False
        if target.state is TargetState.HELD:
            self._set_grace_deadline(target)
        elif target.state is TargetState.FROZEN:
            self.deadlines.set(target.key, self.frozen_deadline(target))
        deadline = self.deadlines.get(target.key)
        if deadline is not None and deadline < now:
            self.deadlines.set(target.key, now)

    def note(self, target: Target, action: Action, cause: str, now: float, override: Override) -> None:
        """Record that an operator's override begins or ends."""
        self._record(target, action, target.state, cause, now, override=override)

    def thaw(self, stream: Stream, now: float) -> None:
        """End a mass failure: targets that are still frozen get one more window, since paths heal one after another."""
        for target in stream.targets.values():
            if target.state is TargetState.FROZEN:
                target.thawed_at = now
                if not target.kept:
                    self.deadlines.set(target.key, self.frozen_deadline(target))

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
                    deadline = self.deadlines.get(target.key)
                    if deadline is not None:
                        self.deadlines.set(target.key, deadline + shift_s)

    def apply(
        self,
        stream: Stream,
        target: Target,
        what: Input,
        now: float,
        cause: Condition = Condition.OK,
        *,
        reason: str = "",
    ) -> None:
        """Apply one input to a target by the table of transitions. `reason`: for the record, in place of the cause."""
        state, action = TRANSITIONS[target.state, what]
        if action is Action.STAY and what not in _LEVELS | _DEADLINES:
            return
        before, lost_at, since = target.state, target.lost_at, target.since
        handler = _HANDLERS.get(action)
        if state is not before:
            if action in (Action.HOLD, Action.WITHDRAW):
                self._note_cause(target, cause)
            elif action is Action.TAKE_OUT:
                self._note_taken_out(target, now)
            stream.move(target, state, now)
            self.moved[stream.spec.name] = None
            self.deadlines.cancel(target.key)
        if what in _LEVELS:
            if target.partial and what is Input.PATH_BROKEN and state is TargetState.HELD:
                self._begin_anew(target, now, cause)
            target.partial = what is Input.PATH_PARTIAL
        speaks = handler(self, target, now, cause) if handler else True
        if state is TargetState.HELD:
            alone = target.partial and any(path.withdrawn for path in target.paths.values())
            stream.halve(target, halved=alone and not target.families_lost())
        if speaks or state is not before:
            started = lost_at if action in _SINCE_THE_LOSS else since
            why = _CAUSES.get(action) or (target.lost_to if action is Action.RECOVER else target.cause).value
            self._record(target, action, before, reason or why, now, now - started, gone=state is None)
        if target.waiting and self.deadlines.get(target.key) is None:
            target.waiting = False
            self.apply(stream, target, Input.DEADLINE, now)

    # Handlers: each returns whether the action is worth a record. They run after the move.

    def _hold(self, target: Target, now: float, cause: Condition) -> bool:
        """Begin a hold: record the loss, and set the deadline to the end of the grace window."""
        target.lost_at, target.lost_to, target.lost_in = now, cause, target.lost_subnet()
        target.spared_until, target.frozen_at, target.kept = now, math.inf, False
        target.penalty.add_loss(self._config.damping, now)
        # Without flow affinity one forwarding path means a hold without a deadline: there is no time to continue.
        before = None if target.partial and not self.family_waits(target) else self.memory.take(target, now)
        if before is not None:
            self._go_on(target, before, now)
        self._set_grace_deadline(target)
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
            target.spared_until = min(now + window, self._freeze_end(target))

    def _revise(self, target: Target, now: float, cause: Condition) -> bool:
        """Move the deadline of a hold after a change of its cause, or after a verdict of a repair (HEALING)."""
        if target.partial and not self.family_waits(target):
            return self._revise_partial(target, cause)
        before = self.deadlines.get(target.key)
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
        self._note_cause(target, cause)
        self._set_grace_deadline(target)
        after = self.deadlines.get(target.key)
        assert after is not None
        moved_s = math.inf if before is None else abs(after - before)
        # Each renewal of HEALING moves the deadline by its transmission jitter; that is not worth a record.
        return moved_s > 0 if worth_record else moved_s > _JITTER_S

    def _revise_partial(self, target: Target, cause: Condition) -> bool:
        """Drop the deadline of a hold when it has passed: families that come back one after another need no record."""
        news = not target.open_ended or cause is not target.cause
        self._note_cause(target, cause)
        if self.deadlines.get(target.key) is not None:
            return False
        target.open_ended = True
        return news

    def _let_family_wait(self, target: Target, now: float, cause: Condition) -> bool:
        """Give a lost family a window: another family than the withdrawn one is lost, or a mass failure goes on."""
        news = target.open_ended
        if news:
            self._begin_anew(target, now, cause)
        self._note_cause(target, cause)
        # In a mass failure a family is not withdrawn for one more window, again and again, as in a freeze.
        target.spared_until = now + self.window_s(target)
        self._set_grace_deadline(target)
        return news

    def _withdraw_family(self, target: Target, now: float, cause: Condition) -> bool:
        """Give the flows of the lost families to other targets; the target stays in the table for the other family."""
        for path in target.families_lost():
            path.withdrawn = True
        self.moved[target.key.stream] = None
        target.open_ended = True
        return True

    def _begin_anew(self, target: Target, now: float, cause: Condition) -> None:
        """Begin another loss: the remaining path of a held target is lost as well."""
        target.lost_at, target.lost_to, target.lost_in = now, cause, target.lost_subnet()
        target.spared_until, target.frozen_at, target.kept = now, math.inf, False
        self.deadlines.cancel(target.key)

    def _recover(self, target: Target, now: float, cause: Condition) -> bool:
        self._learn(target, now)
        return True

    def _freeze(self, target: Target, now: float, cause: Condition) -> bool:
        target.thawed_at = math.inf
        if not target.froze:
            target.frozen_at = now
        self.deadlines.set(target.key, self._freeze_end(target))
        return True

    def _keep(self, target: Target, now: float, cause: Condition) -> bool:
        """Keep a target in the table, whose deadline has passed, until the operator's hold ends."""
        assert target.override is not None
        news, target.kept = not target.kept, True
        self.deadlines.set(target.key, target.override.until)
        return news

    def _stay(self, target: Target, now: float, cause: Condition) -> bool:
        if target.state is TargetState.FROZEN:
            self._note_cause(target, cause)
            if self.deadlines.get(target.key) is None:
                self.deadlines.set(target.key, self._freeze_end(target))
        elif target.state is TargetState.PENDING:
            target.cause = cause
        return False

    def _pardon(self, target: Target, now: float, cause: Condition) -> bool:
        self.pardon_until(target, now + self._config.freeze.limit_s)
        return True

    def _wait(self, target: Target, now: float, cause: Condition) -> bool:
        if target.waiting:
            return False
        target.waiting, target.waiting_since = True, now
        self._learn(target, now)
        wait_s = target.penalty.wait_s(self._config.damping, now)
        if wait_s > 0:
            self.deadlines.set(target.key, now + wait_s)
        return wait_s > 0

    def _relapse(self, target: Target, now: float, cause: Condition) -> bool:
        if not target.waiting:
            return False
        target.waiting = False
        self.deadlines.cancel(target.key)
        target.penalty.add_loss(self._config.damping, now)
        return True

    def _readmit(self, target: Target, now: float, cause: Condition) -> bool:
        target.waiting = False
        return True

    def _remove(self, target: Target, now: float, cause: Condition) -> bool:
        target.waiting = False
        self.pardons.cancel(target.key)
        self.drains.cancel(target.key)
        self.memory.forget(target.key)
        return True

    def _note_cause(self, target: Target, cause: Condition) -> None:
        target.cause = cause
        # With one family lost for good, soft evidence against the other alone decides whether the target is withdrawn.
        target.soft = cause in SOFT or any(path.condition in SOFT for path in target.paths.values())

    def _note_taken_out(self, target: Target, now: float) -> None:
        """Record that no evidence takes a target out: it counts against no budget, and teaches nothing about heals."""
        target.soft, target.lost_in = False, None
        if target.state in (TargetState.ACTIVE, TargetState.DRAINING):
            target.lost_at = now

    def _learn(self, target: Target, now: float) -> None:
        """Record how long a loss took to heal, once a loss; heals after the window count too."""
        self._grace.learn(target.lost_in, target.lost_to, target.lost_at, now - target.lost_at)
        target.lost_in = None

    def _set_grace_deadline(self, target: Target) -> None:
        """Set the deadline by the cause of the loss and the reported repair.

        None while a path still forwards: without flow affinity the lost family cannot be withdrawn alone.
        """
        target.open_ended = target.partial and not self.family_waits(target)
        if target.open_ended:
            self.deadlines.cancel(target.key)
            return
        target.healing_until = target.healing_end()
        self.deadlines.set(target.key, self.grace_deadline(target))

    def grace_deadline(self, target: Target) -> float:
        """Return when a target that is held is withdrawn."""
        deadline = self._grace.deadline(target.lost_at, target.cause, target.lost_in, target.healing_until)
        kept_until = target.override.until if target.kept and target.override is not None else -math.inf
        return max(deadline, target.spared_until, kept_until)

    def window_s(self, target: Target) -> float:
        """Return the grace window of a target's loss, in seconds."""
        return self._grace.window_s(target.cause, target.lost_in)

    def pardon_until(self, target: Target, until: float) -> None:
        """Ignore soft evidence against a target until a moment."""
        target.pardoned_until = until
        self.pardons.set(target.key, until)

    def frozen_deadline(self, target: Target) -> float:
        """Return when a target that is frozen is decided again: one window after the end of the mass failure."""
        return min(self._freeze_end(target), target.thawed_at + self.window_s(target))

    def _freeze_end(self, target: Target) -> float:
        return target.frozen_at + self._config.freeze.limit_s

    def _record(
        self,
        target: Target,
        action: Action,
        before: TargetState,
        cause: str,
        now: float,
        duration_s: float | None = None,
        *,
        gone: bool = False,
        override: Override | None = None,
    ) -> None:
        self._sequence += 1
        decision = Decision(
            sequence=self._sequence,
            at=now,
            target=target.key,
            action=action,
            state_from=before,
            state_to=None if gone else target.state,
            cause=cause,
            deadline=self.ends_at(target.key),
            duration_s=duration_s,
            evidence=self._evidence(target),
            override=override or target.override,
        )
        self._records.append(Record(decision=decision))


def _drain_cause(target: Target) -> str:
    """Return the cause of a drain that an operator ordered; empty: the source did."""
    by_hand = target.overridden(ManualAction.DRAIN) and not (target.source_drains or target.unlisted)
    return MANUAL_CAUSES[ManualAction.DRAIN] if by_hand else ""


_HANDLERS: dict[Action, Callable[[Lifecycle, Target, float, Condition], bool]] = {
    Action.HOLD: Lifecycle._hold,
    Action.REVISE: Lifecycle._revise,
    Action.RECOVER: Lifecycle._recover,
    Action.FREEZE: Lifecycle._freeze,
    Action.KEEP: Lifecycle._keep,
    Action.STAY: Lifecycle._stay,
    Action.PARDON: Lifecycle._pardon,
    Action.WAIT: Lifecycle._wait,
    Action.RELAPSE: Lifecycle._relapse,
    Action.READMIT: Lifecycle._readmit,
    Action.WITHDRAW_FAMILY: Lifecycle._withdraw_family,
    Action.REMOVE: Lifecycle._remove,
    Action.FORGET: Lifecycle._remove,
}
