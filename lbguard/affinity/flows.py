"""Remembered flows in the kernel: how many there are, and removal of those of given targets.

A map may hold millions of elements, so they are read at fixed offsets: the key comes first, then the mark.
"""

import errno
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from lbguard.affinity.names import TABLE, AffinityOptions, flow_map
from lbguard.distributor.nftables.elements import list_request
from lbguard.distributor.nftables.nfnetlink import (
    DELETE_ELEMENTS,
    GET_ELEMENTS,
    GET_SET,
    Nfnetlink,
    NftError,
    Request,
    netfilter_message,
    text_attribute,
)
from lbguard.kernel.codec.framing import ATTRIBUTE, attribute, attributes

# include/uapi/linux/netfilter/nf_tables.h
_TABLE, _SET_NAME, _SET_COUNT = 1, 2, 20
_ELEMENT_LIST: Final = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
_ELEMENT, _KEY, _VALUE = 1, 1, 1
_NESTED: Final = 0x8000  # NLA_F_NESTED
_WORD: Final = "I"
_KEY_AT: Final = 3
"""Words before the key: headers of the element, of its key and of the key's value. Two more precede the mark."""
_KEY_WORDS: Final = {4: 4, 6: 10}
_REMOVED_TOGETHER: Final = 500
_TRIES: Final = 10


def count_flows(kernel: Nfnetlink, options: AffinityOptions) -> dict[tuple[str, int], int]:
    """Return how many flows are remembered, by protocol and family.

    Kernels from 6.17 on report the number; on older kernels every flow is read.
    """
    counts = {}
    for body in kernel.dump(GET_SET, text_attribute(_TABLE, TABLE)) or ():
        fields = dict(attributes(body))
        if _SET_COUNT in fields:
            counts[bytes(fields[_SET_NAME]).rstrip(b"\0").decode()] = int.from_bytes(fields[_SET_COUNT], "big")
    flows = {}
    for protocol in options.protocols:
        for family in (4, 6):
            reported = counts.get(flow_map(protocol, family))
            if reported is None:
                reported = sum(len(_starts(words)) for words in _lists(kernel, protocol, family))
            flows[protocol, family] = reported
    return flows


def forget_flows(kernel: Nfnetlink, options: AffinityOptions, marks: Collection[int]) -> int:
    """Remove the flows of these targets, and return how many.

    Raises:
        NftError: the kernel refuses, or flows kept expiring while they were removed.
    """
    removed = 0
    for protocol in options.protocols:
        for family in (4, 6):
            removed += _forget(kernel, protocol, family, frozenset(marks))
    return removed


def _forget(kernel: Nfnetlink, protocol: str, family: int, marks: frozenset[int]) -> int:
    key_end = _KEY_AT + _KEY_WORDS[family]
    mark_at = key_end + 2
    for tries_left in reversed(range(_TRIES)):
        keys = [
            words[start + _KEY_AT : start + key_end].tobytes()
            for words in _lists(kernel, protocol, family)
            for start in _starts(words)
            if words[start + mark_at] in marks
        ]
        try:
            for start in range(0, len(keys), _REMOVED_TOGETHER):
                kernel.transact([_removal(flow_map(protocol, family), keys[start : start + _REMOVED_TOGETHER])])
        except NftError as error:
            # One of them expired since it was read.
            if error.code != errno.ENOENT or not tries_left:
                raise
        else:
            return len(keys)
    raise AssertionError("the last try returns or raises")


def _lists(kernel: Nfnetlink, protocol: str, family: int) -> "Iterator[array[int]]":
    """Yield the elements of a flow map, many at a time, as words of four bytes."""
    for body in kernel.dump(GET_ELEMENTS, list_request(TABLE, flow_map(protocol, family))) or ():
        for kind, payload in attributes(body):
            if kind == _ELEMENT_LIST:
                words = array(_WORD)
                words.frombytes(payload[: len(payload) & ~3])
                yield words


def _starts(words: "array[int]") -> Sequence[int]:
    """Return where each element begins, in words. Nearly always all have the same length."""
    if not words:
        return ()
    stride = _words_of(words[0])
    if len(words) % stride == 0 and words[::stride].count(words[0]) == len(words) // stride:
        return range(0, len(words), stride)
    starts, at = [], 0
    while at < len(words):
        starts.append(at)
        at += _words_of(words[at])
    return starts


def _words_of(header: int) -> int:
    """Return the length of an element, from the header of its attribute."""
    length, _ = ATTRIBUTE.unpack(header.to_bytes(ATTRIBUTE.size, sys.byteorder))
    return max(1, (int(length) + 3) // 4)


def _removal(name: str, keys: Iterable[bytes]) -> Request:
    elements = b"".join(
        attribute(_ELEMENT | _NESTED, attribute(_KEY | _NESTED, attribute(_VALUE, key))) for key in keys
    )
    body = list_request(TABLE, name) + attribute(_ELEMENT_LIST | _NESTED, elements)
    return Request(netfilter_message(DELETE_ELEMENTS, body), f"delete element inet {TABLE} {name}")
