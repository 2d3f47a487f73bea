import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.config import DampingConfig
from lbguard.core.damping import Penalty

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
