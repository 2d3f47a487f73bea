import dataclasses
from typing import Any

import pytest

from lbguard.core.addr import parse_prefix
from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.maglev import ImplicitPermutations, TableCalculator, TableKind
from lbguard.distributor.nftables.elements import NO_MARK
from lbguard.distributor.nftables.ruleset import stream_names
from lbguard.distributor.nftables.state import Held, empty_slots, make_plan, needs_renewal

SLOTS = 31
STREAM = StreamSpec(name="stream-a", max_targets=4, identifier_offset=5000)
BOTH = frozenset({1, 2})


def held(**other: Any) -> Held:
    """What the kernel holds of a stream that was attached and never filled."""
    names = stream_names(STREAM.name)
    empty = Held(
        stream=STREAM,
        names=names,
        calculator=TableCalculator(ImplicitPermutations(STREAM.name, SLOTS), TableKind.ANCHORED),
        map_name=names.slots,
        slots=empty_slots(SLOTS),
        active=frozenset(),
        complete=True,
    )
    return dataclasses.replace(empty, **other)


def asked(active: frozenset[int]) -> StreamTable:
    return StreamTable(stream=STREAM, registered=BOTH, active=active)


def test_only_slots_that_differ_are_changed() -> None:
    first = make_plan(held(), asked(BOTH), renew=False)
    assert first.changed == list(range(SLOTS))
    assert set(first.slots) == {5001, 5002}
    assert first.active == {5001, 5002}
    filled = held(slots=first.slots, active=first.active)
    assert make_plan(filled, asked(BOTH), renew=False).changed == []
    without = make_plan(filled, asked(frozenset({2})), renew=False)
    assert without.changed == [slot for slot, mark in enumerate(first.slots) if mark == 5001]
    assert set(without.slots) == {5002}
    result = without.result(0.25)
    assert (result.stream, result.slots_total, result.duration_s) == ("stream-a", SLOTS, 0.25)
    assert result.slots_changed == len(without.changed)


def test_nothing_is_sent_where_nothing_differs() -> None:
    first = make_plan(held(), asked(BOTH), renew=False)
    assert list(first.element_changes())
    filled = held(slots=first.slots, active=first.active)
    assert list(make_plan(filled, asked(BOTH), renew=False).element_changes()) == []


def test_an_unfit_map_is_left_for_the_other_which_is_filled_from_nothing() -> None:
    names = stream_names(STREAM.name)
    full = make_plan(held(), asked(BOTH), renew=False).slots
    for now, then in ((names.slots, names.spare), (names.spare, names.slots)):
        plan = make_plan(held(map_name=now, slots=full, unfit=True), asked(BOTH), renew=True)
        assert plan.map_name == then
        assert set(plan.before) == {NO_MARK}
        assert plan.changed == list(range(SLOTS))
        assert any(then in line for line in plan.declarations())


def test_what_is_complete_is_not_declared_again() -> None:
    assert make_plan(held(), asked(BOTH), renew=True).declarations() == []
    assert make_plan(held(complete=False), asked(BOTH), renew=True).declarations()


@pytest.mark.parametrize(
    ("other", "stream"),
    [
        ({"doubtful": True}, {}),
        ({"unread": True}, {}),
        ({"lost": "rules were changed by someone else"}, {}),
        ({"unfit": True}, {}),
        ({}, {"vips": (parse_prefix("20.0.0.1/32"),)}),
        ({}, {"max_targets": 5}),
    ],
)
def test_when_elements_alone_will_not_do(other: dict[str, Any], stream: dict[str, Any]) -> None:
    assert not needs_renewal(held(), STREAM)
    assert needs_renewal(held(**other), dataclasses.replace(STREAM, **stream))
