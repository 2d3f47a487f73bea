from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from lbguard.core.addr import Ip, Prefix
from lbguard.core.model import StreamSpec, TargetKey, TargetSpec
from lbguard.sources.hold_down import RemovalHoldDown
from lbguard.sources.nsp.compose import Composed, Composer, NspLists
from lbguard.sources.nsp.lists import TargetEntries
from lbguard.sources.skipped import Reason

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


A1 = (ip_address("10.0.0.1").packed,)
A2 = (ip_address("10.0.0.2").packed,)
VIP = Prefix(ip_address("20.0.0.1").packed, 32)

Targets = Mapping[TargetKey, tuple[Ip, ...]]


def key(identifier: int, stream: str = "a") -> TargetKey:
    return TargetKey(stream, identifier)


def compose(composer: Composer, streams: Mapping[str, int], vips: Mapping[Prefix, None], targets: Targets) -> Composed:
    composed = composer.compose(streams, vips, targets)
    assert composed is not None
    return composed


def serving(targets: Targets) -> NspLists:
    """Return lists of a connected registry that told of these targets."""
    lists = NspLists(60.0, 0.5)
    lists.begin_session()
    lists.apply_targets(TargetEntries(served=targets), 0.0)
    return lists


def test_an_entry_that_became_unreadable_leaves_its_target_as_it_was() -> None:
    lists = serving({key(1): A1, key(2): A2})
    lists.apply_targets(TargetEntries(served={key(2): A2}, unreadable_keys=frozenset({key(1)})), 1.0)
    assert lists.targets == {key(1): A1, key(2): A2}
    lists.apply_targets(TargetEntries(served={key(2): A2}, unreadable_ips=frozenset({("a", A1)})), 2.0)
    assert lists.targets == {key(1): A1, key(2): A2}
    lists.apply_targets(TargetEntries(served={key(2): A2}), 3.0)
    assert lists.targets == {key(2): A2}


def test_an_unreadable_entry_makes_no_target_of_its_own() -> None:
    lists = serving({})
    lists.apply_targets(TargetEntries(served={}, unreadable_keys=frozenset({key(1)})), 1.0)
    assert lists.targets == {}


def test_a_target_that_comes_back_under_another_identifier_is_not_kept_twice() -> None:
    lists = serving({key(1): A1, key(2): A2, key(3, "b"): A1})
    lists.begin_session()
    lists.apply_targets(TargetEntries(served={}), 100.0)
    lists.apply_targets(TargetEntries(served={key(9): A1}), 101.0)
    assert lists.targets == {key(9): A1, key(2): A2, key(3, "b"): A1}
    assert lists.waits == 2
    assert lists.settles_at == 160.0


def test_the_list_of_the_core() -> None:
    composed = compose(
        Composer(5000, None, follow=False),
        {"b": 2, "a": 100},
        {VIP: None},
        {key(2): A2, key(1): A1, key(3, "b"): A1, key(1, "gone"): A1},
    )
    assert composed.streams == (
        StreamSpec(name="b", max_targets=2, identifier_offset=5000, vips=(VIP,), shm_name="tshm-b"),
        StreamSpec(
            name="a",
            max_targets=100,
            identifier_offset=5002,
            vips=(VIP,),
            shm_name="tshm-a",
            targets=(TargetSpec(identifier=1, ips=A1), TargetSpec(identifier=2, ips=A2)),
        ),
    )
    assert [entry.reason for entry in composed.skipped] == [Reason.IDENTIFIER_OUT_OF_RANGE]


def test_a_size_that_changes_is_named_and_not_taken() -> None:
    composer = Composer(5000, None, follow=False)
    compose(composer, {"a": 2}, {}, {})
    composed = compose(composer, {"a": 50}, {}, {key(2): A2})
    assert (composed.streams[0].max_targets, len(composed.streams[0].targets)) == (2, 1)
    assert [entry.reason for entry in composed.skipped] == [Reason.SIZE_CHANGED]


def test_marks_in_force_are_taken_at_first_sight_and_followed_only_where_asked() -> None:
    for follow in (False, True):
        seen = {"a": 5000}
        composer = Composer(5000, lambda streams, targets, known, seen=seen: seen, follow=follow)
        first = compose(composer, {"b": 100, "a": 100}, {}, {})
        assert {spec.name: spec.identifier_offset for spec in first.streams} == {"a": 5000, "b": 5100}
        seen["a"] = 7000
        then = compose(composer, {"b": 100, "a": 100}, {}, {})
        offsets = {spec.name: spec.identifier_offset for spec in then.streams}
        assert offsets == {"a": 7000 if follow else 5000, "b": 5100}
        assert then.moved == ({"a"} if follow else frozenset())
        assert [entry.reason for entry in then.skipped] == [Reason.MARKS_CHANGED]


def test_the_list_waits_until_marks_in_force_can_be_read() -> None:
    assert Composer(5000, lambda streams, targets, known: None, follow=False).compose({"a": 1}, {}, {}) is None
