"""A hold that an earlier run left open goes on where it was."""

import dataclasses

import pytest

from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.holds import REPAIR_TIME_S
from lbguard.core.model import (
    Action,
    Condition,
    Route,
    Rule,
    StreamSpec,
    TargetSpec,
    TargetSubject,
    Verdict,
    VerdictState,
)
from tests.unit.core.harness import STREAM, Guard, ipv4_of, ipv6_of

CONFIG = EngineConfig(
    grace=GraceConfig(window_s=3.0, max_s=30.0),
    freeze=FreezeConfig(threshold=0.5, limit_s=20.0),
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
)


class Lives:
    """One load balancer whose guard is killed and started again: target 1 behind link 1, the others behind link 2."""

    def __init__(self, *, targets: int = 4, behind_link_2: bool = True, config: EngineConfig = CONFIG) -> None:
        self.config = config
        self.ipv6_links: set[int] = set()
        proxies = {i: 1 if i > 1 and behind_link_2 else 0 for i in range(1, targets + 1)}
        listed = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, proxy),)) for i, proxy in proxies.items())
        self.spec = StreamSpec(name=STREAM, targets=listed)
        self.links = {1: 0, 2: 1}
        self.tables = {STREAM: (frozenset(proxies), frozenset(proxies))}
        self.now = 100.0
        self.routes: set[Route] = set()
        self.rules: set[Rule] = set()
        self.holds: tuple[ev.OpenHold, ...] = ()
        self.guard = self.start()

    def start(self, *, holds: tuple[ev.OpenHold, ...] | None = None) -> Guard:
        """Start a guard over what is there, with the holds that the last one left."""
        guard = Guard(self.config, start=False)
        guard.now, guard.tables, guard.routes, guard.rules = self.now, self.tables, self.routes, self.rules
        left = self.holds if holds is None else holds
        if left:
            guard.tell(ev.HoldsRemembered(holds=left))
        guard.tell(
            ev.KernelSnapshot(
                links=tuple(guard.link_seen(number) for number in self.links),
                addresses=tuple(guard.address(n, f"172.16.{p}.{n}/24") for n, p in self.links.items())
                + tuple(guard.address(n, f"fd00:{self.links[n]}::{n}/64") for n in sorted(self.ipv6_links)),
                routes=tuple(self.routes),
                rules=tuple(self.rules),
            )
        )
        guard.source(self.spec)
        self.guard = guard
        return guard

    def kill(self, after_s: float, away_s: float = 0.5) -> None:
        """Let the guard live for a while, and then nobody."""
        self.guard.wait(after_s)
        self.holds = self.guard.engine.open_holds(self.guard.now)
        self.now = self.guard.now + away_s
        self.tables, self.routes, self.rules = self.guard.tables, self.guard.routes, self.guard.rules

    def lose(self, number: int) -> None:
        del self.links[number]
        self.guard.unlink(number)


def test_a_crash_loop_holds_a_target_no_longer_than_its_window() -> None:
    lives = Lives()
    lives.lose(1)
    withdrawn_in = []
    for number in range(1, 6):
        lives.kill(after_s=0.8)
        if lives.guard.decisions(Action.WITHDRAW):
            withdrawn_in.append(number)
        lives.start()
    # 3 s of 0.8 s each are in the fourth life; afterwards the target is out, and stays out.
    assert withdrawn_in == [4]
    assert lives.guard.states()[1] == "pending"


def test_the_time_in_which_nobody_ran_does_not_count() -> None:
    lives = Lives()
    lives.lose(1)
    lives.kill(after_s=1.0, away_s=50.0)
    guard = lives.start()
    [hold] = guard.decisions(Action.HOLD)
    assert hold.deadline == pytest.approx(guard.now + 2.0)
    guard.wait(1.9)
    assert guard.states()[1] == "held"
    guard.wait(0.2)
    assert guard.states()[1] == "withdrawn"
    assert guard.decisions(Action.WITHDRAW)[0].duration_s == pytest.approx(3.0)


def test_what_came_back_meanwhile_has_the_time_of_a_repair() -> None:
    lives = Lives()
    lives.lose(1)
    lives.kill(after_s=2.99)
    assert lives.start().deadline(1) == pytest.approx(lives.now + REPAIR_TIME_S)


def test_the_time_of_a_repair_is_given_once_however_short_the_lives_are() -> None:
    lives = Lives()
    lives.lose(1)
    lives.kill(after_s=2.9)
    lives.start()
    for _ in range(2):
        lives.kill(after_s=0.2)
        assert lives.start().states()[1] == "held"
    lives.kill(after_s=0.19)
    guard = lives.start()
    guard.wait(0.02)
    assert guard.states()[1] == "withdrawn"


def test_a_longer_window_that_a_verdict_asked_for_goes_on_until_it_is_heard_again() -> None:
    lives = Lives()
    said = Verdict(
        subject=TargetSubject(ip=ipv4_of(1)),
        state=VerdictState.HEALING,
        generation=1,
        sequence=1,
        lease_s=30.0,
        heal_s=10.0,
    )
    lives.guard.tell(ev.VerdictReported(reporter="proxy-a", verdict=said))
    lives.lose(1)
    lives.kill(after_s=6.0)
    guard = lives.start()
    assert guard.states()[1] == "held"
    assert guard.deadline(1) == pytest.approx(guard.now + 4.0)
    lives.kill(after_s=1.0)
    guard = lives.start()
    assert guard.deadline(1) == pytest.approx(guard.now + 3.0)


def test_the_bound_of_all_lives_together_is_grace_max() -> None:
    lives = Lives()
    lives.lose(1)
    lives.kill(after_s=1.0)
    [hold] = lives.holds
    guard = lives.start(holds=(dataclasses.replace(hold, broken_s=31.0),))
    assert guard.states()[1] == "withdrawn"


def test_a_freeze_goes_on_to_its_limit() -> None:
    lives = Lives(targets=2, behind_link_2=False)
    lives.lose(1)
    for _ in range(4):
        lives.kill(after_s=4.5)
        lives.start()
    assert {(hold.frozen_s is not None) for hold in lives.holds} == {True}
    assert lives.guard.states() == {1: "held", 2: "held"}
    # 18 s were observed, and 15 of them frozen: there are 5 left.
    lives.guard.wait(4.9)
    assert lives.guard.active() == {1, 2}
    lives.guard.wait(0.2)
    assert lives.guard.states() == {1: "withdrawn", 2: "withdrawn"}


def test_a_freeze_that_is_over_after_the_start_gives_one_more_window() -> None:
    lives = Lives()
    lives.lose(1)
    lives.lose(2)
    lives.kill(after_s=4.0)
    lives.links[2] = 1
    guard = lives.start()
    assert guard.states()[1] == "held"
    assert guard.deadline(1) == pytest.approx(guard.now + 3.0)


def test_what_healed_in_between_begins_anew() -> None:
    lives = Lives()
    lives.lose(1)
    lives.kill(after_s=2.0)
    lives.links[1] = 0
    guard = lives.start()
    assert guard.states()[1] == "active"
    assert guard.engine.open_holds(guard.now) == ()
    guard.unlink(1)
    assert guard.deadline(1) == guard.now + 3.0


def test_a_target_with_other_addresses_is_another_target() -> None:
    lives = Lives()
    lives.lose(1)
    lives.kill(after_s=2.0)
    [hold] = lives.holds
    guard = lives.start(holds=(dataclasses.replace(hold, ips=(ipv4_of(77),)),))
    assert guard.deadline(1) == guard.now + 3.0


def test_soft_evidence_is_waited_for_a_moment() -> None:
    soft = ev.OpenHold(stream=STREAM, identifier=1, ips=(ipv4_of(1),), cause=Condition.NEIGHBOR_FAILED, broken_s=2.0)
    lives = Lives()
    guard = lives.start(holds=(soft,))
    assert guard.states()[1] == "active"
    guard.wait(4.0)
    # Killed once more before the evidence has come, it is still remembered.
    assert guard.engine.open_holds(guard.now) == (soft,)
    guard.fail_neighbor(ipv4_of(1))
    assert guard.deadline(1) == pytest.approx(guard.now + 1.0)

    guard = lives.start(holds=(soft,))
    guard.wait(5.5)
    guard.fail_neighbor(ipv4_of(1))
    assert guard.deadline(1) == guard.now + 3.0


def test_what_nobody_judges_is_forgotten_in_time_and_a_removed_target_at_once() -> None:
    unlisted = ev.OpenHold(
        stream="another", identifier=7, ips=(ipv4_of(7),), cause=Condition.NO_LINK, broken_s=2.0, frozen_s=1.0
    )
    lives = Lives()
    guard = lives.start(holds=(unlisted,))
    guard.wait(59.0)
    assert guard.engine.open_holds(guard.now) == (unlisted,)
    guard.wait(2.0)
    assert guard.engine.open_holds(guard.now) == ()


def test_out_of_sync_a_hold_has_spent_what_was_seen() -> None:
    lives = Lives()
    lives.lose(1)
    lives.guard.wait(1.0)
    lives.guard.tell(ev.KernelOutOfSync(reason="overrun"))
    lives.kill(after_s=10.0)
    [hold] = lives.holds
    assert hold.broken_s == pytest.approx(1.0)


# A hold of one family


class DualLives(Lives):
    """The same with IPv6 as well, and with flow affinity, which withdraws a family alone."""

    def __init__(self) -> None:
        super().__init__(config=dataclasses.replace(CONFIG, affinity=True))
        targets = [
            TargetSpec(identifier=each.identifier, ips=(*each.ips, ipv6_of(each.identifier, int(each.identifier > 1))))
            for each in self.spec.targets
        ]
        self.spec = dataclasses.replace(self.spec, targets=tuple(targets))
        self.ipv6_links = {1, 2}
        self.start()
        assert set(self.guard.states().values()) == {"active"}

    def lose_ipv6(self, number: int) -> None:
        self.ipv6_links.remove(number)
        self.guard.tell(self.guard.address_gone(number, f"fd00:{self.links[number]}::{number}/64"))

    @property
    def withdrawn(self) -> list[bool]:
        return [path.withdrawn for path in self.guard.target(1).paths.values()]


def test_a_crash_loop_holds_a_family_no_longer_than_its_window() -> None:
    lives = DualLives()
    lives.lose_ipv6(1)
    withdrawn_in = []
    for number in range(1, 6):
        lives.kill(after_s=0.8)
        if any(lives.withdrawn):
            withdrawn_in.append(number)
        lives.start()
    # 3 s of 0.8 s each are in the fourth life; afterwards the family is out, and stays out.
    assert withdrawn_in == [4, 5]
    assert lives.withdrawn == [False, True]
    assert lives.guard.states()[1] == "held"


def test_a_family_that_is_back_after_a_restart_serves_and_has_its_whole_window_again() -> None:
    lives = DualLives()
    lives.lose_ipv6(1)
    lives.kill(after_s=4.0)
    lives.ipv6_links.add(1)
    assert lives.start().states()[1] == "active"
    lives.lose_ipv6(1)
    assert lives.guard.deadline(1) == pytest.approx(lives.guard.now + 3.0)


def test_the_hold_of_a_family_is_not_that_of_the_whole_target() -> None:
    lives = DualLives()
    lives.lose_ipv6(1)
    lives.kill(after_s=2.0)
    [hold] = lives.holds
    assert hold.lost == (ipv6_of(1),)
    del lives.links[1]
    guard = lives.start()
    assert guard.deadline(1) == pytest.approx(guard.now + 3.0), "it is another loss"


def test_without_affinity_a_lost_family_is_not_remembered() -> None:
    lives = DualLives()
    lives.config = CONFIG
    lives.start()
    lives.lose_ipv6(1)
    lives.kill(after_s=2.0)
    assert lives.holds == ()
