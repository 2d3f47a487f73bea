"""Elements as bytes. What the kernel writes was dumped from Linux 6.18; what it reads is taken apart independently."""

import struct
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.distributor.nftables import elements as nft_elements
from lbguard.distributor.nftables.elements import ELEMENTS_MAX, NO_MARK
from lbguard.distributor.nftables.nfnetlink import Request

SLOTS = 31
MARKS = st.one_of(st.just(NO_MARK), st.integers(5001, 5004), st.sampled_from([0, 2**32 - 1]))
TABLES = st.lists(MARKS, min_size=SLOTS, max_size=SLOTS)
NEW, DELETE = 10 << 8 | 12, 10 << 8 | 14
CREATE, EXCLUSIVE = 0x400, 0x200


def walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = struct.unpack("=HH", data[:4])
        assert 4 <= length <= len(data)
        yield kind & 0x7FFF, data[4:length]
        data = data[length + 3 & ~3 :]


def number(data: bytes) -> int:
    ((kind, value),) = walk(data)
    assert kind == 1
    return int(struct.unpack("=I", value)[0])


def apply(requests: list[Request], held: dict[int, int], name: bytes) -> None:
    """Do what the kernel does with one transaction, with its refusals."""
    for request in requests:
        length, kind, flags = struct.unpack_from("=IHH", request.message)
        assert length == len(request.message)
        assert request.message[16:20] == bytes([1, 0, 0, 0])
        fields = dict(walk(request.message[20:]))
        assert fields[1] == b"lbguard\0"
        assert fields[2] == name + b"\0"
        elements = [dict(walk(element)) for _, element in walk(fields[3])]
        assert elements
        for element in elements:
            key = number(element[1])
            if kind == DELETE:
                del held[key]
            else:
                assert (kind, flags & (CREATE | EXCLUSIVE)) == (NEW, CREATE | EXCLUSIVE)
                assert key not in held
                held[key] = number(element[2]) if 2 in element else NO_MARK


def as_dict(slots: list[int]) -> dict[int, int]:
    return {slot: mark for slot, mark in enumerate(slots) if mark != NO_MARK}


@given(TABLES, TABLES)
def test_slot_changes_lead_from_one_table_to_the_other(held: list[int], wanted: list[int]) -> None:
    changed = nft_elements.differing(held, wanted)
    assert changed == [slot for slot in range(SLOTS) if held[slot] != wanted[slot]]
    kernel = as_dict(held)
    for part in nft_elements.slot_changes("lbguard", "slots_s", held, wanted, changed):
        apply(part, kernel, b"slots_s")
    assert kernel == as_dict(wanted)


@pytest.mark.parametrize("total", [ELEMENTS_MAX, ELEMENTS_MAX + 1, 99991])
def test_large_changes_come_in_parts_each_of_which_replaces_its_slots_whole(total: int) -> None:
    held, wanted = array("q", [5001]) * total, array("q", [5002]) * total
    kernel = as_dict(list(held))
    seen: set[int] = set()
    for part in nft_elements.slot_changes("lbguard", "slots_s", held, wanted, range(total)):
        assert all(len(payload) < 2**16 for r in part for _, payload in walk(r.message[20:]))
        apply(part, kernel, b"slots_s")
        moved = {slot for slot, mark in kernel.items() if mark == 5002}
        assert len(kernel) == total
        assert len(moved - seen) <= ELEMENTS_MAX
        seen = moved
    assert len(seen) == total


@given(st.frozensets(st.integers(0, 40)), st.frozensets(st.integers(0, 40)))
def test_mark_changes_lead_from_one_set_to_the_other(held: frozenset[int], wanted: frozenset[int]) -> None:
    kernel = dict.fromkeys(held, NO_MARK)
    for part in nft_elements.mark_changes("lbguard", "active_s", held, wanted):
        apply(part, kernel, b"active_s")
    assert kernel.keys() == wanted


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3)), st.integers(40, 200))
def test_transactions_hold_whole_parts_in_order_and_fit(sizes: list[list[int]], bytes_max: int) -> None:
    parts = [[Request(bytes(4 * size), f"{i}.{j}") for j, size in enumerate(part)] for i, part in enumerate(sizes)]
    packed = nft_elements.transactions(parts, bytes_max)
    assert [request for each in packed for request in each] == [request for part in parts for request in part]
    for each in packed:
        whole = {request.what.split(".")[0] for request in each}
        assert len(each) == sum(len(sizes[int(number)]) for number in whole)
        assert len(whole) == 1 or sum(len(request.message) for request in each) <= bytes_max
    assert all(packed)


def dumped(elements: str) -> list[memoryview]:
    """Return a dump with these elements and one without any, as the kernel ends a dump."""
    body = bytes.fromhex("06000100 74000000 06000200 73000000")
    listed = bytes.fromhex(elements)
    return [
        memoryview(body + struct.pack("=HH", 4 + len(listed), 0x8003) + listed),
        memoryview(body + bytes.fromhex("04000380")),
    ]


PAIR = "1c000100 0c000100 08000100 {key} 0c000200 08000100 {data} "
COMMENTED_PAIR = "24000100 0c000100 08000100 {key} 0c000200 08000100 {data} 08000600 00027800 "
SEVEN, FIVE_THOUSAND_ONE = "07000000", "89130000"


@pytest.mark.parametrize("first", [PAIR, COMMENTED_PAIR], ids=["plain", "with a comment"])
def test_pairs_are_read_in_any_layout(first: str) -> None:
    text = first.format(key=SEVEN, data=FIVE_THOUSAND_ONE) + PAIR.format(key="08000000", data="ffffffff")
    found: dict[int, int] = {}
    for keys, data in nft_elements.read_pairs(dumped(text)):
        found.update(zip(keys, data, strict=True))
    assert found == {7: 5001, 8: 2**32 - 1}


def test_an_element_without_key_or_data_reads_as_no_value() -> None:
    ((keys, data), _) = nft_elements.read_pairs(dumped("04000100"))
    assert (list(keys), list(data)) == ([-1], [-1])


def test_keys_are_read_in_any_layout() -> None:
    single = "10000100 0c000100 08000100 "
    assert nft_elements.read_keys(dumped(single + SEVEN + single + FIVE_THOUSAND_ONE)) == {7, 5001}
    mixed = single + SEVEN + "18000100 0c000100 08000100" + FIVE_THOUSAND_ONE + "08000600 00027800"
    assert nft_elements.read_keys(dumped(mixed)) == {7, 5001}


COUNTED = (
    "3c000100 0c000100 08000100 89130000 2c000700 0c000100 636f756e 74657200 1c000200"
    "0c000100 00000001 00000063 0c000200 00000000 00000003"
)
COMMENTED_COUNTED = (
    "44000100 0c000100 08000100 07000000 2c000700 0c000100 636f756e 74657200 1c000200"
    "0c000100 00000000 0000002a 0c000200 00000000 00000001 08000600 00027800"
)


def test_counting_elements_are_read_in_any_layout() -> None:
    expected = {5001: (3, 2**32 + 99)}
    assert nft_elements.read_counted(dumped(COUNTED)) == expected
    both = nft_elements.read_counted(dumped(COUNTED + COMMENTED_COUNTED))
    assert both == expected | {7: (1, 42)}
    assert nft_elements.read_counted(dumped("10000100 0c000100 08000100 07000000")) == {7: (0, 0)}
