"""Verdicts through the engine: what they hold, withdraw, extend and never do, and what is shown of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import DampingConfig, EngineConfig, EvidenceConfig, FreezeConfig, GraceConfig
from lbguard.core.model import (
    Action,
    Condition,
    ConnectionSubject,
    NeighborState,
    StreamSpec,
    TargetSpec,
    TargetSubject,
    VerdictState,
)
from lbguard.core.status import TargetStatus, VerdictStatus
from tests.unit.core.harness import STREAM, Guard, ip, ipv4_of, ipv6_of
from tests.unit.core.test_fsm import CELLS
from tests.unit.core.verdicts import Reporter, links_of, of_target

UP, DEGRADED, DOWN, HEALING, ENDED = VerdictState
WINDOW_S, VERDICT_WINDOW_S, MAX_S = 3.0, 5.0, 30.0
LIMIT_S = 60.0


def config(*, budget: float = 0.5, threshold: float = 1.0, **evidence: float) -> EngineConfig:
    return EngineConfig(
        grace=GraceConfig(window_s=WINDOW_S, max_s=MAX_S, by_cause_s={Condition.VERDICT_DOWN: VERDICT_WINDOW_S}),
        freeze=FreezeConfig(threshold=threshold, limit_s=LIMIT_S),
        damping=DampingConfig(half_life_s=10.0, step_s=4.0, max_s=6.0),
        evidence=EvidenceConfig(**evidence),  # type: ignore[arg-type]
        soft_budget=budget,
        neighbor_probe_interval_s=0.0,
        solicit_neighbors=False,
    )


def four(settings: EngineConfig | None = None) -> Guard:
    """Targets 1 to 4 behind link 1, IPv4 alone; the kernel has been silent for long."""
    guard = Guard(settings or config(), targets=4)
    guard.wait(60.0)
    return guard


def dual(settings: EngineConfig | None = None) -> Guard:
    """The same, dual stack."""
    guard = Guard(settings or config(), targets=0)
    guard.link(1, ipv6=True)
    guard.register(1, 2, 3, 4, ipv6=True)
    guard.wait(60.0)
    return guard


# Holding


def test_a_down_on_a_link_that_exists_holds_for_its_own_window_and_then_withdraws() -> None:
    guard = four()
    lost_at = guard.now
    Reporter(guard).say(DOWN, of_target(1))
    [hold] = guard.decisions()
    assert (hold.action, hold.cause, hold.deadline) == (Action.HOLD, "verdict_down", lost_at + VERDICT_WINDOW_S)
    assert [e.verdict for e in hold.evidence] == ["down"]
    guard.wait(VERDICT_WINDOW_S - 0.01)
    assert guard.active() == {1, 2, 3, 4}
    guard.wait(0.02)
    assert guard.active() == {2, 3, 4}
    assert guard.route(1) is not None, "the route stays: the link is there"


def test_a_withdrawn_target_is_readmitted_when_its_reporter_says_so() -> None:
    guard = four()
    reporter = Reporter(guard)
    reporter.say(DOWN, of_target(1))
    guard.wait(VERDICT_WINDOW_S)
    reporter.say(UP, of_target(1))
    assert guard.actions() == [(1, "readmit")]
    assert guard.active() == {1, 2, 3, 4}


@pytest.mark.parametrize("state", [UP, DEGRADED, ENDED])
def test_a_hold_ends_with_the_down(state: VerdictState) -> None:
    guard = four()
    reporter = Reporter(guard)
    reporter.say(DOWN, of_target(1))
    guard.wait(2.0)
    reporter.say(state, of_target(1))
    assert guard.actions() == [(1, "recover")]
    assert guard.deadline(1) is None


def test_a_reporter_that_falls_silent_has_no_opinion() -> None:
    guard = four()
    Reporter(guard).say(DOWN, of_target(1), lease=4.0)
    guard.wait(3.99)
    assert guard.states()[1] == "held"
    guard.wait(0.02)
    assert guard.states()[1] == "active"
    assert guard.engine.next_deadline(guard.now) is None


def test_a_down_that_nobody_renews_does_not_keep_a_target_out() -> None:
    guard = four()
    Reporter(guard).say(DOWN, of_target(1), lease=VERDICT_WINDOW_S + 1.0)
    guard.wait(VERDICT_WINDOW_S)
    assert guard.states()[1] == "withdrawn"
    guard.wait(1.0)
    assert guard.states()[1] == "active"


def test_an_up_during_a_hold_never_beats_a_missing_link() -> None:
    guard = four()
    reporter = Reporter(guard)
    lost_at = guard.now
    guard.unlink(1)
    guard.wait(1.0)
    reporter.say(UP, of_target(1), *links_of(1))
    assert reporter.reasons() == ["", "", ""]
    assert guard.states()[1] == "held"
    assert guard.deadline(1) == lost_at + WINDOW_S
    guard.wait(2.0)
    assert guard.states()[1] == "withdrawn"


def test_a_link_that_goes_is_worse_than_a_down_and_counts_from_the_first_loss() -> None:
    guard = four()
    lost_at = guard.now
    Reporter(guard).say(DOWN, of_target(1))
    guard.wait(1.0)
    guard.unlink(1)
    assert guard.target(1).cause is Condition.NO_LINK
    assert guard.deadline(1) == lost_at + WINDOW_S


def test_a_link_that_comes_back_under_a_down_stays_held_and_progress_costs_no_time() -> None:
    guard = four()
    lost_at = guard.now
    guard.unlink(1)
    Reporter(guard).say(DOWN, of_target(1))
    guard.link(2)
    assert guard.target(1).cause is Condition.VERDICT_DOWN
    assert guard.states()[1] == "held"
    assert guard.deadline(1) == lost_at + VERDICT_WINDOW_S
    assert guard.states()[2] == "active"


def patient_with_neighbors() -> Guard:
    """A failed neighbour alone may take 20 s; a verdict knows better and gives less."""
    grace = GraceConfig(
        max_s=MAX_S, by_cause_s={Condition.NEIGHBOR_FAILED: 20.0, Condition.VERDICT_DOWN: VERDICT_WINDOW_S}
    )
    return four(replace(config(), grace=grace))


def test_a_down_shortens_the_wait_for_a_failed_neighbor_and_counts_from_the_loss() -> None:
    guard = patient_with_neighbors()
    lost_at = guard.now
    guard.fail_neighbor(ipv4_of(1))
    assert (guard.target(1).cause, guard.deadline(1)) == (Condition.NEIGHBOR_FAILED, lost_at + 20.0)
    guard.wait(2.0)
    Reporter(guard).say(DOWN, of_target(1))
    [revise] = guard.decisions()
    assert (revise.action, revise.cause, revise.deadline) == (
        Action.REVISE,
        "verdict_down",
        lost_at + VERDICT_WINDOW_S,
    )
    guard.wait(lost_at + VERDICT_WINDOW_S - 0.01 - guard.now)
    assert guard.active() == {1, 2, 3, 4}
    guard.wait(0.02)
    assert guard.active() == {2, 3, 4}


def test_a_down_after_its_own_window_ends_the_wait_for_a_failed_neighbor_at_once() -> None:
    guard = patient_with_neighbors()
    guard.fail_neighbor(ipv4_of(1))
    guard.wait(VERDICT_WINDOW_S + 1.0)
    assert guard.active() == {1, 2, 3, 4}
    Reporter(guard).say(DOWN, of_target(1))
    guard.wait(0.01)
    assert guard.active() == {2, 3, 4}


def test_a_down_that_does_not_count_leaves_a_failed_neighbor_its_time() -> None:
    guard = patient_with_neighbors()
    Reporter(guard, "proxy-b").say(UP, of_target(1))
    lost_at = guard.now
    guard.fail_neighbor(ipv4_of(1))
    Reporter(guard).say(DOWN, of_target(1))
    assert (guard.target(1).cause, guard.deadline(1)) == (Condition.NEIGHBOR_FAILED, lost_at + 20.0)


# Late, repeated, ended


def test_what_comes_late_twice_or_after_the_end_is_answered_by_name_and_changes_nothing() -> None:
    guard = four()
    reporter = Reporter(guard)
    reporter.say(UP, of_target(1), sequence=5)
    for state, sequence, generation, reason in (
        (DOWN, 5, 1, "repeated"),
        (DOWN, 4, 1, "late"),
        (DOWN, 9, 0, "late"),
    ):
        reporter.say(state, of_target(1), sequence=sequence, generation=generation)
        assert reporter.reasons() == [reason]
        assert guard.of(fx.Ignored) == [fx.Ignored(reason=f"verdict_{reason}")]
        assert guard.states()[1] == "active"
    reporter.say(ENDED, of_target(1), sequence=6)
    reporter.say(DOWN, of_target(1), sequence=7)
    assert reporter.reasons() == ["ended"]
    assert guard.states()[1] == "active"
    reporter.say(DOWN, of_target(1), generation=2, sequence=1)
    assert reporter.reasons() == [""]
    assert guard.states()[1] == "held"


def test_every_verdict_is_answered_with_its_ticket() -> None:
    guard = four()
    reporter = Reporter(guard)
    reporter.say(UP, of_target(1), of_target(2))
    assert [answer.ticket for answer in guard.of(fx.VerdictAnswered)] == [1, 2]
    reporter.say(UP, of_target(1), sequence=1)
    assert guard.of(fx.VerdictAnswered) == [fx.VerdictAnswered(ticket=3, reason="repeated", generation=1)]


def test_the_state_is_bounded_and_says_so() -> None:
    guard = four(config(opinions_max=1))
    reporter = Reporter(guard)
    reporter.say(UP, of_target(1))
    reporter.say(DOWN, of_target(2))
    assert reporter.reasons() == ["state_full"]
    assert guard.states()[2] == "active"


# Corroboration


def test_one_family_down_degrades_and_never_withdraws() -> None:
    guard = dual()
    Reporter(guard).say(DOWN, *links_of(1)[:1])
    guard.wait(200.0)
    assert set(guard.states().values()) == {"active"}
    assert [path.verdict for path in guard.target(1).paths.values()] == ["down", ""]


def test_both_families_down_hold_and_one_of_them_up_again_is_enough() -> None:
    guard = dual()
    reporter = Reporter(guard)
    reporter.say(DOWN, TargetSubject(ip=ipv4_of(1)))
    reporter.say(DOWN, TargetSubject(ip=ipv6_of(1)))
    assert guard.actions() == [(1, "hold")]
    reporter.say(UP, TargetSubject(ip=ipv6_of(1)))
    assert guard.actions() == [(1, "recover")]


def test_a_down_of_one_family_and_a_failed_neighbor_of_the_other_corroborate() -> None:
    guard = dual()
    Reporter(guard).say(DOWN, TargetSubject(ip=ipv4_of(1)))
    guard.fail_neighbor(ipv6_of(1))
    [hold] = guard.decisions()
    assert (hold.action, hold.cause) == (Action.HOLD, "verdict_down")


def test_a_reporter_that_gets_through_outweighs_one_that_does_not() -> None:
    guard = four()
    other = Reporter(guard, "proxy-b")
    other.say(UP, of_target(1), lease=10.0)
    Reporter(guard).say(DOWN, of_target(1))
    assert guard.states()[1] == "active"
    guard.wait(10.0)
    assert guard.states()[1] == "held"


def test_a_down_counts_only_when_it_was_said_often_enough() -> None:
    guard = four(config(confirm_k=2, confirm_n=3))
    reporter = Reporter(guard)
    reporter.say(DOWN, of_target(1))
    assert guard.states()[1] == "active"
    reporter.say(DOWN, of_target(1))
    assert guard.states()[1] == "held"


# What soft evidence may do


def test_soft_evidence_takes_no_more_than_its_budget_and_the_rest_is_pardoned() -> None:
    guard = four()
    Reporter(guard).say(DOWN, *(of_target(number) for number in (1, 2, 3, 4)))
    guard.wait(VERDICT_WINDOW_S)
    assert sorted(action for _, action in guard.actions()) == ["pardon", "pardon", "withdraw", "withdraw"]
    assert len(guard.active()) == 2
    guard.wait(LIMIT_S - 0.01)
    assert len(guard.active()) == 2
    guard.wait(0.02)
    assert sorted(guard.states().values()) == ["held", "held", "withdrawn", "withdrawn"]
    guard.wait(2 * (LIMIT_S + VERDICT_WINDOW_S))
    assert len(guard.active()) == 2


@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_soft_evidence_never_takes_the_last_target(budget: float) -> None:
    guard = Guard(config(budget=budget), targets=1)
    guard.wait(60.0)
    Reporter(guard).say(DOWN, of_target(1))
    guard.wait(1000.0)
    assert guard.active() == {1}


def test_a_pardon_is_no_shield_against_the_kernel() -> None:
    guard = Guard(config(), targets=1)
    guard.wait(60.0)
    Reporter(guard).say(DOWN, of_target(1))
    guard.wait(VERDICT_WINDOW_S)
    assert guard.actions() == [(1, "pardon")]
    guard.unlink(1)
    assert guard.actions() == [(1, "hold")]
    assert guard.target(1).cause is Condition.NO_LINK


def test_a_mass_of_downs_freezes_instead_of_withdrawing() -> None:
    guard = four(config(threshold=0.5))
    reporter = Reporter(guard)
    reporter.say(DOWN, *links_of(1))
    guard.wait(VERDICT_WINDOW_S)
    assert set(guard.states().values()) == {"frozen"}
    assert guard.active() == {1, 2, 3, 4}
    reporter.say(UP, *links_of(1))
    assert set(guard.states().values()) == {"active"}


def test_a_lying_reporter_alone_never_withdraws_a_target_whose_neighbor_answers() -> None:
    guard = four()
    reporter = Reporter(guard, "liar")
    for _ in range(100):
        reporter.say(DOWN, *links_of(1), *(of_target(number) for number in (1, 2, 3, 4)))
        for number in (1, 2, 3, 4):
            guard.neighbor(ipv4_of(number), NeighborState.REACHABLE)
        guard.wait(1.0)
        assert guard.active() == {1, 2, 3, 4}
        assert set(guard.states().values()) == {"active"}


# Healing


def test_healing_holds_past_the_window_and_never_past_the_bound() -> None:
    guard = four()
    reporter = Reporter(guard)
    lost_at = guard.now
    guard.unlink(1)
    for second in range(1, 30):
        guard.wait(1.0)
        reporter.say(HEALING, *links_of(1), heal=15.0, lease=3.0)
        assert guard.deadline(1) == min(lost_at + second + 15.0, lost_at + MAX_S)
    guard.wait(0.99)
    assert guard.states()[1] == "held"
    guard.wait(0.02)
    assert guard.states()[1] == "withdrawn"


def test_a_deadline_falls_back_when_nobody_says_any_more_that_it_heals() -> None:
    guard = four()
    lost_at = guard.now
    guard.unlink(1)
    Reporter(guard).say(HEALING, *links_of(1), heal=20.0, lease=2.0)
    assert guard.deadline(1) == lost_at + 20.0
    guard.wait(2.0)
    assert guard.deadline(1) == lost_at + WINDOW_S
    guard.wait(1.0)
    assert guard.states()[1] == "withdrawn"


def test_a_lease_that_ends_after_the_window_withdraws_at_once() -> None:
    guard = four()
    guard.unlink(1)
    Reporter(guard).say(HEALING, *links_of(1), heal=20.0, lease=8.0)
    guard.wait(7.9)
    assert guard.states()[1] == "held"
    guard.wait(0.2)
    assert guard.states()[1] == "withdrawn"


def test_a_repair_that_is_reported_keeps_the_path_down_and_extends_the_hold() -> None:
    guard = four()
    reporter = Reporter(guard)
    lost_at = guard.now
    reporter.say(DOWN, of_target(1))
    guard.wait(1.0)
    reporter.say(HEALING, of_target(1), heal=9.0)
    assert guard.states()[1] == "held"
    assert guard.deadline(1) == lost_at + 10.0
    guard.wait(1.0)
    reporter.say(UP, of_target(1))
    [recover] = guard.decisions()
    assert (recover.action, recover.duration_s) == (Action.RECOVER, 2.0)


def test_healing_of_a_path_that_works_holds_nothing() -> None:
    guard = four()
    Reporter(guard).say(HEALING, of_target(1), heal=9.0)
    assert guard.states()[1] == "active"


def test_renewals_of_healing_leave_no_record_each() -> None:
    guard = four()
    reporter = Reporter(guard)
    guard.unlink(1)
    reporter.say(HEALING, *links_of(1), heal=15.0)
    assert {action for _, action in guard.actions()} == {"revise"}
    until = guard.now + 15.0
    for _ in range(10):
        guard.wait(1.0)
        reporter.say(HEALING, *links_of(1), heal=until - guard.now + 0.003)
        assert guard.decisions() == []
        assert guard.deadline(1) == pytest.approx(until + 0.003)


# Connections


def test_new_addresses_of_a_connection_are_no_alarm_and_the_old_ones_are_let_go() -> None:
    guard = four()
    reporter = Reporter(guard)
    reporter.say(DOWN, ConnectionSubject(id="c", peer_ips=(ipv4_of(1),)))
    assert guard.states() == {1: "held", 2: "active", 3: "active", 4: "active"}
    reporter.generation = 2
    reporter.say(UP, ConnectionSubject(id="c", peer_ips=(ipv4_of(2),)))
    assert guard.states() == {1: "active", 2: "active", 3: "active", 4: "active"}
    reporter.say(DOWN, ConnectionSubject(id="c", peer_ips=(ipv4_of(1),)), generation=1)
    assert reporter.reasons() == ["late"]
    assert set(guard.states().values()) == {"active"}


def test_a_closed_connection_changes_nothing_any_more() -> None:
    guard = four()
    reporter = Reporter(guard)
    connection = ConnectionSubject(id="c", lb_ips=(ip("172.16.0.1"),))
    reporter.say(UP, connection)
    reporter.say(ENDED, connection)
    reporter.say(DOWN, connection)
    assert reporter.reasons() == ["ended"]
    guard.wait(100.0)
    assert set(guard.states().values()) == {"active"}


# Every cell of the state table, by verdicts alone


@dataclass
class World:
    guard: Guard
    reporter: Reporter

    def down(self, *targets: int) -> None:
        self.reporter.say(DOWN, *(of_target(number) for number in targets))

    def up(self, *targets: int) -> None:
        self.reporter.say(UP, *(of_target(number) for number in targets))


def in_state(state: str, budget: float) -> World:
    """Target 1 in a state, brought there by verdicts; of 4 targets 2 may be broken before it is a mass failure."""
    guard = Guard(replace(config(budget=budget, threshold=0.5), affinity=True), targets=4)
    guard.wait(60.0)
    world = World(guard, Reporter(guard))
    if state == "pending":
        world.down(1)
        listed = {i: TargetSpec(identifier=i, ips=(ipv4_of(i),)) for i in (1, 2, 3, 4)}
        guard.source(StreamSpec(name=STREAM, targets=tuple(listed[i] for i in (2, 3, 4))))
        guard.source(StreamSpec(name=STREAM, targets=tuple(listed.values())))
    if state in ("held", "withdrawn"):
        world.down(1)
    if state == "draining":
        drained = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i),), draining=i == 1) for i in (1, 2, 3, 4))
        guard.source(StreamSpec(name=STREAM, targets=drained))
    if state == "frozen":
        world.down(1, 2, 3)
    if state in ("frozen", "withdrawn"):
        guard.wait(VERDICT_WINDOW_S)
    assert guard.states()[1] == state
    return world


FED: dict[str, Callable[[World], object]] = {
    "path_ok": lambda world: world.up(1),
    "path_broken": lambda world: world.down(1),
    "deadline": lambda world: world.guard.wait(VERDICT_WINDOW_S),
    "removed": lambda world: world.guard.register(2, 3, 4),
}
# The first recovery after a withdrawal never waits, and what is WITHDRAWN by a verdict waits for no deadline.
AT_ONCE = {("withdrawn", "path_ok"): ("active", "readmit")}
UNTIMED = {("withdrawn", "deadline"): ("withdrawn", "stay")}


@pytest.mark.parametrize(
    ("state", "what", "follows", "action"),
    [cell for cell in CELLS if cell[1] in FED and cell[:2] != ("frozen", "deadline")],
)
def test_cell(state: str, what: str, follows: str, action: str) -> None:
    world = in_state(state, budget=1.0)
    FED[what](world)
    follows, action = {**AT_ONCE, **UNTIMED}.get((state, what), (follows, action))
    assert world.guard.states().get(1, "gone") == follows
    expected = [] if action in ("stay", "relapse") or (state, what) == ("held", "path_broken") else [action]
    assert [a for target, a in world.guard.actions() if target == 1] == expected


def test_a_frozen_target_is_withdrawn_one_window_after_the_others_are_back() -> None:
    world = in_state("frozen", budget=1.0)
    world.up(2, 3)
    world.guard.wait(VERDICT_WINDOW_S - 0.01)
    assert world.guard.states()[1] == "frozen"
    world.guard.wait(0.02)
    assert world.guard.actions() == [(1, "withdraw")]


def test_at_the_end_of_a_freeze_the_budget_decides_who_goes() -> None:
    world = in_state("frozen", budget=0.25)
    world.guard.wait(LIMIT_S)
    actions = [action for _, action in world.guard.actions()]
    assert sorted(actions) == ["pardon", "pardon", "withdraw"]


def test_a_target_that_flaps_by_verdicts_waits_before_it_is_readmitted() -> None:
    world = in_state("withdrawn", budget=1.0)
    for _ in range(2):
        world.up(1)
        assert world.guard.states()[1] in ("active", "withdrawn")
        world.guard.wait(6.0)
        assert world.guard.states()[1] == "active"
        world.down(1)
        world.guard.wait(VERDICT_WINDOW_S)
        assert world.guard.states()[1] == "withdrawn"
    world.up(1)
    assert world.guard.actions() == [(1, "wait")]
    world.down(1)
    assert world.guard.actions() == [(1, "relapse")]
    world.up(1)
    world.guard.wait(6.01)
    assert world.guard.actions() == [(1, "readmit")]


# What is shown


def shown(guard: Guard) -> TargetStatus:
    return next(target for target in guard.engine.status(guard.now).targets if target.identifier == 1)


def test_the_status_shows_who_says_what_since_when_until_when_and_what_it_weighs() -> None:
    guard = dual(config(confirm_k=2))
    said_at = guard.now
    reporter = Reporter(guard)
    reporter.say(DOWN, *links_of(1), lease=30.0)
    guard.wait(1.0)
    Reporter(guard, "proxy-b").say(UP, TargetSubject(ip=ipv4_of(1)), lease=9.0)
    first, second = shown(guard).paths
    assert (first.verdict, second.verdict) == ("degraded", "degraded")
    assert first.verdicts == (
        VerdictStatus(
            reporter="proxy-a",
            subject="link 172.16.0.1 - 172.16.0.250",
            state=DOWN,
            weight="unconfirmed",
            at=said_at,
            expires_at=said_at + 30.0,
        ),
        VerdictStatus(
            reporter="proxy-b",
            subject="target 172.16.0.11",
            state=UP,
            weight="counts",
            at=said_at + 1.0,
            expires_at=said_at + 10.0,
        ),
    )
    assert [(v.subject, v.weight) for v in second.verdicts] == [("link fd00::1 - fd00::fa", "unconfirmed")]


def test_the_status_tells_what_contradicts_and_what_vetoes() -> None:
    guard = four()
    Reporter(guard).say(DOWN, *links_of(1)[:1])
    assert [v.weight for v in shown(guard).paths[0].verdicts] == ["counts"]
    assert shown(guard).paths[0].condition == "verdict_down"
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    assert [v.weight for v in shown(guard).paths[0].verdicts] == ["vetoed"]
    assert (shown(guard).paths[0].verdict, shown(guard).paths[0].condition) == ("down_vetoed", "ok")
    Reporter(guard, "proxy-b").say(UP, *links_of(1)[:1])
    assert [v.weight for v in shown(guard).paths[0].verdicts] == ["contradicted", "counts"]
    assert shown(guard).paths[0].verdict == "degraded"


def test_the_status_shows_nothing_of_what_ran_out_or_ended() -> None:
    guard = four()
    Reporter(guard).say(UP, of_target(1), lease=1.0)
    other = Reporter(guard, "proxy-b")
    other.say(UP, ConnectionSubject(id="c", peer_ips=(ipv4_of(1),)))
    assert [v.subject for v in shown(guard).paths[0].verdicts] == ["target 172.16.0.11", "connection c"]
    guard.wait(1.0)
    other.say(ENDED, ConnectionSubject(id="c"))
    assert shown(guard).paths[0].verdicts == ()
    assert shown(guard).paths[0].verdict == ""


def test_only_who_is_told_of_the_kernel_and_the_source_judges() -> None:
    """A verdict that comes before the first full view is kept, and counts from then on."""
    guard = Guard(config(), start=False)
    Reporter(guard).say(DOWN, of_target(1))
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.register(1, 2)
    assert guard.states() == {1: "pending", 2: "active"}
