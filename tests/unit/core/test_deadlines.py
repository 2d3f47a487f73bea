"""Deadlines against a plain dictionary."""

from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.deadlines import Deadlines

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
