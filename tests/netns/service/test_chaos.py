"""Links, crashes, flushes and hang-ups in any order: while targets are held, no slot ever belongs to another one."""

import random
from collections.abc import Callable

import pytest

from tests.netns.service.guarded import LINKS, PATIENT, Guarded, targets_yaml, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.slow]

STEPS = 14


class Chaos:
    """Does one thing after the other to a load balancer, by chance."""

    def __init__(self, guarded: Guarded, seed: int) -> None:
        self.guarded = guarded
        self.chance = random.Random(seed)
        self.done: list[str] = []
        self.up = set(LINKS)
        self.service = guarded.process(PATIENT, targets=targets_yaml())
        self.start()
        self.service.wait_until_admitted(4)
        guarded.wait_for_table(4)
        self.before = guarded.data_path()

    def start(self) -> None:
        self.service.start()

    def act(self) -> None:
        actions: list[Callable[[], None]] = [self.toggle, self.toggle, self.toggle, self.kill, self.flush, self.edit]
        action = self.chance.choice(actions)
        self.done.append(action.__name__)
        action()
        slots = self.guarded.slots()
        expected = self.before["slots"]
        assert isinstance(expected, dict)
        assert slots.items() <= expected.items(), "a slot belongs to another target"

    def toggle(self) -> None:
        link = self.chance.choice(sorted(LINKS))
        if link in self.up:
            self.guarded.delete_link(link)
        else:
            self.guarded.make_link(link)
        self.up ^= {link}

    def kill(self) -> None:
        self.service.kill()
        if self.chance.random() < 0.5:
            self.toggle()
        self.start()
        if self.chance.random() < 0.5:
            self.service.wait_until_ready()

    def flush(self) -> None:
        # A table that is flushed while nobody looks cannot be adopted, so who looks has to be there.
        self.service.wait_until_ready()
        self.guarded.lb.run("nft", "flush", "ruleset")
        wait_until(lambda: self.guarded.slots() == self.before["slots"], "the slots again")

    def edit(self) -> None:
        text = self.guarded.targets_path.read_text()
        self.guarded.write_targets(text + "# the same\n", in_place=self.chance.random() < 0.5)

    def settle(self) -> None:
        for link in sorted(set(LINKS) - self.up):
            self.guarded.make_link(link)
        self.service.wait_until_ready()
        self.guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        wait_until(lambda: self.guarded.data_path() == self.before, "the data path as it was")


@pytest.mark.parametrize("seed", [1, 2])
def test_chaos(guarded: Guarded, seed: int) -> None:
    chaos = Chaos(guarded, seed)
    try:
        for _ in range(STEPS):
            chaos.act()
        chaos.settle()
        assert chaos.service.terminate() == 0
    except (AssertionError, TimeoutError, RuntimeError) as error:
        raise AssertionError(f"seed {seed}, after {chaos.done}: {error}") from error
