"""Grace, freeze and damping through the engine: a path breaks, time passes, a path comes back."""

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import DampingConfig, EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import Action, Condition, StreamSpec, TargetSpec, TargetSubject, Verdict, VerdictState
from lbguard.core.observation import LOOK_S
from tests.unit.core.harness import STREAM, Guard, ipv4_of, ipv6_of


def config(
    *,
    by_cause: dict[Condition, float] | None = None,
    adaptive: bool = False,
    threshold: float = 0.5,
    limit: float = 60.0,
) -> EngineConfig:
    return EngineConfig(
        grace=GraceConfig(window_s=3.0, max_s=30.0, by_cause_s=by_cause or {}, adaptive=adaptive),
        freeze=FreezeConfig(threshold=threshold, limit_s=limit),
        damping=DampingConfig(half_life_s=10.0, step_s=4.0, max_s=6.0),
        neighbor_probe_interval_s=0.0,
        solicit_neighbors=False,
    )


def two_proxies(settings: EngineConfig | None = None, *, spare: int = 3) -> Guard:
    """Target 1 behind link 1 (proxy 0), targets 2 to 1 + spare behind link 2 (proxy 1)."""
    guard = Guard(settings or config(), targets=0)
    guard.link(2, proxy=1)
    targets = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, 0 if i == 1 else 1),)) for i in range(1, spare + 2))
    guard.source(StreamSpec(name=STREAM, targets=targets))
    assert set(guard.states().values()) == {"active"}
    return guard


def test_a_loss_is_held_for_the_window_and_then_withdrawn() -> None:
    guard = two_proxies()
    lost_at = guard.now
    guard.unlink(1)
    [hold] = guard.decisions()
    assert (hold.action, hold.cause, hold.deadline) == (Action.HOLD, "no_link", lost_at + 3.0)
    assert [e.condition for e in hold.evidence] == [Condition.NO_LINK]
    guard.wait(2.99)
    assert guard.active() == {1, 2, 3, 4}
    guard.wait(0.02)
    assert guard.active() == {2, 3, 4}
    [withdraw] = guard.decisions()
    assert (withdraw.action, withdraw.at, withdraw.duration_s) == (Action.WITHDRAW, lost_at + 3.0, 3.0)


def test_a_link_that_is_back_in_time_costs_nothing() -> None:
    guard = two_proxies()
    guard.unlink(1)
    guard.wait(2.9)
    guard.link(5)
    assert guard.actions() == [(1, "recover")]
    assert guard.deadline(1) is None
    assert guard.route(1).oif == 5  # type: ignore[union-attr]
    guard.wait(100)
    assert guard.effects == []


CAUSES = {
    Condition.NO_LINK: lambda guard: guard.unlink(1),
    Condition.LINK_DOWN: lambda guard: guard.cut(1),
    Condition.NO_ADDRESS: lambda guard: guard.tell(guard.address_gone(1, "172.16.0.1/24")),
    Condition.ADDRESS_TENTATIVE: lambda guard: guard.tell(guard.address(1, "172.16.0.1/24", usable=False)),
    Condition.NEIGHBOR_FAILED: lambda guard: guard.fail_neighbor(ipv4_of(1)),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_its_own_window(cause: Condition) -> None:
    guard = two_proxies(config(by_cause={cause: 7.0}))
    CAUSES[cause](guard)
    assert guard.target(1).cause is cause
    assert guard.deadline(1) == guard.now + 7.0


def test_a_route_that_cannot_be_programmed_is_a_cause_of_its_own() -> None:
    guard = two_proxies(config(by_cause={Condition.ROUTE_MISSING: 7.0}))
    guard.refuse = (fx.ProgramRoutes,)
    route = guard.route(1)
    assert route is not None
    guard.tell(ev.RouteGone(route=route))
    assert guard.target(1).cause is Condition.ROUTE_MISSING
    assert guard.deadline(1) == guard.now + 7.0


def test_no_window_reaches_past_grace_max() -> None:
    guard = two_proxies(config(by_cause={Condition.NO_LINK: 500.0}))
    guard.unlink(1)
    assert guard.deadline(1) == guard.now + 30.0


def test_another_cause_moves_the_deadline_counted_from_the_loss() -> None:
    guard = two_proxies(config(by_cause={Condition.LINK_DOWN: 10.0}))
    lost_at = guard.now
    guard.cut(1)
    assert guard.deadline(1) == lost_at + 10.0
    guard.wait(1.0)
    guard.unlink(1)
    assert guard.deadline(1) == lost_at + 3.0
    assert [(d.action, d.cause, d.deadline) for d in guard.decisions()] == [(Action.REVISE, "no_link", lost_at + 3.0)]


def test_a_link_that_is_back_late_in_a_long_window_is_not_withdrawn_while_its_route_is_programmed() -> None:
    guard = two_proxies(config(by_cause={Condition.NO_LINK: 10.0}))
    guard.unlink(1)
    guard.wait(8.0)
    guard.link(5)
    assert guard.states()[1] == "active"
    assert guard.actions() == [(1, "recover")]


def test_deadlines_rest_while_out_of_sync() -> None:
    guard = two_proxies()
    guard.unlink(1)
    guard.tell(ev.KernelOutOfSync(reason="overrun"))
    guard.wait(100.0)
    assert guard.states()[1] == "held"
    assert guard.active() == {1, 2, 3, 4}
    assert guard.engine.status(guard.now).sync_reason == "overrun"
    links = (guard.link_seen(2),)
    addresses = (guard.address(2, "172.16.1.2/24"),)
    guard.tell(
        ev.KernelSnapshot(links=links, addresses=addresses, routes=tuple(guard.routes), rules=tuple(guard.rules))
    )
    # The time in which nobody saw the path counts like one look at it.
    guard.wait(3.0 - LOOK_S - 0.01)
    assert guard.active() == {1, 2, 3, 4}
    guard.wait(0.02)
    assert guard.active() == {2, 3, 4}


def test_a_source_that_is_lost_changes_nothing() -> None:
    guard = two_proxies()
    before = guard.states()
    guard.tell(ev.SourceLost(reason="gone"))
    guard.wait(100.0)
    assert guard.states() == before
    assert guard.engine.status(guard.now).source_reason == "gone"


# Freeze


def test_more_broken_than_the_threshold_freezes_instead_of_withdrawing() -> None:
    guard = Guard(config(), targets=4)
    guard.unlink(1)
    guard.wait(3.1)
    assert set(guard.states().values()) == {"frozen"}
    assert guard.active() == {1, 2, 3, 4}
    assert {d.action for d in guard.decisions()} == {Action.FREEZE}


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_one_target_alone_is_no_mass_failure(threshold: float) -> None:
    guard = Guard(config(threshold=threshold), targets=1)
    guard.unlink(1)
    assert not guard.engine.status(guard.now).streams[0].mass_failure
    guard.wait(3.1)
    assert guard.states() == {1: "withdrawn"}
    guard.link(1)
    assert guard.active() == {1}


def test_both_targets_of_a_stream_are_a_mass_failure_and_one_of_them_is_none() -> None:
    guard = two_proxies(config(threshold=0.3), spare=1)
    guard.unlink(1)
    assert not guard.engine.status(guard.now).streams[0].mass_failure
    guard.unlink(2)
    assert guard.engine.status(guard.now).streams[0].mass_failure
    guard.wait(3.1)
    assert guard.states() == {1: "frozen", 2: "frozen"}


def test_exactly_the_threshold_is_no_mass_failure() -> None:
    guard = two_proxies(spare=1)
    guard.unlink(1)
    guard.wait(3.1)
    assert guard.states() == {1: "withdrawn", 2: "active"}


def test_the_freeze_limit_ends_it() -> None:
    guard = Guard(config(), targets=4)
    guard.unlink(1)
    guard.wait(3.0 + 59.9)
    assert guard.active() == {1, 2, 3, 4}
    guard.wait(0.2)
    assert guard.active() == set()


def test_after_the_mass_failure_what_is_still_broken_gets_one_more_window() -> None:
    guard = two_proxies(spare=1)
    guard.unlink(1)
    guard.unlink(2)
    guard.wait(10.0)
    assert set(guard.states().values()) == {"frozen"}
    guard.link(6, proxy=1)
    thawed_at = guard.now
    assert guard.states() == {1: "frozen", 2: "active"}
    assert guard.deadline(1) == thawed_at + 3.0
    guard.wait(3.1)
    assert guard.states() == {1: "withdrawn", 2: "active"}


def test_the_window_after_a_mass_failure_ends_with_the_freeze_limit() -> None:
    guard = two_proxies(spare=1)
    lost_at = guard.now
    guard.unlink(1)
    guard.unlink(2)
    guard.wait(3.0 + 58.5)
    guard.link(6, proxy=1)
    assert guard.deadline(1) == lost_at + 3.0 + 60.0


def test_a_relapse_into_a_mass_failure_freezes_on_to_the_same_limit() -> None:
    guard = two_proxies(spare=1)
    lost_at = guard.now
    guard.unlink(1)
    guard.unlink(2)
    guard.wait(10.0)
    guard.link(6, proxy=1)
    guard.unlink(6)
    guard.wait(10.0)
    assert guard.states() == {1: "frozen", 2: "frozen"}
    assert guard.deadline(1) == lost_at + 63.0


# Damping


def withdraw(guard: Guard, link: int) -> None:
    guard.unlink(link)
    guard.wait(3.1)
    assert guard.states()[1] == "withdrawn"


def test_the_first_recovery_never_waits() -> None:
    guard = two_proxies()
    withdraw(guard, 1)
    guard.link(5)
    assert guard.states()[1] == "active"
    assert [d.action for d in guard.decisions()] == [Action.READMIT]


def test_a_second_loss_soon_after_makes_the_re_admission_wait_up_to_the_cap() -> None:
    guard = two_proxies()
    withdraw(guard, 1)
    guard.link(5)
    withdraw(guard, 5)
    guard.link(6)
    back_at = guard.now
    assert [d.action for d in guard.decisions()] == [Action.WAIT]
    deadline = guard.deadline(1)
    assert deadline is not None
    # Two penalties, of ages 3.1 and 6.2 s with a half-life of 10 s: 0.807 + 0.651 - 1 = 0.457, 4 s each.
    assert deadline - back_at == pytest.approx(4.0 * (0.5**0.31 + 0.5**0.62 - 1.0), abs=1e-6)
    guard.wait(deadline - back_at + 0.01)
    assert guard.states()[1] == "active"
    assert guard.active() == {1, 2, 3, 4}


def test_the_cap_of_the_wait() -> None:
    guard = two_proxies()
    guard.target(1).penalty.value, guard.target(1).penalty.at = 50.0, guard.now
    withdraw(guard, 1)
    guard.link(5)
    assert guard.deadline(1) == guard.now + 6.0


def test_a_relapse_cancels_the_re_admission() -> None:
    guard = two_proxies()
    guard.target(1).penalty.value, guard.target(1).penalty.at = 50.0, guard.now
    withdraw(guard, 1)
    guard.link(5)
    guard.unlink(5)
    assert [d.action for d in guard.decisions()] == [Action.RELAPSE]
    assert guard.deadline(1) is None
    guard.wait(100.0)
    assert guard.states()[1] == "withdrawn"


def test_a_held_target_is_back_at_once_however_often_it_flapped() -> None:
    guard = two_proxies()
    guard.target(1).penalty.value, guard.target(1).penalty.at = 50.0, guard.now
    guard.cut(1)
    guard.tell(guard.link_seen(1))
    assert guard.states()[1] == "active"


def test_removing_a_damped_target_leaves_no_availability_behind() -> None:
    guard = two_proxies(spare=0)
    guard.target(1).penalty.value, guard.target(1).penalty.at = 5000.0, guard.now
    guard.unlink(1)
    guard.wait(70.0)
    assert guard.states() == {1: "withdrawn"}
    guard.link(5)
    assert guard.target(1).waiting
    guard.register()
    assert +guard.stream().counts == {}


# Adaptive


def heal_after(guard: Guard, seconds: float, link: int) -> int:
    guard.unlink(link)
    guard.wait(seconds)
    guard.link(link + 1)
    guard.wait(600.0)
    assert guard.states()[1] == "active"
    return link + 1


def test_adaptive_grace_learns_from_heals_that_came_too_late_for_the_window() -> None:
    guard = two_proxies(config(adaptive=True))
    link = 200
    guard.unlink(1)
    guard.link(link)
    for _ in range(5):
        link = heal_after(guard, 5.0, link)
    guard.unlink(link)
    deadline = guard.deadline(1)
    assert deadline is not None
    assert deadline - guard.now == pytest.approx(5.0)


def test_what_one_family_teaches_is_not_put_down_to_the_other() -> None:
    guard = Guard(config(adaptive=True), targets=0)
    guard.link(1, ipv6=True)
    guard.register(1, 2, ipv6=True)
    gone, back = guard.address_gone(1, "fd00:0::1/64"), guard.address(1, "fd00:0::1/64")
    for _ in range(5):
        guard.tell(gone)
        guard.wait(2.0)
        guard.tell(back)
        assert guard.states()[1] == "active"
    heals = guard.engine.life.holds._grace._heals
    assert {str(subnet) for subnet, _ in heals} == {"fd00::/64"}


# Healing verdicts


def verdict(address: bytes, state: VerdictState, sequence: int, *, heal_s: float = 0.0) -> ev.VerdictReported:
    return ev.VerdictReported(
        reporter="proxy",
        verdict=Verdict(
            subject=TargetSubject(ip=address),
            state=state,
            generation=1,
            sequence=sequence,
            lease_s=100.0,
            heal_s=heal_s,
        ),
    )


def test_a_healing_verdict_moves_the_deadline_and_never_past_the_bound() -> None:
    guard = two_proxies()
    lost_at = guard.now
    guard.unlink(1)
    guard.wait(1.0)
    guard.tell(verdict(ipv4_of(1), VerdictState.HEALING, 1, heal_s=9.0))
    assert guard.deadline(1) == lost_at + 10.0
    guard.tell(verdict(ipv4_of(1), VerdictState.HEALING, 2, heal_s=500.0))
    assert guard.deadline(1) == lost_at + 30.0
    guard.tell(verdict(ipv4_of(1), VerdictState.UP, 3))
    assert guard.deadline(1) == lost_at + 3.0


def test_the_end_of_a_repair_does_not_take_back_what_progress_has_kept() -> None:
    guard = two_proxies(config(by_cause={Condition.NO_LINK: 10.0}))
    lost_at = guard.now
    guard.unlink(1)
    guard.wait(8.0)
    guard.refuse = (fx.ProgramRoutes,)
    guard.link(5)
    assert guard.target(1).cause is Condition.ROUTE_MISSING
    guard.tell(verdict(ipv4_of(1), VerdictState.HEALING, 1, heal_s=9.0))
    assert guard.deadline(1) == lost_at + 17.0
    guard.tell(verdict(ipv4_of(1), VerdictState.UP, 2))
    assert guard.deadline(1) == lost_at + 10.0


# One family


ADDRESS6 = "fd00:0::1/64"


def dual() -> Guard:
    """Targets 1 and 2 behind link 1, dual stack, and targets 3 to 5 behind link 2."""
    guard = Guard(config(), targets=0)
    guard.link(1, ipv6=True)
    guard.link(2, proxy=1)
    both = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i), ipv6_of(i))) for i in (1, 2))
    one = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, 1),)) for i in (3, 4, 5))
    guard.source(StreamSpec(name=STREAM, targets=both + one))
    assert set(guard.states().values()) == {"active"}
    return guard


def test_one_familys_loss_never_takes_the_other_familys_connections_along() -> None:
    guard = dual()
    guard.tell(guard.address_gone(1, ADDRESS6))
    assert [(d.action, d.cause, d.deadline) for d in guard.decisions()] == [(Action.HOLD, "no_address", None)] * 2
    guard.wait(10_000)
    assert guard.decisions() == []
    assert guard.active() == {1, 2, 3, 4, 5}
    guard.tell(guard.address(1, ADDRESS6))
    assert guard.actions() == [(1, "recover"), (2, "recover")]


def test_the_window_begins_when_the_last_family_is_lost() -> None:
    guard = dual()
    guard.tell(guard.address_gone(1, ADDRESS6))
    guard.wait(2.9)
    guard.cut(1)
    assert [(d.action, d.deadline) for d in guard.decisions()] == [(Action.REVISE, guard.now + 3.0)] * 2
    guard.wait(2.9)
    assert guard.active() == {1, 2, 3, 4, 5}
    guard.wait(0.2)
    assert guard.active() == {3, 4, 5}
    assert {d.duration_s for d in guard.decisions()} == {3.0}


def test_a_family_that_is_back_ends_the_deadline_when_it_comes() -> None:
    guard = dual()
    lost_at = guard.now
    guard.unlink(1)
    guard.wait(1.0)
    guard.link(5)  # as the same link, but for its IPv6 address
    assert guard.decisions() == [], "the other family comes a moment later, as a rule"
    guard.wait(10_000)
    told = [(d.at, d.action, d.cause, d.deadline) for d in guard.decisions()]
    assert told == [(lost_at + 3.0, Action.REVISE, "no_link", None)] * 2
    assert guard.active() == {1, 2, 3, 4, 5}
    assert guard.states()[1] == "held"


def test_a_family_that_was_back_for_a_moment_begins_a_window_of_its_own() -> None:
    guard = dual()
    guard.unlink(1)
    guard.wait(2.0)
    guard.link(5)
    guard.wait(0.5)
    guard.unlink(5)
    assert [(d.action, d.deadline) for d in guard.decisions()] == [(Action.REVISE, guard.now + 3.0)] * 2
    guard.wait(3.1)
    assert guard.active() == {3, 4, 5}


def test_a_family_that_is_back_ends_a_freeze() -> None:
    guard = dual()
    guard.unlink(1)
    guard.unlink(2)
    guard.wait(10.0)
    assert set(guard.states().values()) == {"frozen"}
    guard.link(5)
    assert guard.states() == {1: "held", 2: "held", 3: "frozen", 4: "frozen", 5: "frozen"}
    guard.wait(10_000)
    assert guard.active() == {1, 2}


def test_a_loss_after_a_freeze_that_ended_is_frozen_anew() -> None:
    """The limit of a freeze counts from its own beginning: an earlier one, long over, uses none of it up."""
    guard = dual()
    guard.unlink(1)
    guard.unlink(2)
    guard.wait(3.1)
    guard.link(5)
    guard.wait(100.0)
    assert guard.states() == {1: "held", 2: "held", 3: "withdrawn", 4: "withdrawn", 5: "withdrawn"}
    guard.unlink(5)
    guard.wait(3.1)
    assert guard.states() == {1: "frozen", 2: "frozen", 3: "withdrawn", 4: "withdrawn", 5: "withdrawn"}


def test_a_target_that_is_out_waits_for_both_families() -> None:
    guard = dual()
    guard.unlink(1)
    guard.wait(3.1)
    guard.link(5)
    guard.wait(100.0)
    assert guard.states()[1] == "withdrawn"
    guard.tell(guard.address(5, "fd00:0::5/64"))
    assert guard.states()[1] == "active"


def test_soft_evidence_against_the_other_family_begins_the_window_and_a_pardon_ends_it() -> None:
    guard = dual()
    guard.tell(guard.address_gone(1, ADDRESS6))
    guard.fail_neighbor(ipv4_of(1))
    assert guard.deadline(1) == guard.now + 3.0
    assert guard.deadline(2) is None
    guard.target(1).pardoned_until = guard.now + 10.0
    guard.tell(guard.address(1, ADDRESS6, usable=False))
    guard.wait(5.0)
    assert guard.states()[1] == "held"
    assert guard.deadline(1) is None
