"""Every cell of the state table, written out by hand from the rules and not from the table."""

import pytest

from lbguard.core.fsm import TRANSITIONS, Input
from lbguard.core.model import ADMITTED, Action, TargetState

# state, input, state that follows ("gone": forgotten), action
CELLS = [
    ("pending", "path_ok", "active", "admit"),
    ("pending", "path_partial", "pending", "stay"),
    ("pending", "path_broken", "pending", "stay"),
    ("pending", "deadline", "pending", "stay"),
    ("pending", "deadline_mass", "pending", "stay"),
    ("pending", "deadline_vetoed", "pending", "stay"),
    ("pending", "deadline_family", "pending", "stay"),
    ("pending", "deadline_kept", "pending", "stay"),
    ("pending", "drain", "pending", "stay"),
    ("pending", "resume", "pending", "stay"),
    ("pending", "withdraw", "pending", "stay"),
    ("pending", "removed", "gone", "forget"),
    ("active", "path_ok", "active", "stay"),
    ("active", "path_partial", "held", "hold"),
    ("active", "path_broken", "held", "hold"),
    ("active", "deadline", "active", "stay"),
    ("active", "deadline_mass", "active", "stay"),
    ("active", "deadline_vetoed", "active", "stay"),
    ("active", "deadline_family", "active", "stay"),
    ("active", "deadline_kept", "active", "stay"),
    ("active", "drain", "draining", "drain"),
    ("active", "resume", "active", "stay"),
    ("active", "withdraw", "withdrawn", "take_out"),
    ("active", "removed", "gone", "remove"),
    ("held", "path_ok", "active", "recover"),
    ("held", "path_partial", "held", "revise"),
    ("held", "path_broken", "held", "revise"),
    ("held", "deadline", "withdrawn", "withdraw"),
    ("held", "deadline_mass", "frozen", "freeze"),
    ("held", "deadline_vetoed", "active", "pardon"),
    ("held", "deadline_family", "held", "withdraw_family"),
    ("held", "deadline_kept", "held", "keep"),
    ("held", "drain", "held", "stay"),
    ("held", "resume", "held", "stay"),
    ("held", "withdraw", "withdrawn", "take_out"),
    ("held", "removed", "gone", "remove"),
    ("frozen", "path_ok", "active", "recover"),
    ("frozen", "path_partial", "held", "revise"),
    ("frozen", "path_broken", "frozen", "stay"),
    ("frozen", "deadline", "withdrawn", "withdraw"),
    ("frozen", "deadline_mass", "frozen", "stay"),
    ("frozen", "deadline_vetoed", "active", "pardon"),
    ("frozen", "deadline_family", "frozen", "stay"),
    ("frozen", "deadline_kept", "frozen", "keep"),
    ("frozen", "drain", "frozen", "stay"),
    ("frozen", "resume", "frozen", "stay"),
    ("frozen", "withdraw", "withdrawn", "take_out"),
    ("frozen", "removed", "gone", "remove"),
    ("withdrawn", "path_ok", "withdrawn", "wait"),
    ("withdrawn", "path_partial", "withdrawn", "relapse"),
    ("withdrawn", "path_broken", "withdrawn", "relapse"),
    ("withdrawn", "deadline", "active", "readmit"),
    ("withdrawn", "deadline_mass", "active", "readmit"),
    ("withdrawn", "deadline_vetoed", "active", "readmit"),
    ("withdrawn", "deadline_family", "withdrawn", "stay"),
    ("withdrawn", "deadline_kept", "withdrawn", "stay"),
    ("withdrawn", "drain", "withdrawn", "stay"),
    ("withdrawn", "resume", "withdrawn", "stay"),
    ("withdrawn", "withdraw", "withdrawn", "stay"),
    ("withdrawn", "removed", "gone", "forget"),
    ("draining", "path_ok", "draining", "stay"),
    ("draining", "path_partial", "held", "hold"),
    ("draining", "path_broken", "held", "hold"),
    ("draining", "deadline", "draining", "stay"),
    ("draining", "deadline_mass", "draining", "stay"),
    ("draining", "deadline_vetoed", "draining", "stay"),
    ("draining", "deadline_family", "draining", "stay"),
    ("draining", "deadline_kept", "draining", "stay"),
    ("draining", "drain", "draining", "drain"),
    ("draining", "resume", "active", "resume"),
    ("draining", "withdraw", "withdrawn", "take_out"),
    ("draining", "removed", "gone", "remove"),
]


def test_the_table_has_exactly_these_cells() -> None:
    assert len(CELLS) == 72 == len(TargetState) * len(Input)
    assert {(TargetState(state), Input(what)) for state, what, _, _ in CELLS} == set(TRANSITIONS)


@pytest.mark.parametrize(("state", "what", "follows", "action"), CELLS)
def test_cell(state: str, what: str, follows: str, action: str) -> None:
    transition = TRANSITIONS[TargetState(state), Input(what)]
    assert ("gone" if transition.state is None else transition.state.value) == follows
    assert transition.action is Action(action)


def test_a_broken_path_alone_never_takes_a_target_out() -> None:
    for state in ADMITTED:
        assert TRANSITIONS[state, Input.PATH_BROKEN].state in ADMITTED


def test_one_familys_loss_never_takes_a_target_out_or_freezes_it() -> None:
    for state in ADMITTED:
        assert TRANSITIONS[state, Input.PATH_PARTIAL].state is TargetState.HELD


def test_removal_wins_from_every_state() -> None:
    assert all(TRANSITIONS[state, Input.REMOVED].state is None for state in TargetState)


def test_an_operators_withdrawal_takes_every_target_out_at_once() -> None:
    for state in ADMITTED:
        assert TRANSITIONS[state, Input.WITHDRAW] == (TargetState.WITHDRAWN, Action.TAKE_OUT)


def test_no_deadline_takes_a_target_out_that_an_operator_holds() -> None:
    for state in TargetState:
        assert TRANSITIONS[state, Input.DEADLINE_KEPT].state is state
