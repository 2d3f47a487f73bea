"""Beside every engine that guards a world, one that does not own the paths hears the same: it never reaches for them.

What it does about neighbours has to be what the other does, since that is all it is there for.
"""

import random
from dataclasses import replace

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.engine import Engine
from tests.sim.campaign import play
from tests.sim.world import World

RUNS, CHUNK = 60, 20
_PATHS = (fx.ProgramRoutes, fx.ProgramRules, fx.SetLinkDown)


class CompanyWorld(World):
    """A world with a companion beside each guard, and a mesh that tells of outdated neighbours."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"mesh {seed}")
        super().__init__(seed)

    def start_guard(self) -> None:
        self.companion = Engine(replace(self.config, manages_paths=False))
        self.flushes: dict[str, int] = {"guard": 0, "companion": 0}
        super().start_guard()

    def take_in(self, event: ev.Event) -> None:
        self._take("companion", self.companion.observe(event, self.now))
        super().take_in(event)
        known = sorted(self.followed())
        if known and self.chance.random() < 0.02 and not isinstance(event, ev.NeighborsOutdated):
            mac = self.chance.choice((b"", bytes(5) + b"\x01"))
            self.deliver(ev.NeighborsOutdated(ips=(self.chance.choice(known),), new_mac=mac))

    def _decide(self) -> None:
        self._take("companion", self.companion.decide(self.now))
        super()._decide()

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        self._take("guard", effects)
        super()._carry_out(effects)

    def _take(self, who: str, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if who == "companion":
                assert not isinstance(effect, _PATHS), effect
            if isinstance(effect, fx.FlushNeighbors):
                self.flushes[who] += len(effect.entries)


@pytest.mark.parametrize("first", range(1, RUNS + 1, CHUNK))
def test_a_companion_repairs_neighbours_like_a_guard_and_never_reaches_for_a_path(first: int) -> None:
    flushed = 0
    for seed in range(first, first + CHUNK):
        world = CompanyWorld(seed)
        play(world)
        assert world.flushes["companion"] == world.flushes["guard"], f"seed {seed}"
        flushed += world.flushes["companion"]
    assert flushed > 0
