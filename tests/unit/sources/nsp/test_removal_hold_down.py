import pytest

from lbguard.sources.nsp.removal_hold_down import RemovalHoldDown

SETTLE_S = 60.0


def known(*keys: str, share: float = 0.5) -> RemovalHoldDown[str, int]:
    """Return a list that is connected and knows these."""
    settling: RemovalHoldDown[str, int] = RemovalHoldDown(SETTLE_S, share)
    settling.begin_session()
    settling.apply(dict.fromkeys(keys, 1), 0.0)
    return settling


def test_while_connected_every_list_is_believed_at_once() -> None:
    settling = known("a", "b", "c")
    settling.apply({"a": 1}, 1.0)
    assert settling.believed == {"a": 1}
    settling.apply({}, 2.0)
    assert (settling.believed, settling.waits, settling.settles_at) == ({}, 0, None)


def test_an_empty_list_after_a_loss_is_not_believed_until_it_has_settled() -> None:
    settling = known("a", "b")
    settling.begin_session()
    settling.apply({}, 100.0)
    assert (settling.believed, settling.waits, settling.settles_at) == ({"a": 1, "b": 1}, 2, 160.0)
    settling.expire(159.9)
    assert settling.believed == {"a": 1, "b": 1}
    settling.expire(160.0)
    assert (settling.believed, settling.waits, settling.settles_at) == ({}, 0, None)


def test_a_registry_that_fills_again_may_take_away_only_once_it_is_full() -> None:
    settling = known("a", "b", "c")
    settling.begin_session()
    settling.apply({}, 100.0)
    settling.apply({"a": 1}, 101.0)
    settling.apply({"a": 1, "b": 2}, 102.0)
    assert (settling.believed, settling.waits) == ({"a": 1, "b": 2, "c": 1}, 1)
    settling.apply({"a": 1, "b": 2, "c": 1, "d": 1}, 103.0)
    assert settling.settles_at is None
    settling.apply({"d": 1}, 104.0)
    assert settling.believed == {"d": 1}


def test_what_never_came_back_goes_when_the_settle_time_ends() -> None:
    settling = known("a", "b", "c")
    settling.begin_session()
    settling.apply({"a": 1}, 100.0)
    settling.apply({"a": 1, "b": 1}, 130.0)
    settling.expire(160.0)
    assert settling.believed == {"a": 1, "b": 1}


def test_whoever_was_stopped_when_the_settle_time_ended_reads_on_first() -> None:
    settling = known("a", "b", "c")
    settling.begin_session()
    settling.apply({}, 100.0)
    settling.expire(200.0)
    assert settling.believed == {"a": 1, "b": 1, "c": 1}
    assert settling.settles_at == 201.0
    # Two lists waited to be read.
    settling.apply({"a": 1}, 200.0)
    settling.apply({"a": 1, "b": 1}, 200.0)
    assert settling.believed == {"a": 1, "b": 1, "c": 1}
    settling.expire(201.0)
    assert settling.believed == {"a": 1, "b": 1}


@pytest.mark.parametrize(("left", "believed_at_once"), [("abcd", True), ("abc", True), ("ab", True), ("a", False)])
def test_a_list_that_lacks_few_after_a_loss_is_believed(left: str, believed_at_once: bool) -> None:
    settling = known("a", "b", "c", "d")
    settling.begin_session()
    settling.apply(dict.fromkeys(left, 1), 100.0)
    assert (settling.believed == dict.fromkeys(left, 1)) is believed_at_once


def test_changes_and_additions_pass_while_removals_wait() -> None:
    settling = known("a", "b", "c")
    settling.begin_session()
    settling.apply({"a": 7, "z": 1}, 100.0)
    assert settling.believed == {"a": 7, "z": 1, "b": 1, "c": 1}


def test_another_loss_begins_the_settle_time_again() -> None:
    settling = known("a", "b")
    settling.begin_session()
    settling.apply({}, 100.0)
    settling.begin_session()
    settling.expire(150.0)
    settling.apply({}, 155.0)
    assert (settling.believed, settling.settles_at) == ({"a": 1, "b": 1}, 215.0)


def test_one_removal_may_be_let_through() -> None:
    settling = known("a", "b")
    settling.begin_session()
    settling.apply({}, 100.0)
    settling.drop("a")
    assert settling.believed == {"b": 1}


def test_what_is_told_is_never_dropped() -> None:
    settling = known("a")
    settling.drop("a")
    assert settling.believed == {"a": 1}


def test_at_the_start_an_empty_list_waits_only_where_that_is_asked_for() -> None:
    settling: RemovalHoldDown[str, int] = RemovalHoldDown(SETTLE_S, 0.5, doubt_empty_start=True)
    settling.apply({}, 0.0)
    settling.apply({}, 1.0)
    assert (settling.believed, settling.settles_at) == (None, 60.0)
    settling.expire(60.0)
    assert settling.believed == {}
    settling = RemovalHoldDown(SETTLE_S, 0.5, doubt_empty_start=True)
    settling.apply({}, 0.0)
    settling.apply({"a": 1}, 1.0)
    assert (settling.believed, settling.settles_at) == ({"a": 1}, None)
