import math
import random
from statistics import NormalDist

import pytest

from lbguard.core.model import VerdictState
from lbguard.probe.failure_detector import (
    Detector,
    DetectorSettings,
    FamilyRound,
    PhiDetector,
    RoundsDetector,
    deviations_of,
    late_limit_s,
    make_judge,
    outcome,
)

UP, DEGRADED, DOWN = VerdictState.UP, VerdictState.DEGRADED, VerdictState.DOWN


def v4(silent: int, *, pairs: int = 1, counts: bool = True) -> FamilyRound:
    return FamilyRound(True, pairs, silent, counts)


def v6(silent: int, *, pairs: int = 1, counts: bool = True) -> FamilyRound:
    return FamilyRound(False, pairs, silent, counts)


def judged(judge: RoundsDetector, text: str) -> list[VerdictState | None]:
    """FailureDetector rounds of one family: `g` good, `b` bad, `?` silent but untested."""
    return [judge.judge([v4(int(c != "g"), counts=c != "?")], 0.0) for c in text]


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ("g", [UP]),
        ("b", [None]),  # nothing is known after one bad round
        ("bb", [None, DOWN]),
        ("gb", [UP, UP]),
        ("gbb", [UP, UP, DOWN]),
        ("gbgb", [UP, UP, UP, DOWN]),  # 2 of 3, not 2 in a row
        ("gbggb", [UP, UP, UP, UP, UP]),
        ("gbbg", [UP, UP, DOWN, UP]),
        ("gbbgb", [UP, UP, DOWN, UP, UP]),  # what led to DOWN is forgotten when it is over
        ("gb?b", [UP, UP, None, DOWN]),  # an untested round neither helps nor harms
        ("g????", [UP, None, None, None, None]),
    ],
)
def test_two_of_three_rounds(rounds: str, expected: list[VerdictState | None]) -> None:
    assert judged(RoundsDetector(DetectorSettings(), [True]), rounds) == expected


def test_several_good_rounds_can_be_asked_for() -> None:
    judge = RoundsDetector(DetectorSettings(up_rounds=2), [True])
    assert judged(judge, "ggbbgbgg") == [None, UP, UP, DOWN, DOWN, DOWN, DOWN, UP]


def test_one_deaf_family_degrades_and_never_more() -> None:
    judge = RoundsDetector(DetectorSettings(), [True, False])
    states = [judge.judge([v4(0), v6(1)], 0.0) for _ in range(50)]
    assert states == [UP] + [DEGRADED] * 49
    assert judge.judge([v4(0), v6(0)], 0.0) is UP


def test_down_when_every_family_is() -> None:
    judge = RoundsDetector(DetectorSettings(), [True, False])
    assert judge.judge([v4(0), v6(0)], 0.0) is UP
    assert [judge.judge([v4(1), v6(1)], 0.0) for _ in range(2)] == [UP, DOWN]
    assert judge.judge([v4(1), v6(0)], 0.0) is DEGRADED


def test_a_silent_pair_among_answering_ones_degrades() -> None:
    judge = RoundsDetector(DetectorSettings(), [True])
    assert [judge.judge([v4(1, pairs=2)], 0.0) for _ in range(3)] == [UP, DEGRADED, DEGRADED]


def test_an_untested_round_still_shows_who_answered() -> None:
    judge = RoundsDetector(DetectorSettings(), [True, False])
    for _ in range(2):
        judge.judge([v4(1), v6(1)], 0.0)
    assert judge.judge([v4(0, counts=False), v6(1, counts=False)], 0.0) is DEGRADED


@pytest.mark.parametrize(
    ("rounds", "word"),
    [
        ([v4(0), v6(0)], "good"),
        ([v4(0), v6(1)], "partial"),
        ([v4(1, pairs=2)], "partial"),
        ([v4(1), v6(1)], "bad"),
        ([v4(1, counts=False)], "untested"),
    ],
)
def test_a_round_in_a_word(rounds: list[FamilyRound], word: str) -> None:
    assert outcome(rounds) == word


@pytest.mark.parametrize("phi", [1.0, 3.0, 8.0])
def test_phi_is_minus_log10_of_the_tail(phi: float) -> None:
    tail = 1 - NormalDist().cdf(deviations_of(phi))
    assert -math.log10(tail) == pytest.approx(phi, rel=1e-6)


def test_phi_of_tails_too_small_for_a_float() -> None:
    assert deviations_of(99.0) < deviations_of(100.0) < 40
    assert deviations_of(100.0) == pytest.approx(21.27, abs=0.02)  # tables of the normal distribution


def phi_judge(
    spacing_s: float, jitter_s: float, *, replies: int = 100, pause_s: float = 0.0
) -> tuple[PhiDetector, float]:
    judge = PhiDetector(DetectorSettings(detector=Detector.PHI, phi_pause_s=pause_s), [True], 0.0)
    chance = random.Random(3)
    at = 0.0
    for _ in range(replies):
        at += spacing_s + chance.uniform(-jitter_s, jitter_s)
        judge.replied(0, at)
    return judge, at


def test_phi_waits_longer_where_replies_are_irregular() -> None:
    steady, steady_last = phi_judge(0.5, 0.01)
    shaky, shaky_last = phi_judge(0.5, 0.3)
    assert steady.down_at() - steady_last < shaky.down_at() - shaky_last
    assert 0.5 < steady.down_at() - steady_last < 1.0


def test_phi_judges_the_moment() -> None:
    judge, last = phi_judge(0.5, 0.05)
    assert judge.judge((), last + 0.5) is UP
    assert judge.judge((), judge.down_at() - 0.001) is UP
    assert judge.judge((), judge.down_at() + 0.001) is DOWN
    judge.replied(0, last + 5)
    assert judge.judge((), last + 5.1) is UP


def test_phi_adds_the_pause() -> None:
    without, _ = phi_judge(0.5, 0.05)
    with_pause, _ = phi_judge(0.5, 0.05, pause_s=1.0)
    assert with_pause.down_at() - without.down_at() == pytest.approx(1.0)


def test_phi_forgives_the_time_in_which_the_monitor_was_late() -> None:
    judge, last = phi_judge(0.5, 0.05)
    judge.excuse(last + 60)
    assert judge.judge((), last + 60.1) is UP
    assert judge.judge((), last + 70) is DOWN


def test_phi_learns_nothing_from_a_gap_of_its_own_making() -> None:
    judge, last = phi_judge(0.5, 0.05)
    patience_s = judge.down_at() - last
    for _ in range(200):
        last += 3.0
        judge.excuse(last)
        judge.replied(0, last + 0.001)
    assert judge.down_at() - (last + 0.001) == pytest.approx(patience_s)


def test_phi_says_nothing_before_the_first_reply_and_down_if_there_is_never_one() -> None:
    judge = PhiDetector(DetectorSettings(detector=Detector.PHI), [True, False], 100.0)
    assert judge.judge((), 100.2) is None
    assert judge.judge((), 120.0) is DOWN


def test_phi_degrades_for_one_deaf_family() -> None:
    judge = PhiDetector(DetectorSettings(detector=Detector.PHI), [True, False], 0.0)
    for number in range(1, 40):
        judge.replied(0, number * 0.5)
    assert judge.judge((), 20.0) is DEGRADED


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout_s": 3.0},
        {"timeout_s": 0.0},
        {"interval_s": 0.0},
        {"pings": 0},
        {"down_rounds": 4},
        {"down_rounds": 0},
        {"up_rounds": 0},
        {"phi_threshold": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        DetectorSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "lease_s"),
    [
        (DetectorSettings(), 8.0),
        (DetectorSettings(timeout_s=1.0), 7.0),
        (DetectorSettings(interval_s=0.05), 1.0),
        (DetectorSettings(interval_s=200.0), 300.0),
        (DetectorSettings(lease_s=4.0), 4.0),
    ],
)
def test_leases(settings: DetectorSettings, lease_s: float) -> None:
    assert settings.lease == lease_s


def test_rounds_in_doubt_are_shorter_but_not_too_short() -> None:
    assert DetectorSettings().doubt_round_s == pytest.approx(0.8)
    assert DetectorSettings(interval_s=0.2).doubt_round_s == pytest.approx(0.1)
    assert DetectorSettings(interval_s=0.05).doubt_round_s == pytest.approx(0.05)


def test_a_ping_is_late_after_half_the_time_to_the_next() -> None:
    assert late_limit_s(0.5) == 0.25
    assert late_limit_s(0.0125) == 0.01


def test_the_judge_asked_for() -> None:
    assert isinstance(make_judge(DetectorSettings(), [True], 0.0), RoundsDetector)
    assert isinstance(make_judge(DetectorSettings(detector=Detector.PHI), [True], 0.0), PhiDetector)
