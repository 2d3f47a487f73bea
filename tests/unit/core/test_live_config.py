"""A running engine gets other settings: deadlines move as if those had been in force, and never into the past."""

from dataclasses import replace

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import Amount, DampingConfig, EngineConfig, EvidenceConfig, FreezeConfig, GraceConfig
from lbguard.core.model import Action, Condition, StreamSpec, TargetSpec
from lbguard.core.observation import LOOK_S
from tests.unit.core.harness import STREAM, Guard, ipv4_of

CONFIG = EngineConfig(
    grace=GraceConfig(window_s=3.0, max_s=30.0),
    freeze=FreezeConfig(threshold=0.5, limit_s=60.0),
    damping=DampingConfig(half_life_s=10.0, step_s=4.0, max_s=6.0),
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
)


def two_proxies(config: EngineConfig = CONFIG, *, spare: int = 3) -> Guard:
    """Target 1 behind link 1 (proxy 0), targets 2 to 1 + spare behind link 2 (proxy 1)."""
    guard = Guard(config, targets=0)
    guard.link(2, proxy=1)
    targets = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, 0 if i == 1 else 1),)) for i in range(1, spare + 2))
    guard.source(StreamSpec(name=STREAM, targets=targets))
    return guard


def windows(window_s: float, max_s: float = 30.0, **by_cause: float) -> EngineConfig:
    causes = {Condition(name): window for name, window in by_cause.items()}
    return replace(CONFIG, grace=GraceConfig(window_s=window_s, max_s=max_s, by_cause_s=causes))


def change(guard: Guard, config: EngineConfig) -> list[fx.Effect]:
    return guard.tell(ev.SettingsChanged(config=config))


@pytest.mark.parametrize(("window_s", "ends_at_s"), [(10.0, 10.0), (2.0, 2.0), (1.5, 1.5), (0.5, 1.0), (0.0, 1.0)])
def test_a_hold_ends_by_the_new_window_counted_from_the_loss_and_not_before_now(
    window_s: float, ends_at_s: float
) -> None:
    guard = two_proxies()
    guard.unlink(1)
    lost_at = guard.now
    guard.wait(1.0)
    change(guard, windows(window_s))
    withdrawn = guard.decisions(Action.WITHDRAW) or (guard.wait(20.0), guard.decisions(Action.WITHDRAW))[1]
    assert [decision.at for decision in withdrawn] == [lost_at + ends_at_s]


def test_a_window_of_a_cause_moves_the_holds_of_that_cause_alone() -> None:
    guard = two_proxies()
    guard.unlink(1)
    deadline = guard.deadline(1)
    change(guard, windows(3.0, neighbor_failed=20.0))
    assert guard.deadline(1) == deadline
    change(guard, windows(3.0, no_link=20.0))
    assert guard.deadline(1) == guard.now + 20.0


def test_the_longest_hold_bounds_what_a_milder_cause_had_kept() -> None:
    guard = two_proxies(windows(3.0, no_link=20.0))
    guard.unlink(1)
    lost_at = guard.now
    guard.refuse = (fx.ProgramRoutes,)
    guard.link(5)
    assert guard.target(1).cause is Condition.ROUTE_MISSING
    assert guard.deadline(1) == lost_at + 20.0
    change(guard, windows(3.0, 12.0, no_link=12.0))
    assert guard.deadline(1) == lost_at + 12.0


def test_changes_one_after_another_prolong_nothing() -> None:
    guard = two_proxies()
    guard.unlink(1)
    lost_at = guard.now
    for window_s in (20.0, 4.0, 25.0, 3.0):
        guard.wait(0.5)
        change(guard, windows(window_s))
    assert guard.deadline(1) == lost_at + 3.0


def test_a_change_while_the_view_is_lost_does_not_count_that_time_twice() -> None:
    guard = two_proxies()
    guard.unlink(1)
    guard.wait(1.0)
    guard.tell(ev.KernelOutOfSync(reason="overrun"))
    guard.wait(50.0)
    change(guard, windows(2.0))
    guard.wait(50.0)
    links, addresses = (guard.link_seen(2),), (guard.address(2, "172.16.1.2/24"),)
    guard.tell(
        ev.KernelSnapshot(links=links, addresses=addresses, routes=tuple(guard.routes), rules=tuple(guard.rules))
    )
    # One second of the window was spent when the view was lost, and one look when it was complete again.
    guard.wait(1.0 - LOOK_S - 0.01)
    assert guard.states()[1] == "held"
    guard.wait(0.02)
    assert guard.states()[1] == "withdrawn"


def test_what_is_not_changed_moves_no_deadline_and_says_nothing() -> None:
    guard = two_proxies()
    guard.unlink(1)
    deadline = guard.deadline(1)
    guard.wait(1.0)
    assert change(guard, replace(CONFIG, soft_budget=0.1)) == []
    assert guard.deadline(1) == deadline


def test_a_mass_failure_freezes_what_a_shorter_window_ends() -> None:
    guard = two_proxies()
    guard.unlink(2)
    guard.wait(1.0)
    change(guard, windows(0.5))
    assert {decision.action for decision in guard.decisions()} == {Action.FREEZE}
    assert guard.active() == {1, 2, 3, 4}


@pytest.mark.parametrize(("limit_s", "ends_at_s"), [(20.0, 23.0), (5.0, 8.0), (1.0, 6.0)])
def test_a_freeze_ends_by_the_new_limit_and_not_before_now(limit_s: float, ends_at_s: float) -> None:
    guard = two_proxies()
    guard.unlink(2)
    lost_at = guard.now
    guard.wait(6.0)
    assert guard.state(2) == "frozen"
    change(guard, replace(CONFIG, freeze=FreezeConfig(threshold=0.5, limit_s=limit_s)))
    withdrawn = guard.decisions(Action.WITHDRAW) or (guard.wait(30.0), guard.decisions(Action.WITHDRAW))[1]
    assert {decision.at for decision in withdrawn} == {lost_at + ends_at_s}


def test_a_higher_threshold_ends_a_mass_failure_with_one_more_window() -> None:
    guard = two_proxies()
    guard.unlink(2)
    guard.wait(6.0)
    change(guard, replace(CONFIG, freeze=FreezeConfig(threshold=0.9, limit_s=60.0)))
    assert guard.deadline(2) == guard.now + 3.0
    thawed_at = guard.now
    guard.wait(1.0)
    change(guard, replace(windows(7.0), freeze=FreezeConfig(threshold=0.9, limit_s=60.0)))
    assert guard.deadline(2) == thawed_at + 7.0


def damped() -> tuple[Guard, float]:
    """A target that was lost twice and is back: its re-admission waits."""
    guard = two_proxies()
    for before, number in ((1, 3), (3, 4)):
        guard.unlink(before)
        guard.wait(3.5)
        guard.link(number)
    assert guard.state(1) == "withdrawn"
    assert guard.deadline(1) is not None
    return guard, guard.now


def test_a_shorter_delay_of_a_re_admission_ends_the_wait_but_not_before_now() -> None:
    guard, back_at = damped()
    guard.wait(0.5)
    change(guard, replace(CONFIG, damping=DampingConfig(half_life_s=10.0, step_s=0.0, max_s=6.0)))
    assert [(d.action, d.at) for d in guard.decisions()] == [(Action.READMIT, back_at + 0.5)]


def test_a_longer_delay_of_a_re_admission_counts_from_the_return() -> None:
    guard, back_at = damped()
    guard.wait(0.5)
    change(guard, replace(CONFIG, damping=DampingConfig(half_life_s=10.0, step_s=400.0, max_s=50.0)))
    assert guard.deadline(1) == back_at + 50.0


def test_fewer_failures_of_a_neighbour_break_a_path_at_once() -> None:
    guard = two_proxies(replace(CONFIG, neighbor_failures_needed=3))
    guard.fail_neighbor(ipv4_of(1), times=2)
    assert guard.state(1) == "active"
    change(guard, replace(CONFIG, neighbor_failures_needed=2))
    assert [(d.action, d.cause) for d in guard.decisions()] == [(Action.HOLD, "neighbor_failed")]


@pytest.mark.parametrize(("delay_s", "after_s"), [(5.0, 5.0), (0.2, 0.5)])
def test_the_delay_of_a_lost_availability_counts_from_the_loss(delay_s: float, after_s: float) -> None:
    guard = Guard(CONFIG, targets=1)
    guard.unlink(1)
    lost_at = guard.now
    guard.wait(0.5)
    change(guard, replace(CONFIG, availability_grace_s=delay_s))
    told_at = guard.now if guard.of(fx.SetAvailability) else None
    while told_at is None:
        guard.wait(0.25)
        told_at = guard.now if guard.of(fx.SetAvailability) else None
    assert told_at - lost_at == pytest.approx(after_s)


def test_neighbours_are_verified_at_the_new_interval() -> None:
    guard = two_proxies()
    assert guard.engine.next_deadline(guard.now) is None
    change(guard, replace(CONFIG, neighbor_probe_interval_s=2.0))
    guard.wait(2.5)
    assert guard.of(fx.ResolveNeighbors)
    change(guard, CONFIG)
    assert guard.engine.next_deadline(guard.now) is None


def test_what_needs_a_restart_stays() -> None:
    guard = two_proxies()
    wanted = replace(
        CONFIG,
        observe=True,
        affinity=True,
        parking=True,
        manages_paths=False,
        excluded_links=("nse-1",),
        evidence=EvidenceConfig(confirm_k=2, opinions_max=1),
    )
    change(guard, wanted)
    assert guard.engine.config == replace(CONFIG, evidence=EvidenceConfig(confirm_k=2))
    guard.unlink(1)
    assert guard.of(fx.ProgramRoutes) or guard.actions() == [(1, "hold")]


def test_a_drain_ends_by_the_new_window() -> None:
    config = replace(CONFIG, affinity=True, learn_s=0.0, drain_window_s=60.0)
    guard = two_proxies(config)
    left = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, 1),)) for i in (2, 3, 4))
    guard.source(StreamSpec(name=STREAM, targets=left))
    assert guard.state(1) == "draining"
    guard.wait(10.0)
    change(guard, replace(config, drain_window_s=30.0))
    guard.wait(19.9)
    assert guard.state(1) == "draining"
    guard.wait(0.2)
    assert 1 not in guard.states()


def test_a_change_of_the_list_waits_for_flows_by_the_new_time() -> None:
    config = replace(CONFIG, affinity=True, learn_s=20.0)
    guard = two_proxies(config)
    guard.wait(2.0)
    guard.source(
        StreamSpec(name=STREAM, targets=tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, 1),)) for i in (2, 3, 4, 5)))
    )
    assert guard.tables[STREAM][0] == {1, 2, 3, 4}
    guard.wait(1.0)
    change(guard, replace(config, learn_s=4.0))
    guard.wait(2.9)
    assert guard.tables[STREAM][0] == {1, 2, 3, 4}
    guard.wait(0.2)
    assert guard.tables[STREAM][0] == {2, 3, 4, 5}


def test_another_quorum_counts_at_once() -> None:
    guard = two_proxies(replace(CONFIG, availability_grace_s=0.0))
    guard.unlink(1)
    assert guard.of(fx.SetAvailability) == []
    change(guard, replace(CONFIG, availability_grace_s=0.0, availability_quorum=Amount(share=1.0)))
    assert [(e.available, e.reason) for e in guard.of(fx.SetAvailability)] == [(False, "below_quorum")]
    change(guard, replace(CONFIG, availability_grace_s=0.0))
    assert [(e.available, e.reason) for e in guard.of(fx.SetAvailability)] == [(True, "ok")]
