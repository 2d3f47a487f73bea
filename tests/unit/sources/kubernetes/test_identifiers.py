"""Identifiers that lbguard gives itself: stable, lowest free, resting after a target left."""

from hypothesis import given
from hypothesis import strategies as st

from lbguard.sources.kubernetes.identifiers import IdentifierAllocator

REST_S = 70.0


def test_the_lowest_free_ones_in_the_order_of_the_list() -> None:
    allocator = IdentifierAllocator(range(1, 11))
    assert allocator.assign(["b", "a"], 0.0, REST_S) == {"b": 1, "a": 2}
    assert allocator.assign(["c", "a", "b"], 0.0, REST_S) == {"c": 3, "a": 2, "b": 1}


def test_one_that_was_left_rests() -> None:
    allocator = IdentifierAllocator(range(1, 11))
    allocator.assign(["a", "b"], 0.0, REST_S)
    assert allocator.assign(["b"], 10.0, REST_S) == {"b": 2}
    assert allocator.assign(["b", "c"], 79.0, REST_S) == {"b": 2, "c": 3}
    assert allocator.assign(["b", "c", "d"], 80.0, REST_S) == {"b": 2, "c": 3, "d": 1}


def test_one_that_rests_is_used_when_no_other_is_left_the_longest_rested_first() -> None:
    allocator = IdentifierAllocator(range(1, 4))
    allocator.assign(["a", "b", "c"], 0.0, REST_S)
    allocator.assign(["a", "c"], 1.0, REST_S)
    allocator.assign(["c"], 2.0, REST_S)
    assert allocator.assign(["c", "d"], 3.0, REST_S) == {"c": 3, "d": 2}
    assert allocator.assign(["c", "d", "e"], 3.0, REST_S) == {"c": 3, "d": 2, "e": 1}


def test_a_target_that_returns_has_its_own_again() -> None:
    allocator = IdentifierAllocator(range(1, 11))
    allocator.assign(["a", "b"], 0.0, REST_S)
    allocator.assign(["b"], 1.0, REST_S)
    assert allocator.assign(["new", "a", "b"], 500.0, REST_S) == {"new": 3, "a": 1, "b": 2}


def test_the_surplus_gets_none_and_the_others_keep_theirs() -> None:
    allocator = IdentifierAllocator(range(1, 3))
    allocator.assign(["b", "c"], 0.0, REST_S)
    assert allocator.assign(["a", "b", "c"], 0.0, REST_S) == {"b": 1, "c": 2}


def test_an_earlier_run_goes_on() -> None:
    allocator = IdentifierAllocator(range(1, 5), {"a": 3, "gone": 1, "outside": 9}, {"rests": 2})
    assert allocator.assign(["a", "b"], 0.0, REST_S) == {"a": 3, "b": 4}
    assert allocator.resting == {"gone": 1, "rests": 2}


@given(
    steps=st.lists(
        st.tuples(st.sets(st.sampled_from("abcdefgh")), st.floats(0, 50, allow_nan=False)), min_size=1, max_size=20
    )
)
def test_no_two_targets_share_one_and_none_changes(steps: list[tuple[set[str], float]]) -> None:
    allocator = IdentifierAllocator(range(1, 7))
    before: dict[str, int] = {}
    now = 0.0
    for keys, passed_s in steps:
        now += passed_s
        given_now = allocator.assign(sorted(keys), now, REST_S)
        assert len(set(given_now.values())) == len(given_now) == min(len(keys), 6) or before.keys() & keys
        assert len(given_now) == min(len(keys), 6)
        assert all(given_now[key] == number for key, number in before.items() if key in given_now)
        assert before.keys() & keys <= given_now.keys()
        assert set(allocator.resting.values()).isdisjoint(given_now.values())
        before = given_now
