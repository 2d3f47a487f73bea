"""Elements of the affinity table: what the steering of streams asks for, and how it is written."""

import itertools
import struct

import pytest

from lbguard.affinity import choice, elements, names
from lbguard.affinity.contents import filled_of, owners_of, sets_of
from lbguard.affinity.ruleset import EXCEPTIONAL_SETS
from lbguard.core.model import FamilySteering, StreamSteering
from lbguard.kernel.codec.framing import attributes
from tests.steering import steering


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1023, 1024, 1025, 3000])
def test_healthy_targets_share_all_slots_evenly(count: int) -> None:
    marks = tuple(range(5001, 5001 + count))
    covered: list[int] = []
    shares: dict[int, int] = {}
    for first, end, mark in choice.shares(marks):
        covered += range(first, end)
        shares[mark] = shares.get(mark, 0) + end - first
    assert covered == list(range(choice.CHOICES))
    assert max(shares.values()) - min(shares.values()) <= 1
    assert len(shares) == min(count, choice.CHOICES)


def test_with_no_healthy_target_the_slots_are_empty() -> None:
    assert choice.shares(()) == []
    assert len(elements.renewal("healthy_4_s", [])) == 1


@pytest.mark.parametrize("count", [2, 3, 64, 1500])
def test_the_ring_leads_from_each_healthy_target_over_all_others_back_to_it(count: int) -> None:
    marks = tuple(range(7, 7 + 3 * count, 3))
    ring = dict(choice.ring(marks))
    met, at = [], marks[0]
    for _ in marks:
        at = ring[at]
        met.append(at)
    assert sorted(met) == list(marks)
    assert met[-1] == marks[0]


def test_a_single_target_has_none_after_it() -> None:
    assert list(choice.ring((5,))) == []
    assert list(choice.ring(())) == []


def test_removal_takes_the_map_of_the_chain_along() -> None:
    chain = names.steer_chain("steer_4_healthy", 6)
    *_, last = choice.drop_steer_chain(chain)
    assert last.endswith(names.healthy_map("steer_4_healthy", 6))


def test_the_chain_of_a_stream_has_as_many_rules_as_are_looked_for() -> None:
    rules = [line for line in choice.stream_objects("s") if line.startswith("add rule")]
    assert len(rules) == 2 * choice.STEER_RULES


def test_marks_lead_to_a_choice_only_where_a_target_is_healthy() -> None:
    sets = sets_of([steering("a", (1, 2), avoid=(1,)), steering("b", (3,), served=(3,), healthy=(), learning=False)])
    assert sets["marks"] == sets["served_4"] == sets["served_6"] == {1, 2, 3}
    assert sets["learn"] == {1, 2}
    assert sets["observe"] == set()
    assert sets["avoid_4"] == {1}
    assert sets["steer_4"] == {(1, "steer_4_a"), (2, "steer_4_a")}


def test_each_family_has_sets_of_its_own() -> None:
    four = FamilySteering(healthy=(2, 3), avoid=(1,), served=(2, 3))
    six = FamilySteering(healthy=(1, 2), avoid=(3,), served=(1, 2, 3))
    both = StreamSteering(stream="s", marks=(1, 2, 3), ipv4=four, ipv6=six, learning=False, observing=True)
    sets = sets_of([both])
    assert (sets["served_4"], sets["served_6"]) == ({2, 3}, {1, 2, 3})
    assert (sets["avoid_4"], sets["avoid_6"]) == ({1}, {3})
    assert (sets["fallen_4"], sets["fallen_6"]) == ({1}, set())
    assert (sets["next_4"], sets["next_6"]) == ({(2, 3), (3, 2)}, {(1, 2), (2, 1)})
    assert sets["observe"] == {1, 2, 3}
    assert owners_of([both]) == {1: "s", 2: "s", 3: "s"}


def test_without_a_healthy_target_no_flow_falls_back() -> None:
    assert sets_of([steering("s", (1, 2), served=(2,), healthy=())])["fallen_4"] == set()


@pytest.mark.parametrize(
    "streams",
    [
        (),
        (steering("a", learning=False),),
        (steering("a"),),
        (steering("a", learning=False), steering("b", (1, 2), learning=False, observing=True)),
        (steering("a", learning=False, avoid=(5001,)),),
        (steering("a", learning=False, served=(5001,)),),
        (steering("a", learning=False, served=(), healthy=()),),
        (steering("a", marks=(), observing=True),),
    ],
)
def test_the_filled_sets_are_those_with_elements(streams: tuple[StreamSteering, ...]) -> None:
    sets = sets_of(streams)
    assert filled_of(streams) == {name for name in EXCEPTIONAL_SETS if sets[name]}


def listed(message: bytes) -> list[bytes]:
    """Return the elements of a message about a set, behind its two headers."""
    fields = dict(attributes(memoryview(message)[20:]))
    return [bytes(element) for _, element in attributes(fields.get(3, memoryview(b"")))]


def test_many_elements_are_written_in_several_messages_that_the_kernel_can_read() -> None:
    chain = "steer_4_" + "x" * 200
    jumps = [(mark, chain) for mark in range(3000)]
    messages = [request.message for part in elements.changes("steer_4", [], jumps) for request in part]
    assert len(messages) > 1
    assert max(map(len, messages)) < 2**16, "the length of an attribute has 16 bits"
    found = list(itertools.chain.from_iterable(map(listed, messages)))
    assert len(found) == 3000
    assert all(chain.encode() + b"\0" in element for element in found)


def test_what_stays_is_not_written_and_a_changed_value_is_removed_first() -> None:
    parts = list(elements.changes("next_4", {(1, 2), (2, 3), (3, 1)}, {(1, 2), (2, 1)}))
    (removed,), (added,) = parts
    assert "delete" in removed.what
    assert sorted(element[8 : 8 + 4] for element in listed(removed.message)) == sorted(
        struct.pack("=I", mark) for mark in (2, 3)
    )
    assert len(listed(added.message)) == 1
    assert list(elements.changes("marks", {1, 2}, {2, 1})) == []


def test_a_renewal_empties_the_map_and_writes_each_range_with_its_end() -> None:
    empty, full = elements.renewal("healthy_4_s", [(0, 512, 5001), (512, 1024, 5002)])
    assert listed(empty.message) == []
    keys = [int.from_bytes(element[8:12], "big") for element in listed(full.message)]
    assert keys == [0, 512, 512, 1024]
