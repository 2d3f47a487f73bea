"""Keys of the live view: what they do to scroll position, filter and help."""

from dataclasses import replace
from functools import reduce

import pytest

from lbguard.cli.top_browse import Browse, complete, keys_of, matching, pressed
from lbguard.core.model import Action, ManualAction, Override, TargetState
from lbguard.core.status import Prediction
from tests.unit.examples import path, target

TOTAL, PAGE = 30, 10
UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END = "\x1b[A", "\x1b[B", "\x1b[5~", "\x1b[6~", "\x1b[H", "\x1b[F"


def after(keys: str, *, total: int = TOTAL, start: Browse | None = None) -> Browse:
    return reduce(lambda state, key: pressed(state, key, total=total, page=PAGE), keys_of(keys), start or Browse())


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        (DOWN, 1),
        ("jjk", 1),
        (DOWN + DOWN + UP, 1),
        ("\x1bOB\x1bOB\x1bOA", 1),
        (UP, 0),
        (PAGE_DOWN, 10),
        (" b", 0),
        (PAGE_DOWN * 5, 20),
        (PAGE_DOWN * 5 + UP, 19),
        (PAGE_DOWN * 2 + PAGE_UP, 10),
        (END, 20),
        ("G" + HOME, 0),
        ("\x1b[4~\x1b[1~", 0),
        ("\x1b[99~x", 0),
    ],
)
def test_scrolling_stays_within_the_targets(keys: str, first: int) -> None:
    assert after(keys) == Browse(first=first)


def test_every_target_is_reached() -> None:
    state, seen = Browse(), set()
    for key in keys_of(DOWN * TOTAL):
        seen |= set(range(state.first, state.first + PAGE))
        state = pressed(state, key, total=TOTAL, page=PAGE)
    assert seen == set(range(TOTAL))


def test_targets_that_left_do_not_swallow_keys() -> None:
    assert after(UP, total=12, start=Browse(first=20)).first == 1
    assert after(DOWN, total=3, start=Browse(first=20)).first == 0


def test_the_filter_is_typed_erased_kept_and_cleared() -> None:
    assert after("/held q?") == Browse(words="held q?", typing=True)
    assert after("/held\x7f\x08") == Browse(words="he", typing=True)
    assert after("/held\r") == Browse(words="held")
    assert after("/held\rG", total=TOTAL) == Browse(words="held", first=20)
    assert after("/held\x1b") == Browse()
    assert after("/held\r\x1b") == Browse()
    assert after("G/a") == Browse(words="a", typing=True), "another filter begins at its first target"
    assert after("/" + UP + "\x00\x07a") == Browse(words="a", typing=True)
    assert len(after("/" + 500 * "a").words) <= 60


def test_help_and_leaving() -> None:
    assert after("?") == Browse(help=True)
    assert after("?x") == Browse()
    assert after("jj??").first == 2
    assert after("q").left
    assert after("?q").left
    assert not after("/q").left


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("ab", "ab", ""),
        ("a\x1b", "a", "\x1b"),
        ("\x1b[5", "", "\x1b[5"),
        ("\x1b[5~\x1bO", "\x1b[5~", "\x1bO"),
        ("\x1b[1;5Aq", "\x1b[1;5Aq", ""),
        ("\x1b\x1b[", "\x1b", "\x1b["),
    ],
)
def test_the_start_of_a_sequence_waits_for_its_rest(text: str, whole: str, rest: str) -> None:
    assert complete(text) == (whole, rest)


def test_keys_of_a_chunk() -> None:
    assert keys_of("a\x1b[6~\x1b") == ["a", "\x1b[6~", "escape"]
    assert keys_of("") == []


def test_the_filter_finds_names_states_causes_next_steps_and_paths() -> None:
    held = target(
        7,
        TargetState.HELD,
        cause="no_link",
        deadline=130.0,
        paths=(path("172.16.1.77", "no_link", "nsm7"), path("fd00:1::77", "ok", "nsm8")),
        prediction=Prediction(action=Action.WITHDRAW, at=130.0),
    )
    targets = [target(1), held]
    for words in ("held", "HELD", "no_link", "nsm8 fd00", "172.16.1.77", "stream-a/7", "withdrawn", "ld  sm7"):
        assert matching(targets, words) == [held], words
    assert matching(targets, "") == [held, targets[0]], "the worst state first"
    assert matching(targets, "held active") == []


def test_the_filter_finds_what_an_operator_ordered() -> None:
    given = Override(action=ManualAction.DRAIN, since=90.0, until=200.0, who="anna", reason="rack 7")
    drained = replace(target(2), override=given)
    for words in ("by hand", "anna", "rack 7", "drain hand"):
        assert matching([target(1), drained], words) == [drained], words
