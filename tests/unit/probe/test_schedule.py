import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.probe.schedule import Wheel, next_start, ping_offset_s, spread_starts, tick_s


def test_pings_are_spread_over_the_round_and_never_meet() -> None:
    first = [ping_offset_s(number, 0.5, 0.0) for number in range(4)]
    last = [ping_offset_s(number, 0.5, 0.999) for number in range(4)]
    assert first == [0.0, 0.5, 1.0, 1.5]
    assert all(early < late < early + 0.05 for early, late in zip(first, last, strict=True))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (11.0, 12.0),
        (12.0, 12.0),
        (12.02, 12.0),  # judged a tick late: still in step, not one round later
        (17.9, 18.0),  # long without CPU: what is past is skipped, the phase is kept
        (30.1, 30.0),
    ],
)
def test_rounds_keep_their_phase(now: float, expected: float) -> None:
    assert next_start(10.0, 2.0, now) == expected


def test_connections_that_come_together_start_evenly() -> None:
    assert list(spread_starts(4, 2.0, 100.0)) == [100.0, 100.5, 101.0, 101.5]
    assert list(spread_starts(0, 2.0, 100.0)) == []


def test_ticks_have_bounds() -> None:
    assert tick_s(0.0125) == 0.001
    assert tick_s(0.1) == pytest.approx(0.005)
    assert tick_s(10.0) == 0.01


def test_a_wheel_gives_back_what_is_due_in_order() -> None:
    wheel: Wheel[str] = Wheel(0.5)
    assert wheel.next() is None
    for at, item in ((3.0, "c"), (1.1, "a"), (1.4, "b"), (9.0, "d")):
        wheel.add(at, item)
    assert wheel.next() == 1.5
    assert wheel.pop_due(1.4) == []
    assert wheel.pop_due(3.0) == [(1.5, ["a", "b"]), (3.0, ["c"])]
    assert wheel.next() == 9.0


@given(st.lists(st.floats(0, 1000), max_size=50), st.lists(st.floats(0, 1001), max_size=20))
def test_nothing_is_early_nothing_is_lost(moments: list[float], looks: list[float]) -> None:
    wheel: Wheel[float] = Wheel(0.01)
    for at in moments:
        wheel.add(at, at)
    seen: list[float] = []
    for now in [*sorted(looks), 1002.0]:
        for planned, items in wheel.pop_due(now):
            assert planned <= now
            assert all(planned - 0.01001 <= item <= planned + 1e-9 for item in items)
            seen += items
    assert sorted(seen) == sorted(moments)
