"""Codec of the elements whose keys are marks or slots, as nfnetlink messages. Pure, no kernel.

libnftables reads every element of the table before it adds one: with 100 streams of 100 targets that takes longer than
all the rest (`python -m tests.bench --only affinity`). Rules, sets and chains are rare, and left to it.
"""

import struct
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from lbguard.affinity.names import TABLE
from lbguard.distributor.nftables.elements import list_request, mark_changes
from lbguard.distributor.nftables.nfnetlink import DELETE_ELEMENTS, NEW_ELEMENTS, Request, netfilter_message
from lbguard.kernel.codec.framing import ATTRIBUTE, attribute, attributes

Element = int | tuple[int, int] | tuple[int, str]
"""A mark of a set; a mark with another one; a mark with the chain that it jumps to."""

# include/uapi/linux/netfilter/nf_tables.h
_ELEMENT_LIST: Final = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
_ELEMENT: Final = 1  # NFTA_LIST_ELEM
_KEY, _DATA, _FLAGS = 1, 2, 3
_VALUE, _VERDICT = 1, 2
_CODE, _CHAIN = 1, 2
_JUMP: Final = struct.pack("!i", -3)
_INTERVAL_END: Final = struct.pack("!I", 1)
_NESTED: Final = 0x8000  # NLA_F_NESTED
_CREATE: Final = 0x400  # NLM_F_CREATE

_LIST_BYTES_MAX: Final = 60_000
"""The length of the attribute that holds a list of elements has 16 bits."""
_RANGES_MAX: Final = 1024
_LENGTH: Final = struct.Struct("=H")
_KEY_AT: Final = 3 * ATTRIBUTE.size
_CHAIN_AT: Final = _KEY_AT + 4 + 2 * ATTRIBUTE.size + len(attribute(_CODE, _JUMP)) + ATTRIBUTE.size
"""Offset of the chain's name in an element of a map to verdicts: after the key and the verdict's code."""


def changes(name: str, held: Collection[Element], wanted: Collection[Element]) -> Iterator[list[Request]]:
    """Yield the requests that turn a set or map into another; the parts may be separate transactions."""
    gone, new = set(held).difference(wanted), set(wanted).difference(held)
    marks_gone, marks_new = ([each for each in some if isinstance(each, int)] for some in (gone, new))
    yield from mark_changes(TABLE, name, marks_gone, marks_new)
    for elements in _lists(_pair(each) for each in gone if not isinstance(each, int)):
        yield [_request(DELETE_ELEMENTS, name, elements)]
    for elements in _lists(_pair(each, with_data=True) for each in new if not isinstance(each, int)):
        yield [_request(NEW_ELEMENTS, name, elements)]


def renewal(name: str, ranges: Sequence[tuple[int, int, int]]) -> list[Request]:
    """Return the requests, for one transaction, that give a map of intervals these contents alone.

    A range is its first slot, the slot after its last one, and the mark.
    """
    requests = [
        Request(netfilter_message(DELETE_ELEMENTS, list_request(TABLE, name)), f"flush map inet {TABLE} {name}")
    ]
    for start in range(0, len(ranges), _RANGES_MAX):
        firsts, ends, marks = zip(*ranges[start : start + _RANGES_MAX], strict=True)
        words = _RANGE * len(marks)
        for at, values in zip(
            _RANGE_VALUES_AT, (_big_endian(firsts), array(_WORD, marks), _big_endian(ends)), strict=True
        ):
            words[at :: len(_RANGE)] = values
        requests.append(_request(NEW_ELEMENTS, name, words.tobytes()))
    return requests


def read_jumps(found: Iterable[memoryview]) -> Iterator[tuple[int, str]]:
    """Yield mark and chain of a dumped map to verdicts that are jumps."""
    for body in found:
        for kind, payload in attributes(body):
            if kind != _ELEMENT_LIST:
                continue
            # There is an element for each target of the machine: nested attributes would be read too slowly.
            content, at = bytes(payload), 0
            while at + _CHAIN_AT <= len(content):
                (length,) = _LENGTH.unpack_from(content, at)
                (chain_length,) = _LENGTH.unpack_from(content, at + _CHAIN_AT - ATTRIBUTE.size)
                chain = content[at + _CHAIN_AT : at + _CHAIN_AT - ATTRIBUTE.size + chain_length].rstrip(b"\0")
                mark = int.from_bytes(content[at + _KEY_AT : at + _KEY_AT + 4], sys.byteorder)
                yield mark, chain.decode(errors="replace")
                at += max(ATTRIBUTE.size, length + 3 & ~3)


def _big_endian(numbers: Iterable[int]) -> "array[int]":
    words = array(_WORD, numbers)
    if sys.byteorder == "little":
        words.byteswap()
    return words


def _pair(pair: tuple[int, int] | tuple[int, str], *, with_data: bool = False) -> bytes:
    mark, data = pair
    key = mark.to_bytes(4, sys.byteorder)
    if not with_data:
        return _element(key)
    if isinstance(data, int):
        return _element(key, attribute(_DATA | _NESTED, _number(data)))
    jump = attribute(_CODE, _JUMP) + attribute(_CHAIN, data.encode() + b"\0")
    return _element(key, attribute(_DATA | _NESTED, attribute(_VERDICT | _NESTED, jump)))


def _number(value: int) -> bytes:
    return attribute(_VALUE, value.to_bytes(4, sys.byteorder))


def _element(key: bytes, rest: bytes = b"") -> bytes:
    return attribute(_ELEMENT | _NESTED, attribute(_KEY | _NESTED, attribute(_VALUE, key)) + rest)


def _lists(encoded: Iterable[bytes]) -> Iterator[bytes]:
    """Yield elements in lists that fit into one attribute."""
    gathered: list[bytes] = []
    size = 0
    for each in encoded:
        if size + len(each) > _LIST_BYTES_MAX:
            yield b"".join(gathered)
            gathered, size = [], 0
        gathered.append(each)
        size += len(each)
    if gathered:
        yield b"".join(gathered)


def _request(kind: int, name: str, elements: bytes) -> Request:
    body = list_request(TABLE, name) + attribute(_ELEMENT_LIST | _NESTED, elements)
    verb, flags = ("add", _CREATE) if kind == NEW_ELEMENTS else ("delete", 0)
    return Request(netfilter_message(kind, body, flags=flags), f"{verb} element inet {TABLE} {name}")


_WORD: Final = "I"
# A range is written as its first slot, with the mark, and the slot at which it ends; zeros stand for the three.
_RANGE: Final = array(_WORD)
_RANGE.frombytes(
    _element(bytes(4), attribute(_DATA | _NESTED, _number(0))) + _element(bytes(4), attribute(_FLAGS, _INTERVAL_END))
)
_RANGE_VALUES_AT: Final = (3, 6, 10)
