"""Runs in which operators drain, hold, withdraw and release targets, on top of all that goes wrong.

All that is random about commands comes from a generator of its own, so a run is the same as that of its seed without
them, until the first command.
"""

import random
from collections import Counter
from dataclasses import replace

from lbguard.core import effects as fx
from lbguard.core.engine_state import TargetView
from lbguard.core.events import Event, OpenOverride, OverrideRequested
from lbguard.core.manual import WOULD_EMPTY
from lbguard.core.model import ADMITTED, Action, ManualAction, TargetKey, TargetState
from tests.sim.affinity import AffinityWorld

LONGEST_S = 20.0
"""No command lasts longer."""
TAKES = (ManualAction.DRAIN, ManualAction.WITHDRAW)


class ManualWorld(AffinityWorld):
    """A world with clients, flow affinity and operators."""

    def __init__(self, seed: int) -> None:
        self.whim = random.Random(f"operators {seed}")
        self.commands: Counter[tuple[str, str]] = Counter()
        self.acted: Counter[Action] = Counter()
        self._file: dict[TargetKey, tuple[OpenOverride, float]] = {}
        super().__init__(seed)
        self.after(1.0, self._operate)

    # The operators

    def _operate(self) -> None:
        """Give a command about one or several targets, now and then; none once the world is calm."""
        whim = self.whim
        self.after(whim.choice((0.2, 1.0, 4.0)), self._operate)
        if self.calm or not self.running or self._stalled_since is not None or not self.engine.running:
            return
        keys = [target.key for target in self.engine.targets()]
        if not keys:
            return
        chosen = whim.sample(keys, min(len(keys), whim.choice((1, 1, 1, 2, 4))))
        if whim.random() < 0.05:
            chosen.append(TargetKey("nowhere", 1))
        event = OverrideRequested(
            action=whim.choice((*ManualAction, ManualAction.HOLD)),
            targets=tuple(chosen),
            duration_s=whim.choice((0.5, 3.0, 8.0, LONGEST_S)),
            who="an operator",
            force=whim.random() < 0.1,
        )
        before = {target.key: target for target in self.engine.targets()}
        self.deliver(event)
        self._check_request(event, before)

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.OverrideAnswered):
                self._answer = effect
            elif isinstance(effect, fx.Record):
                self.acted[effect.decision.action] += 1
        super()._carry_out(effects)

    def _check_request(self, event: OverrideRequested, before: dict[TargetKey, TargetView]) -> None:
        """A stream is never emptied without force; a refusal changes nothing; what is accepted is in force at once."""
        answer, after = self._answer, {target.key: target for target in self.engine.targets()}
        self.commands[event.action.value, answer.refused or "done"] += 1
        if answer.refused:
            assert {k: t.override for k, t in before.items()} == {k: t.override for k, t in after.items()}
            if answer.refused == WOULD_EMPTY:
                assert event.action in TAKES
                assert not event.force
                for name in answer.concerns:
                    assert not _active(before, name, set(event.targets)), f"{event} was refused, and {name} keeps one"
            return
        for name in {key.stream for key in event.targets}:
            left = _active(after, name, set(event.targets))
            assert event.action not in TAKES or event.force or left, f"{event} left nothing of {name}"
        for key in event.targets:
            override = after[key].override
            if event.action is ManualAction.RELEASE:
                assert override is None, f"{key} was released and is under {override}"
                continue
            assert override is not None
            assert override.action is event.action
            assert override.until == self.now + event.duration_s
            if event.action is ManualAction.WITHDRAW:
                assert after[key].state not in ADMITTED, f"{key} was withdrawn and is {after[key].state}"

    # The guard's side

    def overrides_left(self) -> tuple[OpenOverride, ...]:
        """Return what the file says: the time of an override runs on while no guard runs."""
        left = []
        for override, at in self._file.values():
            passed_s = self.now - at
            if passed_s < override.left_s:
                left.append(replace(override, age_s=override.age_s + passed_s, left_s=override.left_s - passed_s))
        return tuple(left)

    def take_in(self, event: Event) -> None:
        super().take_in(event)
        self._write()

    def _decide(self) -> None:
        reading = self.now < self._reading_until
        super()._decide()
        self._write()
        if not reading:
            self._check_overrides()

    def _write(self) -> None:
        """Keep the file equal to what is in force, as the service does before it answers a command."""
        if self.engine.running:
            self._file = {
                TargetKey(each.stream, each.identifier): (each, self.now)
                for each in self.engine.open_overrides(self.now)
            }

    def _check_overrides(self) -> None:
        """An end always comes, and nothing outlives it; what is in force is in force in the table."""
        engine = self.engine
        for key, override in engine.overrides().items():
            assert override.until - override.since <= LONGEST_S + 1e-6, f"{key}: {override} has grown"
            assert not engine.running or self.now < override.until, f"{key}: {override} outlives its end"
        adopted = {stream.spec.name for stream in engine.streams() if stream.adopted}
        for target in engine.targets():
            assert target.override == engine.overrides().get(target.key), f"{target.key} has another override"
            if target.override is None or target.key.stream not in adopted or not engine.running:
                continue
            if target.override.action is ManualAction.WITHDRAW:
                assert target.state not in ADMITTED, f"{target.key} is withdrawn by hand, and {target.state}"
            if target.override.action is ManualAction.DRAIN:
                assert target.draining
                assert target.state is not TargetState.ACTIVE, f"{target.key} is drained by hand, and active"
        at = engine.next_deadline(self.now)
        if engine.running and engine.overrides():
            end = min(override.until for override in engine.overrides().values())
            assert at is not None
            assert at <= end, f"nothing wakes the guard at {end}"


def _active(targets: dict[TargetKey, TargetView], stream: str, without: set[TargetKey]) -> int:
    return sum(
        key.stream == stream and key not in without and target.state is TargetState.ACTIVE
        for key, target in targets.items()
    )
