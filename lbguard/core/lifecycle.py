"""Life cycle of targets: applies the transitions of `fsm.py`, and writes the decision records."""

from collections.abc import Callable

from lbguard.core.config import EngineConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.effects import Record
from lbguard.core.fsm import TRANSITIONS, Input
from lbguard.core.holds import Holds
from lbguard.core.model import (
    Action,
    Condition,
    Decision,
    Evidence,
    ManualAction,
    Override,
    TargetKey,
    TargetState,
)
from lbguard.core.state import Stream, Target

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


class Lifecycle:
    """Applies inputs to targets; collects the decision records and the names of streams whose targets changed state."""

    def __init__(self, config: EngineConfig, evidence: Callable[[Target], tuple[Evidence, ...]]) -> None:
        self.deadlines: Deadlines[TargetKey] = Deadlines()
        self.pardons: Deadlines[TargetKey] = Deadlines()
        self.drains: Deadlines[TargetKey] = Deadlines()
        self.moved: dict[str, None] = {}
        self.holds = Holds(config, self.deadlines)
        self._config = config
        self._evidence = evidence
        self._records: list[Record] = []
        self._sequence = 0
        self._handlers: dict[Action, Callable[[Target, float, Condition], bool]] = {
            Action.HOLD: self.holds.begin,
            Action.REVISE: self.holds.revise,
            Action.FREEZE: self.holds.freeze,
            Action.RECOVER: self._recover,
            Action.KEEP: self._keep,
            Action.STAY: self._stay,
            Action.PARDON: self._pardon,
            Action.WAIT: self._wait,
            Action.RELAPSE: self._relapse,
            Action.READMIT: self._readmit,
            Action.WITHDRAW_FAMILY: self._withdraw_family,
            Action.REMOVE: self._remove,
            Action.FORGET: self._remove,
        }
        """Changes of a target by action, after its move; each returns whether the action is worth a record."""

    def configure(self, config: EngineConfig) -> None:
        """Use another configuration from now on; `LiveConfig` moves the deadlines that run."""
        self._config = config
        self.holds.configure(config)

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
            self.holds.memory.forwards(target, now)
            self.apply(stream, target, Input.PATH_OK, now)
            if target.draining and target.state is TargetState.ACTIVE:
                self.apply(stream, target, Input.DRAIN, now, reason=_drain_cause(target))
        elif target.forwards(now):
            self.holds.memory.forwards(target, now)
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
            return Input.DEADLINE_FAMILY if self.holds.family_waits(target) and not frozen else Input.PATH_PARTIAL
        # A hold that an earlier run froze has spent a part of the limit, or all of it, before it freezes again.
        limit_passed = at >= self.holds.freeze_end(target)
        if target.state is not TargetState.WITHDRAWN and not limit_passed and stream.mass_failure(self._config):
            return Input.DEADLINE_MASS
        if target.soft and not stream.soft_withdrawal_allowed(self._config):
            return Input.DEADLINE_VETOED
        return Input.DEADLINE

    def ends_at(self, key: TargetKey) -> float | None:
        """Return when the state of a target is decided again: its deadline, or else the end of its drain."""
        deadline = self.deadlines.get(key)
        return self.drains.get(key) if deadline is None else deadline

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
        self.forget_drain(stream, target)
        self.apply(stream, target, Input.RESUME, now, reason=reason)

    def forget_drain(self, stream: Stream, target: Target) -> None:
        """End a drain without a change of state: another command takes its place."""
        target.draining = False
        self.moved[stream.spec.name] = None
        self.drains.cancel(target.key)

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

    def note(self, target: Target, action: Action, cause: str, now: float, override: Override) -> None:
        """Record that an operator's override begins or ends."""
        self._record(target, action, target.state, cause, now, override=override)

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
        handler = self._handlers.get(action)
        if state is not before:
            if action in (Action.HOLD, Action.WITHDRAW):
                self.holds.note_cause(target, cause)
            elif action is Action.TAKE_OUT:
                self.holds.note_taken_out(target, now)
            stream.move(target, state, now)
            self.moved[stream.spec.name] = None
            self.deadlines.cancel(target.key)
        if what in _LEVELS:
            if target.partial and what is Input.PATH_BROKEN and state is TargetState.HELD:
                self.holds.begin_anew(target, now, cause)
            target.partial = what is Input.PATH_PARTIAL
        speaks = handler(target, now, cause) if handler else True
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

    def _withdraw_family(self, target: Target, now: float, cause: Condition) -> bool:
        """Give the flows of the lost families to other targets; the target stays in the table for the other family."""
        for path in target.families_lost():
            path.withdrawn = True
        self.moved[target.key.stream] = None
        target.open_ended = True
        return True

    def _recover(self, target: Target, now: float, cause: Condition) -> bool:
        self.holds.learn(target, now)
        return True

    def _keep(self, target: Target, now: float, cause: Condition) -> bool:
        """Keep a target in the table, whose deadline has passed, until the operator's hold ends."""
        assert target.override is not None
        news, target.kept = not target.kept, True
        self.deadlines.set(target.key, target.override.until)
        return news

    def _stay(self, target: Target, now: float, cause: Condition) -> bool:
        if target.state is TargetState.FROZEN:
            self.holds.stay_frozen(target, cause)
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
        self.holds.learn(target, now)
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
        self.holds.memory.forget(target.key)
        return True

    def pardon_until(self, target: Target, until: float) -> None:
        """Ignore soft evidence against a target until a moment."""
        target.pardoned_until = until
        self.pardons.set(target.key, until)

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
