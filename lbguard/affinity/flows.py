"""Remembered flows in the kernel: how many there are, and removal of those of given targets.

A map may hold millions of elements, so they are read at fixed offsets: the key comes first, then the mark.
"""

import errno
import struct
import sys
from collections.abc import Collection, Iterable, Iterator
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
_HEADERS: Final = 3 * ATTRIBUTE.size
"""Headers of the element, of its key and of the key's value."""
_KEY_BYTES: Final = {4: 16, 6: 40}
_LENGTH: Final = struct.Struct("=H")
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
            flows[protocol, family] = sum(1 for _ in _read(kernel, protocol, family)) if reported is None else reported
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
    for tries_left in reversed(range(_TRIES)):
        keys = [key for key, mark in _read(kernel, protocol, family) if mark in marks]
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


def _read(kernel: Nfnetlink, protocol: str, family: int) -> Iterator[tuple[bytes, int]]:
    """Yield key and mark of each remembered flow."""
    size = _KEY_BYTES[family]
    data_at = _HEADERS + size
    mark_at = data_at + 2 * ATTRIBUTE.size
    for elements in _lists(kernel.dump(GET_ELEMENTS, list_request(TABLE, flow_map(protocol, family))) or ()):
        content = bytes(elements)
        at = 0
        while at + mark_at + 4 <= len(content):
            (length,) = _LENGTH.unpack_from(content, at)
            mark = int.from_bytes(content[at + mark_at : at + mark_at + 4], sys.byteorder)
            yield content[at + _HEADERS : at + data_at], mark
            at += max(ATTRIBUTE.size, length + 3 & ~3)


def _lists(found: Iterable[memoryview]) -> Iterator[memoryview]:
    for body in found:
        yield from (payload for kind, payload in attributes(body) if kind == _ELEMENT_LIST)


def _removal(name: str, keys: Iterable[bytes]) -> Request:
    elements = b"".join(
        attribute(_ELEMENT | _NESTED, attribute(_KEY | _NESTED, attribute(_VALUE, key))) for key in keys
    )
    body = list_request(TABLE, name) + attribute(_ELEMENT_LIST | _NESTED, elements)
    return Request(netfilter_message(DELETE_ELEMENTS, body), f"delete element inet {TABLE} {name}")
