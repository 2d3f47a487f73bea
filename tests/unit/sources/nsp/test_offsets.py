from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.sources.nsp.offsets import OffsetAllocator, Range, is_possible, offset_of_routes, offset_of_table


def offsets(book: OffsetAllocator, **streams: int) -> dict[str, int]:
    return {name: taken.offset for name, taken in book.assign(streams).ranges.items()}


def test_streams_of_a_first_list_stand_behind_each_other_in_its_order() -> None:
    assert offsets(OffsetAllocator(), b=200, a=100, c=1) == {"b": 5000, "a": 5200, "c": 5300}


def test_a_stream_keeps_its_offset_and_a_new_one_takes_the_first_gap_that_is_wide_enough() -> None:
    book = OffsetAllocator(5000)
    offsets(book, a=100, b=50, c=100)
    assert offsets(book, a=100, c=100) == {"a": 5000, "c": 5150}
    assert offsets(book, a=100, c=100, wide=51) == {"a": 5000, "c": 5150, "wide": 5250}
    assert offsets(book, narrow=50, a=100, c=100, wide=51)["narrow"] == 5100


def test_new_streams_get_theirs_before_those_that_went_are_freed() -> None:
    book = OffsetAllocator(5000)
    offsets(book, old=100)
    assert offsets(book, new=100) == {"new": 5100}
    assert offsets(book, new=100, newer=100) == {"new": 5100, "newer": 5000}


def test_the_size_of_a_range_stays_what_it_was_made_with() -> None:
    book = OffsetAllocator(5000)
    offsets(book, a=100)
    assert book.assign({"a": 300, "b": 10}).ranges == {"a": Range(5000, 100), "b": Range(5100, 10)}


def test_what_was_read_back_counts_for_a_stream_without_a_range_only() -> None:
    book = OffsetAllocator(5000)
    first = book.assign({"a": 100, "b": 100}, {"b": 5000})
    assert first.ranges == {"b": Range(5000, 100), "a": Range(5100, 100)}
    assert book.assign({"a": 100, "b": 100}, {"b": 7000}).ranges == first.ranges
    book.forget("b")
    assert book.assign({"a": 100, "b": 100}, {"b": 7000}).ranges["b"] == Range(7000, 100)


def test_a_stream_for_which_no_marks_are_left_gets_none() -> None:
    book = OffsetAllocator(2**32 - 1 - 100)
    assigned = book.assign({"a": 100, "b": 1})
    assert (set(assigned.ranges), assigned.without) == ({"a"}, ("b",))


def meridio(start: int, sizes: list[int]) -> list[int]:
    """Place ranges one by one by trying every offset in turn."""
    placed: list[tuple[int, int]] = []
    for size in sizes:
        offset = start
        while any(offset < at + wide and at < offset + size for at, wide in placed):
            offset += 1
        placed.append((offset, size))
    return [at for at, _ in placed]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sets(st.integers(0, 5)), st.integers(1, 40))
def test_the_lowest_place_is_found(sizes: list[int], gone: set[int], size: int) -> None:
    book = OffsetAllocator(5000)
    names = {f"s{number}": wide for number, wide in enumerate(sizes)}
    assert list(offsets(book, **names).values()) == meridio(5000, sizes)
    left = {name: wide for name, wide in names.items() if int(name[1:]) not in gone}
    ranges = book.assign(left).ranges.values()
    offset = 5000
    while any(Range(offset, size).meets(taken) for taken in ranges):
        offset += 1
    assert offsets(book, **left, new=size)["new"] == offset


@pytest.mark.parametrize(
    ("offset", "size", "possible"),
    [(5000, 100, True), (0, 252, True), (0, 253, False), (254, 1, False), (255, 1, True), (-1, 5, False),
     (2**32 - 2, 1, True), (2**32 - 1, 1, False)],
)  # fmt: skip
def test_marks_that_can_be_in_force(offset: int, size: int, possible: bool) -> None:
    assert is_possible(offset, size) is possible


@pytest.mark.parametrize(
    ("marks", "offset"),
    [([], None), ([-1, -1], None), ([-1, 5102, -1], 5100), ([5001, 5002, -1, 5004], 5000), ([5001, 5003], None)],
)
def test_an_offset_is_read_from_a_table_that_agrees_with_itself(marks: list[int], offset: int | None) -> None:
    assert offset_of_table(marks) == offset


def ip(text: str) -> bytes:
    return ip_address(text).packed


def test_an_offset_is_read_from_the_routes_of_the_targets() -> None:
    targets = {1: (ip("10.0.0.1"), ip("fd00::1")), 7: (ip("10.0.0.7"),), 9: (ip("10.0.0.9"),)}
    tables = {ip("10.0.0.1"): {5001}, ip("fd00::1"): {5001}, ip("10.0.0.7"): {5007}, ip("10.9.9.9"): {1}}
    assert offset_of_routes(targets, tables) == 5000
    assert offset_of_routes(targets, {}) is None


def test_a_target_in_two_streams_shows_two_offsets_and_the_others_decide() -> None:
    tables = {ip("10.0.0.1"): {5001, 5101}, ip("10.0.0.2"): {5002, 5105}}
    same = {1: (ip("10.0.0.1"),)}
    assert offset_of_routes(same, tables) is None
    assert offset_of_routes(same, tables, taken={5100}) == 5000
    assert offset_of_routes({1: (ip("10.0.0.1"),), 2: (ip("10.0.0.2"),)}, tables) == 5000
