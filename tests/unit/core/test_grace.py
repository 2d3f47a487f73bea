"""Grace windows and flap damping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import parse_prefix
from lbguard.core.config import DampingConfig, GraceConfig
from lbguard.core.grace import Grace, Penalty
from lbguard.core.model import Condition

SUBNET, OTHER = parse_prefix("172.16.0.0/24"), parse_prefix("172.16.1.0/24")


def learned(*heals: float, quantile: float = 0.95, cause: Condition = Condition.NO_LINK) -> Grace:
    grace = Grace(GraceConfig(window_s=3.0, max_s=30.0, adaptive=True, adaptive_quantile=quantile))
    for number, heal in enumerate(heals):
        grace.learn(SUBNET, cause, 100.0 * number, heal)
    return grace


def test_the_window_of_a_cause_is_its_own_or_the_default() -> None:
    grace = Grace(GraceConfig(window_s=3.0, max_s=30.0, by_cause_s={Condition.NEIGHBOR_FAILED: 1.5}))
    assert grace.window_s(Condition.NEIGHBOR_FAILED, SUBNET) == 1.5
    assert grace.window_s(Condition.NO_LINK, SUBNET) == 3.0
    assert grace.deadline(100.0, Condition.NO_LINK, None) == 103.0


def test_no_window_is_longer_than_the_bound() -> None:
    grace = Grace(GraceConfig(window_s=50.0, max_s=30.0, by_cause_s={Condition.NO_LINK: 99.0}))
    assert grace.window_s(Condition.NO_LINK, None) == 30.0
    assert grace.window_s(Condition.LINK_DOWN, None) == 30.0


def test_too_few_heals_teach_nothing() -> None:
    assert learned(9.0, 9.0, 9.0, 9.0).window_s(Condition.NO_LINK, SUBNET) == 3.0


@pytest.mark.parametrize(
    ("quantile", "window"),
    [(0.2, 4.0), (0.5, 6.0), (0.8, 7.0), (0.81, 8.0), (1.0, 8.0)],
)
def test_the_window_is_the_smallest_heal_that_covers_the_quantile(quantile: float, window: float) -> None:
    grace = learned(8.0, 4.0, 6.0, 5.0, 7.0, quantile=quantile)
    assert grace.window_s(Condition.NO_LINK, SUBNET) == window


def test_what_is_learnt_lies_between_the_window_and_the_bound_and_belongs_to_one_subnet() -> None:
    assert learned(*[0.5] * 5).window_s(Condition.NO_LINK, SUBNET) == 3.0
    assert learned(*[500.0] * 5).window_s(Condition.NO_LINK, SUBNET) == 30.0
    assert learned(*[9.0] * 5).window_s(Condition.NO_LINK, OTHER) == 3.0
    assert learned(*[9.0] * 5).window_s(Condition.NO_LINK, None) == 3.0


def test_old_heals_are_forgotten() -> None:
    grace = learned(*[20.0] * 64, *[4.0] * 64)
    assert grace.window_s(Condition.NO_LINK, SUBNET) == 4.0


def test_a_link_with_many_targets_heals_once() -> None:
    grace = learned(*[8.0] * 9)
    for _ in range(100):
        grace.learn(SUBNET, Condition.NO_LINK, 5000.0, 0.5)
    assert grace.window_s(Condition.NO_LINK, SUBNET) == 8.0
    fresh = learned()
    for _ in range(100):
        fresh.learn(SUBNET, Condition.NO_LINK, 5000.2, 12.0)
    assert fresh.window_s(Condition.NO_LINK, SUBNET) == 3.0, "one heal, whatever number of targets tell of it"


def test_a_heal_took_as_long_as_its_slowest_target() -> None:
    grace = learned(*[4.0] * 4)
    for heal in (5.0, 9.0, 6.0):
        grace.learn(SUBNET, Condition.NO_LINK, 5000.0, heal)
    assert grace.window_s(Condition.NO_LINK, SUBNET) == 9.0


def test_each_kind_of_loss_teaches_its_own_window() -> None:
    grace = learned(*[12.0] * 5)
    assert grace.window_s(Condition.LINK_DOWN, SUBNET) == 12.0, "what the kernel says of links is of one kind"
    assert grace.window_s(Condition.NEIGHBOR_FAILED, SUBNET) == 3.0
    assert grace.window_s(Condition.VERDICT_DOWN, SUBNET) == 3.0
    grace = learned(*[12.0] * 5, cause=Condition.VERDICT_DOWN)
    assert grace.window_s(Condition.VERDICT_DOWN, SUBNET) == 12.0
    assert grace.window_s(Condition.NO_LINK, SUBNET) == 3.0


def test_a_window_that_was_set_for_a_cause_is_kept() -> None:
    config = GraceConfig(window_s=3.0, by_cause_s={Condition.VERDICT_DOWN: 1.0}, adaptive=True)
    grace = Grace(config)
    for number in range(5):
        grace.learn(SUBNET, Condition.VERDICT_DOWN, 100.0 * number, 12.0)
    assert grace.window_s(Condition.VERDICT_DOWN, SUBNET) == 1.0


def test_nothing_is_learnt_unless_told_so() -> None:
    grace = Grace(GraceConfig(window_s=3.0, max_s=30.0))
    for number in range(10):
        grace.learn(SUBNET, Condition.NO_LINK, 100.0 * number, 9.0)
    assert grace.window_s(Condition.NO_LINK, SUBNET) == 3.0


def test_the_number_of_subnets_is_bounded() -> None:
    grace = Grace(GraceConfig(adaptive=True))
    for number in range(5000):
        grace.learn(parse_prefix(f"10.{number // 250}.{number % 250}.0/24"), Condition.NO_LINK, 0.0, 1.0)
    assert len(grace._heals) == 4096


CONFIG = DampingConfig(half_life_s=30.0, step_s=2.0, max_s=30.0)


def test_the_first_loss_costs_nothing() -> None:
    penalty = Penalty()
    assert penalty.wait_s(CONFIG, 0.0) == 0.0
    penalty.add_loss(CONFIG, 100.0)
    assert penalty.current(CONFIG, 100.0) == 1.0
    assert penalty.wait_s(CONFIG, 100.0) == 0.0


def test_a_penalty_halves_every_half_life() -> None:
    penalty = Penalty()
    for _ in range(4):
        penalty.add_loss(CONFIG, 100.0)
    assert penalty.current(CONFIG, 100.0) == 4.0
    assert penalty.wait_s(CONFIG, 100.0) == 6.0
    assert penalty.current(CONFIG, 130.0) == pytest.approx(2.0)
    assert penalty.wait_s(CONFIG, 130.0) == pytest.approx(2.0)
    assert penalty.wait_s(CONFIG, 160.0) == 0.0


def test_losses_add_to_what_is_left() -> None:
    penalty = Penalty()
    penalty.add_loss(CONFIG, 0.0)
    penalty.add_loss(CONFIG, 30.0)
    assert penalty.current(CONFIG, 30.0) == pytest.approx(1.5)
    assert penalty.wait_s(CONFIG, 30.0) == pytest.approx(1.0)


@given(st.lists(st.floats(0.0, 1000.0), max_size=200), st.floats(0.0, 1000.0))
def test_no_wait_is_negative_or_longer_than_the_cap(gaps: list[float], after: float) -> None:
    penalty, now = Penalty(), 0.0
    for gap in gaps:
        now += gap
        penalty.add_loss(CONFIG, now)
    assert 0.0 <= penalty.wait_s(CONFIG, now + after) <= 30.0
