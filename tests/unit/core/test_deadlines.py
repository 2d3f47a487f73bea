"""Deadlines against a plain dictionary, and retries."""

from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.deadlines import Deadlines, Retries

keys = st.sampled_from("abcdef")
moments = st.integers(0, 20).map(float)
steps = st.one_of(
    st.tuples(st.just("set"), keys, moments),
    st.tuples(st.just("cancel"), keys, st.just(0.0)),
    st.tuples(st.just("pop"), st.just(""), moments),
)


@given(st.lists(steps, max_size=200))
def test_equals_a_dictionary_that_is_scanned(sequence: list[tuple[str, str, float]]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    model: dict[str, float] = {}
    for what, key, at in sequence:
        if what == "set":
            deadlines.set(key, at)
            model[key] = at
        elif what == "cancel":
            deadlines.cancel(key)
            model.pop(key, None)
        else:
            due = deadlines.pop_due(at)
            assert set(due) == {k for k, moment in model.items() if moment <= at}
            assert [model[k] for k in due] == sorted(model[k] for k in due), "earliest first"
            model = {k: moment for k, moment in model.items() if moment > at}
        assert len(deadlines) == len(model)
        assert deadlines.next() == min(model.values(), default=None)
        assert {k: deadlines.get(k) for k in "abcdef"} == {k: model.get(k) for k in "abcdef"}


def test_equal_moments_come_in_the_order_in_which_they_were_set() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key in "cab":
        deadlines.set(key, 1.0)
    assert deadlines.pop_due(1.0) == ["c", "a", "b"]


def test_setting_one_key_again_and_again_keeps_the_heap_small() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for number in range(10_000):
        deadlines.set("a", float(number))
    assert len(deadlines._heap) < 100
    assert deadlines.next() == 9999.0


def test_a_shift_moves_every_moment_and_keeps_the_order() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, at in (("c", 3.0), ("a", 1.0), ("b", 1.0), ("gone", 0.5)):
        deadlines.set(key, at)
    deadlines.set("c", 2.0)
    deadlines.cancel("gone")
    deadlines.shift(10.0)
    assert deadlines.next() == 11.0
    assert deadlines.pop_due(10.9) == []
    assert deadlines.pop_due(12.0) == ["a", "b", "c"]


def test_the_delay_doubles_with_each_failure_in_a_row_up_to_the_bound() -> None:
    retries: Retries[str] = Retries(0.1, 1.0)
    delays = []
    for _ in range(6):
        retries.failed("a", 10.0)
        at = retries.next()
        assert at is not None
        delays.append(round(at - 10.0, 6))
        assert retries.waiting("a")
        assert retries.pop_due(at) == ["a"]
        assert not retries.waiting("a")
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_success_starts_over_and_cancels_what_is_planned() -> None:
    retries: Retries[str] = Retries(0.1, 1.0)
    retries.failed("a", 0.0)
    retries.failed("a", 0.0)
    retries.succeeded("a")
    assert retries.next() is None
    retries.failed("a", 5.0)
    assert retries.next() == 5.1


def test_keys_do_not_share_their_failures() -> None:
    retries: Retries[str] = Retries(0.1, 1.0)
    retries.failed("a", 0.0)
    retries.failed("a", 0.0)
    retries.failed("b", 0.0)
    assert retries.pop_due(0.1) == ["b"]
    assert retries.pop_due(0.19) == []
    assert retries.pop_due(0.2) == ["a"]


def test_failing_for_ever_overflows_nothing() -> None:
    retries: Retries[str] = Retries(0.1, 5.0)
    for _ in range(5000):
        retries.failed("a", 0.0)
    assert retries.next() == 5.0
