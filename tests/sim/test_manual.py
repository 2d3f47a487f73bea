"""Runs with operators, the same every time. `python -m tests.sim --manual` plays as many more as wanted."""

from collections import Counter
from dataclasses import replace

import pytest

from lbguard.core.events import Event, OverrideRequested
from lbguard.core.model import Action, ManualAction
from tests.sim.campaign import play, report
from tests.sim.manual import ManualWorld

RUNS, CHUNK = 80, 40


@pytest.mark.parametrize("first", range(1, RUNS + 1, CHUNK))
def test_overrides_end_and_empty_no_stream(first: int) -> None:
    for seed in range(first, first + CHUNK):
        failure = report(seed, ManualWorld)
        assert not failure, failure


def test_runs_see_all_that_operators_can_do() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1, 25):
        world = ManualWorld(seed)
        play(world)
        seen.update({f"{action} {outcome}": count for (action, outcome), count in world.commands.items()})
        seen.update({action.value: count for action, count in world.acted.items()})
        seen["restarts"] += world.quiet_restarts
    done = [f"{action} done" for action in ManualAction]
    refused = ["withdraw would_empty_stream", "drain would_empty_stream", "hold target_unknown"]
    for what in (*done, *refused, *(a.value for a in (Action.OVERRIDE, Action.RELEASE, Action.KEEP, Action.TAKE_OUT))):
        assert seen[what] > 0, (what, seen)


class Forcing(ManualWorld):
    """A guard that carries every command out."""

    def deliver(self, event: Event) -> None:
        super().deliver(replace(event, force=True) if isinstance(event, OverrideRequested) else event)


class Endless(ManualWorld):
    """A guard whose overrides last for longer than was said."""

    def deliver(self, event: Event) -> None:
        super().deliver(replace(event, duration_s=1e6) if isinstance(event, OverrideRequested) else event)


@pytest.mark.parametrize("broken", [Forcing, Endless])
def test_the_checks_can_fail(broken: type[ManualWorld]) -> None:
    assert any(report(seed, broken) for seed in range(1, 21))
