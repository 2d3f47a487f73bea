"""The state table as `Lifecycle` carries it out: deadlines, records, counts. One case per cell, outcomes by hand."""

from dataclasses import dataclass

import pytest

from lbguard.core.addr import Ip
from lbguard.core.config import DampingConfig, EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.fsm import Input
from lbguard.core.lifecycle import Lifecycle
from lbguard.core.model import (
    Action,
    Condition,
    Evidence,
    ManualAction,
    Override,
    StreamSpec,
    TargetSpec,
    TargetState,
)
from lbguard.core.state import Stream, Target
from tests.unit.core.test_fsm import CELLS

NOW = 50.0
WINDOW = 3.0
LIMIT = 60.0
HELD_BY_HAND = 500.0
CONFIG = EngineConfig(
    grace=GraceConfig(window_s=WINDOW, max_s=30.0, by_cause_s={Condition.NEIGHBOR_FAILED: 7.0}),
    freeze=FreezeConfig(limit_s=LIMIT),
    damping=DampingConfig(half_life_s=1e9, step_s=2.0, max_s=30.0),
)
ADDRESS: Ip = b"\x0a\x00\x00\x01"


@dataclass
class Case:
    life: Lifecycle
    stream: Stream
    target: Target

    @property
    def deadline(self) -> float | None:
        return self.life.deadlines.get(self.target.key)


def evidence(target: Target) -> tuple[Evidence, ...]:
    return (Evidence(ip=ADDRESS, condition=Condition.NO_LINK),)


def in_state(state: str, cause: Condition = Condition.NO_LINK) -> Case:
    """A target brought into a state the way it gets there. It broke at 40, its window ended at 43."""
    life = Lifecycle(CONFIG, evidence)
    stream = Stream(StreamSpec(name="s"))
    target = stream.add(TargetSpec(identifier=1, ips=(ADDRESS,)), 10.0)
    case = Case(life, stream, target)
    if state != "pending":
        life.apply(stream, target, Input.PATH_OK, 20.0)
    if state in ("held", "frozen", "withdrawn"):
        life.apply(stream, target, Input.PATH_BROKEN, 40.0, cause)
    if state == "frozen":
        life.deadlines.pop_due(43.0)
        life.apply(stream, target, Input.DEADLINE_MASS, 43.0, cause)
    if state == "withdrawn":
        life.deadlines.pop_due(43.0)
        life.apply(stream, target, Input.DEADLINE, 43.0, cause)
    if state == "draining":
        life.drain(stream, target, 40.0)
    assert target.state.value == state
    life.take_records()
    life.moved.clear()
    return case


# What stands as the deadline afterwards, by (state, input). Not named: none.
DEADLINES: dict[tuple[str, str], float] = {
    ("active", "path_broken"): NOW + WINDOW,
    ("held", "path_partial"): 43.0,
    ("held", "path_broken"): 40.0 + 7.0,  # another cause has another window, counted from the loss
    ("held", "deadline_mass"): NOW + LIMIT,
    ("held", "drain"): 43.0,
    ("held", "resume"): 43.0,
    ("frozen", "drain"): 43.0 + LIMIT,
    ("frozen", "resume"): 43.0 + LIMIT,
    ("draining", "path_broken"): NOW + WINDOW,
    ("held", "deadline_kept"): NOW + HELD_BY_HAND,
    ("frozen", "deadline_kept"): NOW + HELD_BY_HAND,
    ("frozen", "path_broken"): 43.0 + LIMIT,
    ("frozen", "deadline_mass"): 43.0 + LIMIT,
}
# The first recovery after a withdrawal never waits: WAIT is followed by READMIT at once.
AT_ONCE = {("withdrawn", "path_ok"): ("active", "readmit")}
TOLD_LATER = {("held", "path_partial")}
"""A running deadline is dropped, and that is told, when it comes."""
SILENT = {
    "stay",  # nothing happened
    "relapse",  # nothing was waiting
}


@pytest.mark.parametrize("lost_to", [Condition.NO_LINK, Condition.VERDICT_DOWN])
@pytest.mark.parametrize(("state", "what", "follows", "action"), CELLS)
def test_cell(state: str, what: str, follows: str, action: str, lost_to: Condition) -> None:
    case = in_state(state, lost_to)
    key = case.target.key
    cause = Condition.NEIGHBOR_FAILED if state == "held" and what == "path_broken" else lost_to
    if what.startswith("deadline"):
        case.life.deadlines.pop_due(NOW + 1000)
    if what == "deadline_kept":
        case.target.override = Override(action=ManualAction.HOLD, since=NOW, until=NOW + HELD_BY_HAND)
    case.life.apply(case.stream, case.target, Input(what), NOW, Condition.OK if what == "path_ok" else cause)

    follows, action = AT_ONCE.get((state, what), (follows, action))
    gone = follows == "gone"
    assert (key.identifier in case.stream.targets) is not gone
    assert +case.stream.counts == ({} if gone else {TargetState(follows): 1})
    assert case.deadline == DEADLINES.get((state, what))

    decisions = [record.decision for record in case.life.take_records()]
    if action in SILENT or (state, what) in TOLD_LATER:
        assert decisions == []
    else:
        [decision] = decisions
        assert (decision.target, decision.action, decision.at) == (key, Action(action), NOW)
        assert decision.state_from is TargetState(state)
        assert decision.state_to is (None if gone else TargetState(follows))
        assert decision.deadline == case.deadline
        assert decision.evidence == evidence(case.target)
    soft = lost_to is Condition.VERDICT_DOWN
    by_hand = action == "take_out"
    assert case.stream.soft_withdrawn == (soft and follows == "withdrawn" and not by_hand)
    pardoned = NOW + LIMIT if action == "pardon" else None
    assert case.life.pardons.get(key) == pardoned
    changed = gone or follows != state or action == "withdraw_family"
    assert list(case.life.moved) == (["s"] if changed else [])


def test_a_removed_target_that_waited_out_its_damping_leaves_no_trace() -> None:
    case = in_state("withdrawn")
    case.target.penalty.value = 3.0
    case.life.apply(case.stream, case.target, Input.PATH_OK, NOW)
    assert case.target.waiting
    assert case.deadline == pytest.approx(NOW + 4.0)
    case.life.take_records()

    case.life.apply(case.stream, case.target, Input.REMOVED, NOW + 1)

    assert +case.stream.counts == {}
    assert case.stream.targets == {}
    assert case.deadline is None
    assert [r.decision.action for r in case.life.take_records()] == [Action.FORGET]


def test_a_recovery_names_how_long_the_loss_lasted_and_what_it_began_with() -> None:
    case = in_state("held")
    case.life.apply(case.stream, case.target, Input.PATH_BROKEN, 41.0, Condition.ROUTE_MISSING)
    case.life.take_records()
    case.life.apply(case.stream, case.target, Input.PATH_OK, 42.5)
    [record] = case.life.take_records()
    assert (record.decision.cause, record.decision.duration_s) == ("no_link", 2.5)


def test_a_milder_cause_is_progress_and_never_shortens_the_wait() -> None:
    config = EngineConfig(grace=GraceConfig(window_s=3.0, max_s=30.0, by_cause_s={Condition.NO_LINK: 10.0}))
    life, stream = Lifecycle(config, evidence), Stream(StreamSpec(name="s"))
    target = stream.add(TargetSpec(identifier=1, ips=(ADDRESS,)), 0.0)
    life.apply(stream, target, Input.PATH_OK, 0.0)
    life.apply(stream, target, Input.PATH_BROKEN, 1.0, Condition.NO_LINK)
    life.apply(stream, target, Input.PATH_BROKEN, 9.0, Condition.ROUTE_MISSING)
    assert life.deadlines.get(target.key) == 11.0
    assert target.cause is Condition.ROUTE_MISSING


def test_a_worse_cause_counts_with_its_own_window() -> None:
    config = EngineConfig(grace=GraceConfig(window_s=3.0, max_s=30.0, by_cause_s={Condition.NEIGHBOR_FAILED: 10.0}))
    life, stream = Lifecycle(config, evidence), Stream(StreamSpec(name="s"))
    target = stream.add(TargetSpec(identifier=1, ips=(ADDRESS,)), 0.0)
    life.apply(stream, target, Input.PATH_OK, 0.0)
    life.apply(stream, target, Input.PATH_BROKEN, 1.0, Condition.NEIGHBOR_FAILED)
    assert life.deadlines.get(target.key) == 11.0
    life.apply(stream, target, Input.PATH_BROKEN, 2.0, Condition.LINK_DOWN)
    assert life.deadlines.get(target.key) == 4.0
