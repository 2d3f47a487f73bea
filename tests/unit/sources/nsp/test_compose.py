from collections.abc import Mapping
from ipaddress import ip_address

from lbguard.core.addr import Ip, Prefix
from lbguard.core.model import StreamSpec, TargetKey, TargetSpec
from lbguard.sources.nsp.compose import Composed, Composer, NspLists
from lbguard.sources.nsp.lists import Reason, TargetEntries

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
