"""Codec of the elements of slot maps and mark sets as nfnetlink messages; pure, no kernel.

Both kinds have 32-bit keys in the machine's byte order (slot numbers and fwmarks), so all elements of a kind have one
layout: a few constant words (the attributes' headers) and the values. Thousands of them are written and read by slices
of an array, at the speed of C; a loop would take longer than the kernel's own work.

In an array of slots, an entry is the slot's fwmark or NO_MARK. Its type code is SLOT_CODE: a mark can be any 32-bit
number, and NO_MARK must differ from all of them.
"""

import itertools
import operator
import struct
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from lbguard.distributor.nftables.nfnetlink import (
    DELETE_ELEMENTS,
    NEW_ELEMENTS,
    Request,
    netfilter_message,
    text_attribute,
)
from lbguard.kernel.codec.framing import attribute, attributes

NO_MARK: Final = -1
SLOT_CODE: Final = "q"

# include/uapi/linux/netfilter/nf_tables.h
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # enum nft_set_elem_list_attributes
_LIST_ELEM = 1  # enum nft_list_attributes
_KEY, _DATA, _EXPRESSION = 1, 2, 7  # enum nft_set_elem_attributes
_VALUE = 1  # enum nft_data_attributes
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2  # enum nft_expr_attributes
_BYTES, _PACKETS = 1, 2  # enum nft_counter_attributes
_NESTED = 0x8000  # NLA_F_NESTED

_NOTHING: Final = memoryview(b"")
_CREATE_EXCLUSIVE: Final = 0x400 | 0x200  # NLM_F_CREATE, NLM_F_EXCL
_WORD: Final = "I"
ELEMENTS_MAX: Final = 2048
"""Elements in one message. The length of the attribute that holds them has 16 bits, and the largest takes 28 bytes."""


def _word(length: int, kind: int) -> int:
    """Return the header of an attribute as one word."""
    return int(struct.unpack("=I", struct.pack("=HH", length, kind))[0])


def _layout(*, data: bool, nested: int) -> "array[int]":
    """Return the words of one element, with zeros for key and data."""
    words = [_word(28 if data else 16, _LIST_ELEM | nested), _word(12, _KEY | nested), _word(8, _VALUE), 0]
    return array(_WORD, words + ([_word(12, _DATA | nested), _word(8, _VALUE), 0] if data else []))


# The kernel leaves out NLA_F_NESTED when it writes elements.
_PAIR, _PAIR_READ = _layout(data=True, nested=_NESTED), _layout(data=True, nested=0)
_SINGLE, _SINGLE_READ = _layout(data=False, nested=_NESTED), _layout(data=False, nested=0)
_KEY_AT, _DATA_AT = 3, 6
_COUNT_WORDS: Final = (_word(28, _EXPRESSION_DATA), _word(12, _BYTES), 0, 0, _word(12, _PACKETS), 0, 0)
_COUNTER_NAME: Final = struct.unpack("=II", b"counter\0")
_COUNTER_WORDS: Final = (_word(44, _EXPRESSION), _word(12, _EXPRESSION_NAME), *_COUNTER_NAME, *_COUNT_WORDS)
_COUNTED_READ: Final = array(_WORD, (_word(60, _LIST_ELEM), _word(12, _KEY), _word(8, _VALUE), 0, *_COUNTER_WORDS))
_BYTES_AT, _PACKETS_AT = 10, 13


def list_request(table: str, name: str) -> bytes:
    """Return the body of a request that is about the elements of a set or map."""
    return text_attribute(_LIST_TABLE, table) + text_attribute(_LIST_SET, name)


def differing(held: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Return the slots that differ between two arrays of equal length."""
    assert len(held) == len(wanted), f"{len(held)} and {len(wanted)} slots"
    return list(itertools.compress(itertools.count(), map(operator.ne, held, wanted)))


def slot_changes(
    table: str, name: str, held: Sequence[int], wanted: Sequence[int], changed: Sequence[int]
) -> Iterator[list[Request]]:
    """Yield the requests that turn a map from `held` into `wanted` in the `changed` slots.

    Each part must be in one transaction: a slot whose mark changes is deleted and added, and no packet must find it
    empty. Different parts may be different transactions, since slots are independent.
    """
    for start in range(0, len(changed), ELEMENTS_MAX):
        part = changed[start : start + ELEMENTS_MAX]
        gone = [slot for slot in part if held[slot] != NO_MARK]
        new = [slot for slot in part if wanted[slot] != NO_MARK]
        requests = []
        if gone:
            requests.append(_delete(table, name, gone))
        if new:
            words = _spread(_PAIR, new)
            words[_DATA_AT :: len(_PAIR)] = array(_WORD, [wanted[slot] for slot in new])
            requests.append(_add(table, name, words))
        yield requests


def mark_changes(table: str, name: str, held: Collection[int], wanted: Collection[int]) -> Iterator[list[Request]]:
    """Yield the requests that turn a set of fwmarks into another; the parts may be separate transactions."""
    gone, new = sorted(set(held) - set(wanted)), sorted(set(wanted) - set(held))
    for start in range(0, len(gone), ELEMENTS_MAX):
        yield [_delete(table, name, gone[start : start + ELEMENTS_MAX])]
    for start in range(0, len(new), ELEMENTS_MAX):
        yield [_add(table, name, _spread(_SINGLE, new[start : start + ELEMENTS_MAX]))]


def transactions(parts: Iterable[Sequence[Request]], bytes_max: int) -> list[list[Request]]:
    """Combine parts, in order, into as few transactions of at most `bytes_max` as possible; each part stays whole.

    A larger part gets its own transaction, which the kernel will refuse by name.
    """
    packed: list[list[Request]] = []
    room = 0
    for part in parts:
        size = sum(len(request.message) + 3 & ~3 for request in part)
        if size > room or not packed:
            packed.append([])
            room = bytes_max
        packed[-1] += part
        room -= size
    return packed


def read_pairs(found: Iterable[memoryview]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Yield keys and data of a dumped map, a list at a time; -1 stands for a value that is not 32 bits."""
    for elements in _element_lists(found):
        words = _words(elements, _PAIR_READ, (_KEY_AT, _DATA_AT))
        if words is not None:
            yield words[_KEY_AT :: len(_PAIR_READ)], words[_DATA_AT :: len(_PAIR_READ)]
        else:
            fields = [dict(attributes(element)) for _, element in attributes(elements)]
            yield [_number(each.get(_KEY)) for each in fields], [_number(each.get(_DATA)) for each in fields]


def read_keys(found: Iterable[memoryview]) -> frozenset[int]:
    """Return the keys of a dumped set; -1 stands for a key that is not 32 bits."""
    keys: set[int] = set()
    for elements in _element_lists(found):
        words = _words(elements, _SINGLE_READ, (_KEY_AT,))
        if words is not None:
            keys.update(words[_KEY_AT :: len(_SINGLE_READ)])
        else:
            keys.update(_number(dict(attributes(element)).get(_KEY)) for _, element in attributes(elements))
    return frozenset(keys)


def read_counted(found: Iterable[memoryview]) -> dict[int, tuple[int, int]]:
    """Return packets and bytes by key of a dumped set with counters; zeros for an element without one."""
    counts: dict[int, tuple[int, int]] = {}
    for elements in _element_lists(found):
        values_at = (_KEY_AT, _BYTES_AT, _BYTES_AT + 1, _PACKETS_AT, _PACKETS_AT + 1)
        words = _words(elements, _COUNTED_READ, values_at)
        if words is not None:
            keys = words[_KEY_AT :: len(_COUNTED_READ)]
            counts.update(zip(keys, zip(_wide(words, _PACKETS_AT), _wide(words, _BYTES_AT), strict=True), strict=True))
        else:
            for _, element in attributes(elements):
                fields = dict(attributes(element))
                expression = dict(attributes(fields.get(_EXPRESSION, _NOTHING)))
                data = dict(attributes(expression.get(_EXPRESSION_DATA, _NOTHING)))
                packets, octets = (int.from_bytes(data.get(kind, b""), "big") for kind in (_PACKETS, _BYTES))
                counts[_number(fields.get(_KEY))] = (packets, octets)
    return counts


def _wide(words: "array[int]", at: int) -> Iterator[int]:
    """Return the 64-bit numbers (network byte order) at an offset of each element with a counter."""
    pair = array(_WORD, words[at :: len(_COUNTED_READ)]), array(_WORD, words[at + 1 :: len(_COUNTED_READ)])
    if sys.byteorder == "little":
        for half in pair:
            half.byteswap()
    return (high << 32 | low for high, low in zip(*pair, strict=True))


def _element_lists(found: Iterable[memoryview]) -> Iterator[memoryview]:
    for body in found:
        yield from (payload for kind, payload in attributes(body) if kind == _LIST_ELEMENTS)


def _words(elements: memoryview, layout: "array[int]", values_at: tuple[int, ...]) -> "array[int] | None":
    """Return a list of elements as words when each has exactly this layout, else None (a comment, a timeout, ...)."""
    stride = len(layout)
    count, rest = divmod(len(elements), 4 * stride)
    if rest:
        return None
    words = array(_WORD)
    words.frombytes(elements)
    constant = (at for at in range(stride) if at not in values_at)
    return words if all(words[at::stride].count(layout[at]) == count for at in constant) else None


def _number(data: memoryview | None) -> int:
    """Return the value of a nested nft_data."""
    for kind, payload in attributes(_NOTHING if data is None else data):
        if kind == _VALUE and len(payload) == 4:
            return int(struct.unpack("=I", payload)[0])
    return -1


def _spread(layout: "array[int]", keys: Sequence[int]) -> "array[int]":
    words = layout * len(keys)
    words[_KEY_AT :: len(layout)] = array(_WORD, keys)
    return words


def _delete(table: str, name: str, keys: Sequence[int]) -> Request:
    body = list_request(table, name) + attribute(_LIST_ELEMENTS | _NESTED, _spread(_SINGLE, keys).tobytes())
    return Request(netfilter_message(DELETE_ELEMENTS, body), f"delete element inet {table} {name}")


def _add(table: str, name: str, words: "array[int]") -> Request:
    # Exclusive: another program's element causes EEXIST and is not taken over.
    body = list_request(table, name) + attribute(_LIST_ELEMENTS | _NESTED, words.tobytes())
    return Request(netfilter_message(NEW_ELEMENTS, body, flags=_CREATE_EXCLUSIVE), f"add element inet {table} {name}")
