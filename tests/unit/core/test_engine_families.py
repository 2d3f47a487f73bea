"""Families that are lost one by one, and drains of targets that lost one, with their records and predictions."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import (
    Action,
    Decision,
    LinkSubject,
    NeighborState,
    StreamSpec,
    StreamSteering,
    TargetKey,
    TargetSpec,
    TargetState,
    Verdict,
    VerdictState,
)
from lbguard.core.status import Prediction
from tests.effort import examples
from tests.unit.core.harness import STREAM, Guard, ip, ipv4_of, ipv6_of

WINDOW_S, DRAIN_S, LIMIT_S = 3.0, 20.0, 60.0
CONFIG = EngineConfig(
    grace=GraceConfig(window_s=WINDOW_S, max_s=30.0),
    freeze=FreezeConfig(threshold=0.5, limit_s=LIMIT_S),
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
    affinity=True,
    drain_window_s=DRAIN_S,
)


def listed(*identifiers: int, draining: tuple[int, ...] = (), name: str = STREAM, offset: int = 5000) -> StreamSpec:
    targets = tuple(
        TargetSpec(identifier=i, ips=(ipv4_of(i, i), ipv6_of(i, i)), draining=i in draining) for i in identifiers
    )
    return StreamSpec(name=name, targets=targets, identifier_offset=offset)


def give(guard: Guard, identifier: int, *, ipv4: bool) -> None:
    """The link of one family of a target is there."""
    number = identifier + (10 if ipv4 else 20)
    text = f"172.16.{identifier}.{100 + number}/24" if ipv4 else f"fd00:{identifier}::{100 + number}/64"
    guard.tell(guard.link_seen(number), guard.address(number, text))


def lose(guard: Guard, *identifiers: int, ipv4: bool) -> None:
    """The links of one family of targets go, in one batch of events."""
    numbers = [identifier + (10 if ipv4 else 20) for identifier in identifiers]
    for number in numbers:
        guard._lose_routes(number)
    guard.tell(*(ev.LinkGone(ifindex=number) for number in numbers))


def dual(count: int, config: EngineConfig = CONFIG) -> Guard:
    """Targets with both families, each family of each behind a link of its own, all active."""
    guard = Guard(config, targets=0)
    for identifier in range(1, count + 1):
        give(guard, identifier, ipv4=True)
        give(guard, identifier, ipv4=False)
    guard.source(listed(*range(1, count + 1)))
    assert set(guard.states().values()) == {"active"}
    return guard


def steering(guard: Guard) -> StreamSteering:
    return guard.engine.affinity._reported[STREAM]


def prediction(guard: Guard, identifier: int) -> Prediction | None:
    return guard.engine.predictions(guard.now).get(TargetKey(STREAM, identifier))


def records_during(guard: Guard, seconds: float) -> list[tuple[int, str]]:
    """Return the decisions while time passes."""
    effects = guard.wait(seconds)
    found = [effect.decision for effect in effects if isinstance(effect, fx.Record)]
    return [(decision.target.identifier, decision.action.value) for decision in found]


def test_a_family_that_was_withdrawn_is_not_withdrawn_again_when_the_other_is_back() -> None:
    guard = dual(3)
    lose(guard, 1, ipv4=False)
    guard.wait(WINDOW_S + 0.1)
    lose(guard, 1, ipv4=True)
    guard.wait(1.0)
    give(guard, 1, ipv4=True)
    # The window of the loss of both has ended without a withdrawal: the target is held for as long as it takes.
    assert records_during(guard, 10 * WINDOW_S) == [(1, "revise")]
    assert guard.deadline(1) is None
    assert steering(guard).ipv4.served == (5001, 5002, 5003)
    assert steering(guard).ipv6.served == (5002, 5003)


def test_a_family_that_is_back_after_a_freeze_leaves_a_record_of_the_new_state() -> None:
    guard = dual(2)
    for ipv4 in (True, False):
        lose(guard, 1, 2, ipv4=ipv4)
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "frozen", 2: "frozen"}
    give(guard, 1, ipv4=True)
    assert guard.states() == {1: "held", 2: "frozen"}
    assert [(d.action, d.state_from, d.state_to) for d in guard.decisions()] == [(Action.REVISE, "frozen", "held")]


def test_a_repair_that_is_reported_moves_the_end_of_a_familys_window() -> None:
    guard = dual(3)
    subject = LinkSubject(lb_ip=ip("fd00:1::121"), proxy_ip=ip("fd00:1::99"))
    lose(guard, 1, ipv4=False)
    lost_at = guard.now
    guard.wait(1.0)
    healing = Verdict(subject=subject, state=VerdictState.HEALING, generation=1, sequence=1, lease_s=20.0, heal_s=10.0)
    guard.tell(ev.VerdictReported(reporter="proxy", verdict=healing))
    assert guard.deadline(1) == pytest.approx(lost_at + 11.0)
    assert steering(guard).ipv6.served == (5001, 5002, 5003)
    guard.wait(WINDOW_S)
    assert steering(guard).ipv6.served == (5001, 5002, 5003)


def test_a_family_withdrawn_long_after_its_loss_says_how_long_it_was_held() -> None:
    guard = dual(3)
    lose(guard, 1, ipv4=False)
    guard.wait(1.0)
    guard.tell(ev.Stalled(duration_s=0.5))
    [found] = [e.decision for e in guard.wait(10.0) if isinstance(e, fx.Record)]
    assert found.action is Action.WITHDRAW_FAMILY
    assert found.duration_s == pytest.approx(WINDOW_S)


def test_targets_held_for_one_family_alone_make_no_mass_failure_of_a_later_loss() -> None:
    guard = dual(5)
    for identifier in (1, 2, 3):
        lose(guard, identifier, ipv4=False)
        guard.wait(WINDOW_S + 0.1)
    assert steering(guard).ipv6.served == (5004, 5005)
    lose(guard, 4, ipv4=True)
    lose(guard, 4, ipv4=False)
    foreseen = prediction(guard, 4)
    assert foreseen is not None
    assert foreseen.action is Action.WITHDRAW
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "held", 2: "held", 3: "held", 4: "withdrawn", 5: "active"}


def test_a_target_held_for_one_family_alone_counts_as_broken_when_that_is_lost_too() -> None:
    guard = dual(3)
    lose(guard, 1, ipv4=False)
    guard.wait(WINDOW_S + 0.1)
    lose(guard, 1, 2, ipv4=True)
    lose(guard, 2, ipv4=False)
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "frozen", 2: "frozen", 3: "active"}


def test_a_target_held_for_one_family_alone_that_is_removed_is_forgotten_by_its_stream() -> None:
    guard = Guard(replace(CONFIG, drain_window_s=0.0), targets=0)
    for identifier in (1, 2, 3, 4):
        give(guard, identifier, ipv4=True)
        give(guard, identifier, ipv4=False)
    guard.source(listed(1, 2, 3, 4))
    lose(guard, 1, ipv4=False)
    guard.wait(WINDOW_S + 0.1)
    guard.source(listed(2, 3, 4))
    lose(guard, 2, 3, ipv4=True)
    lose(guard, 2, 3, ipv4=False)
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {2: "frozen", 3: "frozen", 4: "active"}


def test_a_stream_of_which_every_target_lost_one_family_is_unavailable() -> None:
    guard = dual(2)
    lose(guard, 1, 2, ipv4=False)
    guard.wait(CONFIG.availability_grace_s + 0.1)
    assert guard.engine.available(STREAM) is False
    give(guard, 2, ipv4=False)
    assert guard.engine.available(STREAM) is True


def test_a_target_that_lost_one_family_drains_for_the_other() -> None:
    guard = dual(3)
    lose(guard, 3, ipv4=False)
    guard.wait(WINDOW_S + 0.1)
    guard.source(listed(1, 2))
    assert guard.states()[3] == "held"
    assert guard.active() == {1, 2, 3}
    assert steering(guard).ipv4.served == (5001, 5002, 5003)
    assert 5003 in steering(guard).ipv4.avoid
    assert prediction(guard, 3) == Prediction(action=Action.REMOVE, at=guard.now + DRAIN_S)
    assert records_during(guard, DRAIN_S + 0.1) == [(3, "remove")]


def test_a_drain_goes_on_in_another_stream_that_has_the_same_address() -> None:
    guard = dual(2)
    both = listed(1, 2, name="other", offset=6000)
    guard.source(listed(1, 2), both)
    guard.source(listed(1), both)
    assert guard.states() == {1: "active", 2: "draining"}
    guard.source(listed(1), both)
    guard.wait(DRAIN_S - 0.1)
    assert guard.states() == {1: "active", 2: "draining"}


@pytest.mark.parametrize("first", [STREAM, "other"])
def test_an_address_that_moves_to_another_stream_in_one_list_ends_the_drain(first: str) -> None:
    guard = dual(2)
    newcomer = StreamSpec(
        name="other", identifier_offset=6000, targets=(TargetSpec(identifier=1, ips=(ipv4_of(2, 2), ipv6_of(2, 2))),)
    )
    specs = [listed(1), newcomer]
    guard.source(*(specs if first == STREAM else specs[::-1]))
    assert guard.states() == {1: "active"}


def test_a_draining_target_that_is_pardoned_drains_on() -> None:
    guard = Guard(CONFIG, targets=1)
    spec = StreamSpec(name=STREAM, targets=(TargetSpec(identifier=1, ips=(ipv4_of(1),), draining=True),))
    guard.source(spec)
    assert guard.states() == {1: "draining"}
    guard.fail_neighbor(ipv4_of(1))
    assert guard.states() == {1: "held"}
    assert records_during(guard, WINDOW_S + 0.1) == [(1, "pardon"), (1, "drain")]
    assert guard.states() == {1: "draining"}
    found = prediction(guard, 1)
    assert found is not None
    assert found.action is Action.HOLD
    assert found.at == pytest.approx(guard.now - 0.1 + LIMIT_S)
    assert records_during(guard, LIMIT_S) == [(1, "hold")]


def test_the_end_of_a_drain_is_foreseen_to_make_a_mass_failure_of_what_is_broken() -> None:
    guard = dual(5)
    guard.source(listed(1, 2, 3))
    assert guard.states() == {1: "active", 2: "active", 3: "active", 4: "draining", 5: "draining"}
    guard.wait(DRAIN_S - 1.0)
    for ipv4 in (True, False):
        lose(guard, 1, 2, ipv4=ipv4)
    # Two of five now, two of three when the window ends.
    found = prediction(guard, 1)
    assert found is not None
    assert (found.action, found.why) == (Action.FREEZE, "2 of 3 targets are broken")
    assert set(records_during(guard, WINDOW_S)) == {(4, "remove"), (5, "remove"), (1, "freeze"), (2, "freeze")}


def test_a_hold_that_outlasts_its_drain_is_foreseen_to_end_with_it() -> None:
    guard = Guard(CONFIG, targets=3)
    guard.register(1, 2)
    guard.wait(DRAIN_S - 1.0)
    guard.fail_neighbor(ipv4_of(3))
    assert guard.states()[3] == "held"
    assert prediction(guard, 3) == Prediction(action=Action.REMOVE, at=guard.now + 1.0)
    assert records_during(guard, 2.0) == [(3, "remove")]


def test_a_family_that_waits_for_the_end_of_a_mass_failure_is_foreseen_with_its_end() -> None:
    guard = dual(3)
    lose(guard, 1, 2, ipv4=False)
    lost_at = guard.now
    guard.wait(WINDOW_S + 1.0)
    found = prediction(guard, 1)
    assert found is not None
    assert (found.action, found.until) == (Action.HOLD, lost_at + LIMIT_S)
    assert found.why == "2 of 3 targets are broken"


def test_a_family_whose_deadline_is_late_is_foreseen_by_the_moment_of_the_decision() -> None:
    """The freeze limit passes between the deadline and the decision: the decision counts."""
    guard = dual(3, replace(CONFIG, freeze=FreezeConfig(threshold=0.5, limit_s=WINDOW_S + 0.5)))
    lose(guard, 1, 2, ipv4=False)
    guard.now += WINDOW_S + 1.0
    found = prediction(guard, 1)
    guard.tell()
    assert (1, "withdraw_family") in guard.actions()
    assert found is not None
    assert found.action is Action.WITHDRAW_FAMILY


def test_the_last_family_is_not_withdrawn_on_soft_evidence_beyond_the_budget() -> None:
    """IPv6 of every target is gone; that IPv4 is silent everywhere as well is soft evidence."""
    guard = dual(1)
    lose(guard, 1, ipv4=False)
    guard.wait(WINDOW_S + 0.1)
    silence(guard, 1, ipv4=True)
    assert (1, "pardon") in records_during(guard, WINDOW_S + 0.1)
    assert guard.active() == {1}


def test_a_loss_after_a_freeze_is_frozen_anew() -> None:
    guard = dual(2)
    for ipv4 in (True, False):
        lose(guard, 1, 2, ipv4=ipv4)
    guard.wait(WINDOW_S + 0.1)
    give(guard, 1, ipv4=True)
    give(guard, 2, ipv4=True)
    assert guard.states() == {1: "held", 2: "held"}
    guard.wait(LIMIT_S)
    lose(guard, 1, 2, ipv4=True)
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "frozen", 2: "frozen"}


def test_only_the_family_that_is_lost_is_withdrawn_while_soft_evidence_against_the_other_is_ignored() -> None:
    guard = dual(1)
    lose(guard, 1, ipv4=False)
    guard.wait(WINDOW_S + 0.1)
    silence(guard, 1, ipv4=True)
    guard.wait(WINDOW_S + 0.1)
    assert guard.states() == {1: "held"}
    assert steering(guard).ipv4.served == (5001,)
    assert steering(guard).ipv6.served == ()


def silence(guard: Guard, identifier: int, *, ipv4: bool) -> None:
    """A target answers no neighbour solicitation in one family any more."""
    address = ipv4_of(identifier, identifier) if ipv4 else ipv6_of(identifier, identifier)
    number = identifier + (10 if ipv4 else 20)
    if number in guard.engine.view.links:
        for _ in range(2):
            guard.neighbor(address, NeighborState.FAILED, link=number)


COUNT = 4
_STEPS = st.tuples(
    st.sampled_from(["lose", "lose both", "give", "silence", "unlist", "list", "drain", "wait"]),
    st.integers(1, COUNT),
    st.booleans(),
    st.sampled_from([0.3, 1.0, 4.0, 30.0]),
)


def play(guard: Guard, steps: list[tuple[str, int, bool, float]]) -> None:
    """Let targets lose and get families, fall silent, leave the list, come back, and drain."""
    wanted, draining = set(range(1, COUNT + 1)), set[int]()
    for what, identifier, ipv4, seconds in steps:
        match what:
            case "lose":
                lose(guard, identifier, ipv4=ipv4)
            case "lose both":
                lose(guard, identifier, ipv4=True)
                lose(guard, identifier, ipv4=False)
            case "give":
                give(guard, identifier, ipv4=ipv4)
            case "silence":
                silence(guard, identifier, ipv4=True)
                silence(guard, identifier, ipv4=False)
            case "unlist" | "list" | "drain":
                (wanted.discard if what == "unlist" else wanted.add)(identifier)
                draining = draining | {identifier} if what == "drain" else draining - {identifier}
                guard.source(listed(*sorted(wanted), draining=tuple(draining)))
            case "wait":
                guard.wait(seconds)


def first_decisions(guard: Guard, seconds: float) -> dict[TargetKey, Decision]:
    found: dict[TargetKey, Decision] = {}
    for effect in guard.wait(seconds):
        if isinstance(effect, fx.Record):
            found.setdefault(effect.decision.target, effect.decision)
    return found


@examples(200)
@given(st.lists(_STEPS, max_size=12))
def test_the_first_decision_on_every_target_is_the_one_that_was_predicted(
    steps: list[tuple[str, int, bool, float]],
) -> None:
    guard = dual(COUNT)
    play(guard, steps)
    found = guard.engine.predictions(guard.now)
    frozen = {target.key for target in guard.engine.targets() if target.state is TargetState.FROZEN}
    done = first_decisions(guard, 10 * LIMIT_S)
    for key, what in found.items():
        if what.at is None:
            continue
        assert key in done, f"{key}: predicted {what}, and nothing was decided"
        assert done[key].action is what.action, f"{key}: predicted {what}, and it became {done[key]}"
        # The end of a mass failure may free a frozen target before its limit.
        in_time = done[key].at <= what.at if key in frozen else done[key].at == pytest.approx(what.at)
        assert in_time, f"{key}: predicted {what}, and it became {done[key]}"
    for key, decision in done.items():
        assert key in found, f"{key}: nothing was predicted, and it became {decision}"
        what = found[key]
        if what.at is None:
            # A family that waits for the end of a mass failure, or a deadline that is dropped when it passes.
            waits = what.until is not None and decision.action is Action.WITHDRAW_FAMILY
            assert waits or decision.action is Action.REVISE, f"{key}: predicted {what}, and it became {decision}"
            assert not waits or decision.at <= (what.until or math.inf) + WINDOW_S + 0.1
