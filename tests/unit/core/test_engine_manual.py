"""Operators drain, hold, withdraw and release targets; each override has an end."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import Action, ManualAction, NeighborState, StreamSpec, TargetKey, TargetSpec
from tests.unit.core.harness import STREAM, Guard, ipv4_of, ipv6_of
from tests.unit.core.test_engine_drain import listed

WINDOW_S, FOR_S, LIMIT_S = 3.0, 100.0, 60.0
CONFIG = EngineConfig(
    grace=GraceConfig(window_s=WINDOW_S, max_s=30.0),
    freeze=FreezeConfig(threshold=0.5, limit_s=LIMIT_S),
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
    affinity=True,
    learn_s=0.0,
)
DRAIN, HOLD, WITHDRAW, RELEASE = ManualAction


def order(
    guard: Guard, action: ManualAction, *identifiers: int, for_s: float = FOR_S, force: bool = False
) -> fx.OverrideAnswered:
    keys = tuple(TargetKey(STREAM, identifier) for identifier in identifiers)
    event = ev.OverrideRequested(
        action=action, targets=keys, duration_s=for_s, who="anna", reason="rack 7", force=force, ticket=5
    )
    guard.tell(event)
    [answer] = guard.of(fx.OverrideAnswered)
    assert answer.ticket == 5
    return answer


def accepted(guard: Guard, action: ManualAction, *identifiers: int, for_s: float = FOR_S, force: bool = False) -> None:
    answer = order(guard, action, *identifiers, for_s=for_s, force=force)
    assert answer.refused == ""
    assert [key.identifier for key in answer.changed] == list(identifiers)


def avoided(guard: Guard) -> tuple[int, ...]:
    return guard.engine.affinity._reported[STREAM].ipv4.avoid


def restart(guard: Guard, *, downtime_s: float = 1.0, left: Iterable[ev.OpenOverride] | None = None) -> Guard:
    """A new engine in the same world, which is handed the overrides that the old one left open."""
    overrides = guard.engine.open_overrides(guard.now) if left is None else tuple(left)
    new = Guard(guard.engine.config, start=False)
    new.tables, new.routes, new.rules, new.now = guard.tables, guard.routes, guard.rules, guard.now + downtime_s
    aged = tuple(replace(o, age_s=o.age_s + downtime_s, left_s=o.left_s - downtime_s) for o in overrides)
    new.tell(ev.HoldsRemembered(holds=(), overrides=aged))
    new.tell(ev.KernelSnapshot(routes=tuple(guard.routes), rules=tuple(guard.rules)))
    new.link(1)
    return new


# Drain


def test_a_drained_target_keeps_its_place_gets_no_new_flow_and_is_back_at_the_end() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, DRAIN, 2)
    assert guard.states() == {1: "active", 2: "draining", 3: "active"}
    assert guard.active() == {1, 2, 3}
    assert avoided(guard) == (5002,)
    given, drained = guard.decisions()
    assert (given.action, given.cause, given.state_from, given.state_to) == (
        Action.OVERRIDE,
        "manual_drain",
        "active",
        "active",
    )
    assert given.override is not None
    assert (given.override.who, given.override.reason) == ("anna", "rack 7")
    assert (given.override.since, given.override.until) == (guard.now, guard.now + FOR_S)
    assert (drained.action, drained.cause, drained.override) == (Action.DRAIN, "manual_drain", given.override)
    guard.wait(FOR_S - 0.01)
    assert guard.states()[2] == "draining"
    guard.wait(0.02)
    assert guard.states()[2] == "active"
    assert [(d.action, d.cause) for d in guard.decisions()] == [
        (Action.RELEASE, "manual_expired"),
        (Action.RESUME, "manual_expired"),
    ]
    assert avoided(guard) == ()
    assert guard.target(2).override is None


def test_a_drain_does_not_end_what_the_list_drains() -> None:
    guard = Guard(CONFIG, targets=3)
    guard.source(listed(1, 2, 3, draining=(2,)))
    accepted(guard, DRAIN, 2)
    accepted(guard, RELEASE, 2)
    assert guard.states()[2] == "draining"
    accepted(guard, DRAIN, 2)
    guard.source(listed(1, 2, 3))
    assert guard.states()[2] == "draining", "the operator's drain goes on"
    accepted(guard, RELEASE, 2)
    assert guard.states()[2] == "active"


def test_a_drained_target_that_is_lost_is_held_and_drains_on() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, DRAIN, 2)
    guard.cut(1)
    assert guard.states()[2] == "held"
    guard.tell(guard.link_seen(1))
    assert guard.states() == {1: "active", 2: "draining", 3: "active"}


# Hold


def test_a_held_target_outlasts_its_window_until_the_end_and_no_longer() -> None:
    guard = Guard(CONFIG, targets=2)
    guard.register(1)  # one target: a mass failure is out of the question
    accepted(guard, HOLD, 1, for_s=20.0)
    lost_at = guard.now
    guard.unlink(1)
    assert guard.states() == {1: "held"}
    guard.wait(WINDOW_S + 0.01)
    [kept] = guard.decisions()
    assert (kept.action, kept.cause, kept.state_to) == (Action.KEEP, "manual_hold", "held")
    assert kept.deadline == lost_at + 20.0
    guard.wait(16.9)
    assert guard.states() == {1: "held"}
    assert guard.active() == {1}
    guard.wait(0.2)
    assert [(d.action, d.cause) for d in guard.decisions()] == [
        (Action.RELEASE, "manual_expired"),
        (Action.WITHDRAW, "no_link"),
    ]
    assert guard.active() == set()


def test_release_lets_a_deadline_apply_that_the_hold_outlasted() -> None:
    guard = Guard(CONFIG, targets=1)
    accepted(guard, HOLD, 1)
    guard.unlink(1)
    guard.wait(WINDOW_S + 2)
    assert guard.states() == {1: "held"}
    accepted(guard, RELEASE, 1)
    assert guard.states() == {1: "withdrawn"}


def test_release_within_the_window_leaves_the_window() -> None:
    guard = Guard(CONFIG, targets=1)
    accepted(guard, HOLD, 1)
    guard.unlink(1)
    guard.wait(1.0)
    accepted(guard, RELEASE, 1)
    assert guard.states() == {1: "held"}
    guard.wait(WINDOW_S - 1.0 + 0.01)
    assert guard.states() == {1: "withdrawn"}


def test_a_milder_cause_does_not_lengthen_a_loss_by_the_time_of_the_hold() -> None:
    guard = Guard(CONFIG, targets=1)
    accepted(guard, HOLD, 1)
    guard.cut(1)
    guard.wait(WINDOW_S + 2)
    guard.tell(guard.address_gone(1, "172.16.0.1/24"))
    guard.tell(guard.link_seen(1))
    assert (guard.state(1), guard.target(1).cause) == ("held", "no_address")
    accepted(guard, RELEASE, 1)
    assert guard.states() == {1: "withdrawn"}


def test_a_longer_hold_takes_the_place_of_a_shorter_one() -> None:
    guard = Guard(CONFIG, targets=1)
    accepted(guard, HOLD, 1, for_s=10.0)
    guard.unlink(1)
    guard.wait(5.0)
    accepted(guard, HOLD, 1, for_s=50.0)
    guard.wait(49.9)
    assert guard.states() == {1: "held"}
    guard.wait(0.2)
    assert guard.states() == {1: "withdrawn"}


def test_at_the_end_of_a_hold_a_deadline_after_a_mass_failure_applies_and_not_the_limit_of_the_freeze() -> None:
    guard = Guard(CONFIG, targets=0)
    for proxy in (1, 2):
        guard.link(proxy + 1, proxy=proxy)
    guard.source(
        StreamSpec(name=STREAM, targets=tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, i - 1),)) for i in (1, 2, 3)))
    )
    guard.unlink(1)
    guard.unlink(2)
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "frozen", 2: "frozen", 3: "active"}
    accepted(guard, HOLD, 1)
    guard.link(5, proxy=1)
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "frozen", 2: "active", 3: "active"}
    accepted(guard, RELEASE, 1)
    guard.wait(0.0)
    assert guard.states()[1] == "withdrawn"


def test_a_hold_outlasts_the_limit_of_a_freeze() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, HOLD, 2, for_s=LIMIT_S + 30.0)
    guard.unlink(1)
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "frozen", 2: "held", 3: "frozen"}
    guard.wait(LIMIT_S + 1)
    assert guard.states() == {1: "withdrawn", 2: "held", 3: "withdrawn"}
    guard.wait(30.0)
    assert guard.states()[2] == "withdrawn"


def test_a_hold_keeps_both_families_of_a_target() -> None:
    guard = Guard(CONFIG, targets=2, start=False)
    guard.tell(ev.KernelSnapshot())
    guard.link(1, ipv6=True)
    guard.register(1, 2, ipv6=True)
    accepted(guard, HOLD, 1, for_s=20.0)
    guard.tell(guard.address_gone(1, "fd00:0::1/64"))
    assert guard.states() == {1: "held", 2: "held"}
    guard.wait(WINDOW_S + 0.1)
    assert not guard.target(1).paths[ipv6_of(1)].withdrawn
    guard.wait(LIMIT_S + 20.0)
    assert guard.target(1).paths[ipv6_of(1)].withdrawn


def test_a_verdict_does_not_withdraw_a_held_target() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, HOLD, 2, for_s=30.0)
    guard.fail_neighbor(ipv4_of(2))
    assert guard.states()[2] == "held"
    guard.wait(29.0)
    assert guard.states()[2] == "held"
    guard.neighbor(ipv4_of(2), NeighborState.REACHABLE)
    assert guard.states()[2] == "active"


# Withdraw


def test_a_withdrawn_target_is_out_at_once_and_back_at_the_end() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, WITHDRAW, 2)
    assert guard.states()[2] == "withdrawn"
    assert guard.active() == {1, 3}
    assert [(d.action, d.cause) for d in guard.decisions()] == [
        (Action.OVERRIDE, "manual_withdraw"),
        (Action.TAKE_OUT, "manual_withdraw"),
    ]
    guard.wait(FOR_S / 2)
    guard.unlink(1)
    guard.link(1)
    assert guard.states()[2] == "withdrawn", "a path that is back does not bring it back"
    guard.wait(FOR_S / 2 + 0.01)
    assert guard.active() == {1, 2, 3}
    assert [d.action for d in guard.decisions() if d.target.identifier == 2] == [Action.RELEASE, Action.READMIT]
    assert guard.stream().soft_withdrawn == 0


def test_a_released_target_without_a_path_stays_out_and_says_why() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, WITHDRAW, 2)
    guard.cut(1)
    accepted(guard, RELEASE, 2)
    assert guard.states()[2] == "withdrawn"
    [status] = [t for t in guard.engine.status(guard.now).targets if t.identifier == 2]
    assert status.cause == "link_down"


@pytest.mark.parametrize("first", [DRAIN, HOLD, WITHDRAW])
@pytest.mark.parametrize("second", [DRAIN, HOLD, WITHDRAW])
def test_one_override_takes_the_place_of_another(first: ManualAction, second: ManualAction) -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, first, 2, for_s=50.0)
    guard.wait(10.0)
    accepted(guard, second, 2, for_s=60.0)
    in_table = {1, 3} if second is WITHDRAW or (second is DRAIN and first is WITHDRAW) else {1, 2, 3}
    assert guard.active() == in_table
    guard.wait(59.9)
    assert guard.active() == in_table
    guard.wait(0.2)
    assert guard.states() == {1: "active", 2: "active", 3: "active"}
    assert guard.engine.overrides() == {}


def test_a_withdrawal_in_place_of_a_drain_gives_no_connections_in_between() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, DRAIN, 2)
    guard.decisions()
    accepted(guard, WITHDRAW, 2)
    assert [(d.action, d.cause) for d in guard.decisions()] == [
        (Action.OVERRIDE, "manual_withdraw"),
        (Action.TAKE_OUT, "manual_withdraw"),
    ]
    accepted(guard, RELEASE, 2)
    assert guard.states()[2] == "active"
    assert avoided(guard) == ()


# Refusals


@pytest.mark.parametrize("action", [DRAIN, WITHDRAW])
def test_no_command_empties_a_stream_without_force(action: ManualAction) -> None:
    guard = Guard(CONFIG, targets=2)
    answer = order(guard, action, 1, 2)
    assert (answer.refused, answer.concerns) == ("would_empty_stream", (STREAM,))
    assert guard.decisions() == []
    accepted(guard, action, 1)
    assert order(guard, action, 2).refused == "would_empty_stream"
    assert guard.states()[2] == "active"
    accepted(guard, action, 2, force=True)
    assert "active" not in guard.states().values()


def test_held_targets_are_not_counted_as_left() -> None:
    guard = Guard(CONFIG, targets=2)
    guard.fail_neighbor(ipv4_of(1))
    assert guard.states() == {1: "held", 2: "active"}
    assert order(guard, WITHDRAW, 2).refused == "would_empty_stream"
    accepted(guard, HOLD, 2)


@pytest.mark.parametrize("change", [{"observe": True}, {"manages_paths": False}])
@pytest.mark.parametrize("action", list(ManualAction))
def test_where_no_decision_is_carried_out_every_command_is_refused(
    change: dict[str, bool], action: ManualAction
) -> None:
    guard = Guard(replace(CONFIG, **change), targets=2)  # type: ignore[arg-type]
    assert order(guard, action, 1).refused == "not_carried_out"


def test_drains_need_affinity() -> None:
    guard = Guard(replace(CONFIG, affinity=False), targets=2)
    assert order(guard, DRAIN, 1).refused == "needs_affinity"
    accepted(guard, WITHDRAW, 1)


def test_an_unknown_target_refuses_the_whole_command() -> None:
    guard = Guard(CONFIG, targets=3)
    answer = order(guard, WITHDRAW, 1, 9)
    assert (answer.refused, answer.concerns) == ("target_unknown", (f"{STREAM}/9",))
    assert guard.active() == {1, 2, 3}


def test_before_the_table_was_read_commands_are_refused() -> None:
    guard = Guard(CONFIG, start=False)
    guard.refuse = (fx.AttachStream,)
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    guard.register(1, 2)
    assert order(guard, WITHDRAW, 1).refused == "not_ready"


def test_a_target_that_left_the_list_takes_no_command() -> None:
    guard = Guard(replace(CONFIG, drain_window_s=20.0), targets=3)
    guard.wait(2.0)
    guard.register(1, 2)
    assert guard.states()[3] == "draining"
    assert order(guard, HOLD, 3).refused == "target_unlisted"


def test_to_release_what_is_not_overridden_changes_nothing() -> None:
    guard = Guard(CONFIG, targets=2)
    answer = order(guard, RELEASE, 1)
    assert (answer.refused, answer.changed) == ("", ())
    assert guard.decisions() == []


# The list, and restarts


def test_an_override_applies_again_to_a_target_that_is_listed_again() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, WITHDRAW, 2)
    guard.register(1, 3)
    assert guard.states() == {1: "active", 3: "active"}
    guard.register(1, 2, 3)
    assert guard.active() == {1, 3}
    guard.wait(FOR_S)
    assert guard.active() == {1, 2, 3}


def test_an_override_ends_silently_while_its_target_is_not_listed() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, WITHDRAW, 2)
    guard.register(1, 3)
    guard.wait(FOR_S)
    assert guard.engine.overrides() == {}
    guard.register(1, 2, 3)
    assert guard.active() == {1, 2, 3}


def test_an_override_does_not_apply_to_another_target_of_its_identifier() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, WITHDRAW, 2)
    other = tuple(TargetSpec(identifier=i, ips=(ipv4_of(20 if i == 2 else i),)) for i in (1, 2, 3))
    guard.source(replace(listed(1, 2, 3), targets=other))
    assert guard.active() == {1, 2, 3}
    assert guard.decisions(Action.RELEASE)[0].cause == "manual_other_target"


def test_an_override_follows_a_target_that_keeps_one_of_its_addresses() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, WITHDRAW, 2)
    guard.register(1, 2, 3, ipv6=True)
    assert 2 not in guard.active()


@pytest.mark.parametrize("action", [DRAIN, HOLD, WITHDRAW])
def test_an_override_survives_a_restart_with_the_time_that_is_left(action: ManualAction) -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, action, 2)
    before = guard.active()
    new = restart(guard, downtime_s=30.0)
    new.register(1, 2, 3)
    assert new.active() == before
    override = new.target(2).override
    assert override is not None
    assert (override.action, override.who, override.reason) == (action, "anna", "rack 7")
    assert override.until == pytest.approx(guard.now + FOR_S)
    assert (2 in {t - 5000 for t in avoided(new)}) is (action is DRAIN)
    new.wait(FOR_S - 30.0 + 0.01)
    assert new.states() == {1: "active", 2: "active", 3: "active"}


def test_a_withdrawal_that_was_not_carried_out_yet_is_after_a_restart() -> None:
    guard = Guard(CONFIG, targets=3)
    guard.refuse = (fx.CommitTables,)
    accepted(guard, WITHDRAW, 2)
    assert guard.active() == {1, 2, 3}
    new = restart(guard)
    new.register(1, 2, 3)
    assert new.active() == {1, 3}


def test_a_hold_over_a_loss_goes_on_after_a_restart() -> None:
    guard = Guard(CONFIG, targets=1)
    accepted(guard, HOLD, 1)
    guard.unlink(1)
    guard.wait(10.0)
    new = restart(guard)
    new.unlink(1)
    new.register(1)
    assert new.states() == {1: "held"}
    new.wait(80.0)
    assert new.states() == {1: "held"}
    new.wait(10.0)
    assert new.states() == {1: "withdrawn"}


def test_in_a_mode_that_carries_nothing_out_remembered_overrides_do_not_apply() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, WITHDRAW, 2)
    left = guard.engine.open_overrides(guard.now)
    new = Guard(replace(CONFIG, observe=True), start=False)
    new.tell(ev.HoldsRemembered(holds=(), overrides=left))
    assert new.engine.overrides() == {}


# What is shown


def test_the_status_names_the_override_and_when_it_ends() -> None:
    guard = Guard(CONFIG, targets=3)
    accepted(guard, WITHDRAW, 2)
    [status] = [t for t in guard.engine.status(guard.now).targets if t.identifier == 2]
    assert status.cause == "manual_withdraw"
    assert status.override is not None
    assert status.prediction is not None
    assert (status.prediction.action, status.prediction.at) == (Action.RELEASE, guard.now + FOR_S)


def test_the_status_of_a_held_target_predicts_that_it_is_kept() -> None:
    guard = Guard(CONFIG, targets=1)
    accepted(guard, HOLD, 1)
    guard.unlink(1)
    [status] = guard.engine.status(guard.now).targets
    assert status.prediction is not None
    assert (status.prediction.action, status.prediction.at) == (Action.KEEP, guard.now + WINDOW_S)
    assert status.prediction.until == guard.now + FOR_S
    guard.wait(WINDOW_S + 1)
    [status] = guard.engine.status(guard.now).targets
    assert status.prediction is not None
    assert status.prediction.action is Action.WITHDRAW


def test_a_hold_that_ends_while_the_view_is_lost_keeps_a_target_no_longer_than_until_the_view_is_complete() -> None:
    guard = Guard(CONFIG, targets=1)
    accepted(guard, HOLD, 1, for_s=10.0)
    guard.unlink(1)
    guard.wait(8.0)
    guard.tell(ev.KernelOutOfSync(reason="overrun"))
    guard.wait(4.0)
    assert guard.states()[1] == "held"
    guard.tell(ev.KernelSnapshot(routes=tuple(guard.routes), rules=tuple(guard.rules)))
    assert guard.states()[1] == "withdrawn"
