"""Change of the configuration of a running engine, and what it does to the deadlines that run.

Every deadline is computed anew as if the new values had been in force since it began: a hold ends when its new window,
counted from the loss, is over; a freeze, a pardon, a drain, a damping delay likewise. What would lie in the past then
ends now. So a target is withdrawn neither before its new window is over nor before the change is known, and a repeated
change prolongs nothing. A minimum from now on would only keep a target that these settings would have withdrawn
already. A mass failure still freezes what ends together.
"""

from lbguard.core.commits import Availability, Commits
from lbguard.core.config import EngineConfig
from lbguard.core.lifecycle import Lifecycle
from lbguard.core.model import TargetState
from lbguard.core.netview import NetView
from lbguard.core.path_repair import PathRepair
from lbguard.core.state import Target
from lbguard.core.stream_registry import StreamRegistry


class LiveConfig:
    """Passes a changed configuration to the parts of the engine, and moves their deadlines."""

    def __init__(
        self,
        view: NetView,
        paths: PathRepair,
        life: Lifecycle,
        registry: StreamRegistry,
        availability: Availability,
        commits: Commits,
    ) -> None:
        self._view = view
        self._paths = paths
        self._life = life
        self._registry = registry
        self._availability = availability
        self._commits = commits

    def change(self, before: EngineConfig, after: EngineConfig, now: float, seen_until: float) -> None:
        """Use `after`, which differs from `before` in live values only, from now on; evaluate everything again.

        `seen_until`: now, or when the view of the kernel was lost. The deadlines of broken targets stand still from
        then on, and move by the whole time when the view is complete again.
        """
        self._life.configure(after)
        self._view.failures_needed = after.neighbor_failures_needed
        self._paths.configure(after)
        self._registry.configure(after)
        self._availability.configure(after, now)
        self._commits.configure(after, now)
        for target in self._registry.by_mark.values():
            if target.state is TargetState.HELD and before.grace != after.grace:
                self._move_hold(target, before, after, seen_until)
            elif target.state is TargetState.FROZEN and (before.grace, before.freeze) != (after.grace, after.freeze):
                self._life.deadlines.set(target.key, max(seen_until, self._life.holds.frozen_deadline(target)))
            elif target.waiting and before.damping != after.damping:
                wait_s = target.penalty.wait_s(after.damping, target.waiting_since)
                self._life.deadlines.set(target.key, max(now, target.waiting_since + wait_s))
            self._move_others(target, before, after, now)
            self._registry.dirty[target] = None
        self._registry.review.update(dict.fromkeys(self._registry.streams))

    def _move_hold(self, target: Target, before: EngineConfig, after: EngineConfig, seen_until: float) -> None:
        if self._life.deadlines.get(target.key) is None:
            return  # without a deadline, for its other family
        latest = target.lost_at + after.grace.max_s
        if target.spared_until > target.lost_at + before.grace.max_s:
            # It got one more window, after or during a mass failure.
            latest = max(
                latest, min(seen_until + self._life.holds.window_s(target), target.frozen_at + after.freeze.limit_s)
            )
        target.spared_until = min(target.spared_until, latest)
        self._life.deadlines.set(target.key, max(seen_until, self._life.holds.grace_deadline(target)))

    def _move_others(self, target: Target, before: EngineConfig, after: EngineConfig, now: float) -> None:
        life = self._life
        pardoned, longer_s = life.pardons.get(target.key), after.freeze.limit_s - before.freeze.limit_s
        if pardoned is not None and longer_s:
            life.pardon_until(target, max(now, pardoned + longer_s))
        drains, longer_s = life.drains.get(target.key), after.drain_window_s - before.drain_window_s
        if drains is not None and target.unlisted and longer_s:
            life.drains.set(target.key, max(now, drains + longer_s))
