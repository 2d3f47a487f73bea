"""Inventory of an nftables table: its objects by name and handle, without the elements of sets.

libnftables 1.0.6 reads every element of every set even for `list table -t`. These dumps carry none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from lbguard.distributor.nftables.nfnetlink import (
    GET_CHAIN,
    GET_OBJECT,
    GET_RULE,
    GET_SET,
    Nfnetlink,
    text_attribute,
)
from lbguard.distributor.nftables.queueing import hook_of
from lbguard.kernel.codec.framing import attributes

# include/uapi/linux/netfilter/nf_tables.h: the numbers of the attributes with table, name and handle.
_TABLE: Final = 1
_SET_NAME, _SET_FLAGS, _SET_DESCRIPTION, _SET_HANDLE = 2, 3, 9, 16
_ANONYMOUS: Final = 0x1
_MAP: Final = 0x8
_DESCRIBED_SIZE: Final = 1
_CHAIN_HANDLE, _CHAIN_NAME = 2, 3
_RULE_CHAIN, _RULE_HANDLE = 2, 3
_OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA, _OBJECT_HANDLE = 2, 3, 4, 6
_COUNTER: Final = 1
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2

_Fields = dict[int, memoryview]


class Kind(StrEnum):
    """The kinds of objects of a stream, by their keyword in a `delete` command."""

    MAP = "map"
    SET = "set"
    CHAIN = "chain"
    RULE = "rule"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesetObject:
    """One object. An object that is created again has a new handle. A rule has the name of its chain."""

    kind: Kind
    name: str
    handle: int
    size: int = 0
    """The declared size of a set or map; 0 when there is none."""
    priority: int | None = None
    """The priority of a chain with a hook."""


class Count(NamedTuple):
    """Value of a counter."""

    packets: int
    bytes: int


def read_inventory(kernel: Nfnetlink, table: str) -> list[RulesetObject] | None:
    """Return all objects of a table of family inet except anonymous sets; None when there is no such table.

    Raises:
        NftError: the kernel refuses.
    """
    sets = read_sets(kernel, table)
    if sets is None:
        return None
    things = sets
    for fields in _dump(kernel, GET_CHAIN, table):
        name, handle, hook = _text(fields, _CHAIN_NAME), _number(fields, _CHAIN_HANDLE), hook_of(fields)
        priority = None if hook is None else hook.priority
        things.append(RulesetObject(kind=Kind.CHAIN, name=name, handle=handle, priority=priority))
    for fields in _dump(kernel, GET_RULE, table):
        things.append(
            RulesetObject(kind=Kind.RULE, name=_text(fields, _RULE_CHAIN), handle=_number(fields, _RULE_HANDLE))
        )
    for fields in _dump(kernel, GET_OBJECT, table):
        if _number(fields, _OBJECT_TYPE) == _COUNTER:
            name = _text(fields, _OBJECT_NAME)
            things.append(RulesetObject(kind=Kind.COUNTER, name=name, handle=_number(fields, _OBJECT_HANDLE)))
    return things


def read_sets(kernel: Nfnetlink, table: str) -> list[RulesetObject] | None:
    """Return the named sets and maps of a table of family inet; None when there is no such table.

    Raises:
        NftError: the kernel refuses.
    """
    found = kernel.dump(GET_SET, text_attribute(_TABLE, table))
    if found is None:
        return None
    things = []
    for body in found:
        fields = dict(attributes(body))
        flags = _number(fields, _SET_FLAGS)
        if not flags & _ANONYMOUS:
            described = dict(attributes(fields.get(_SET_DESCRIPTION, memoryview(b""))))
            kind = Kind.MAP if flags & _MAP else Kind.SET
            name, handle = _text(fields, _SET_NAME), _number(fields, _SET_HANDLE)
            things.append(RulesetObject(kind=kind, name=name, handle=handle, size=_number(described, _DESCRIBED_SIZE)))
    return things


def read_counter(kernel: Nfnetlink, table: str, name: str) -> Count | None:
    """Return what a named counter of a table of family inet holds; None when there is none.

    Raises:
        NftError: the kernel refuses.
    """
    for fields in _dump(kernel, GET_OBJECT, table):
        if _text(fields, _OBJECT_NAME) == name and _number(fields, _OBJECT_TYPE) == _COUNTER:
            data = dict(attributes(fields.get(_OBJECT_DATA, memoryview(b""))))
            return Count(packets=_number(data, _COUNTER_PACKETS), bytes=_number(data, _COUNTER_BYTES))
    return None


def _dump(kernel: Nfnetlink, kind: int, table: str) -> Iterator[_Fields]:
    """Yield the attributes of all objects of a kind in a table. The kernel does not filter chains by table."""
    for body in kernel.dump(kind, text_attribute(_TABLE, table)) or ():
        fields = dict(attributes(body))
        if _text(fields, _TABLE) == table:
            yield fields


def _text(fields: _Fields, kind: int) -> str:
    return bytes(fields.get(kind, b"")).rstrip(b"\0").decode(errors="replace")


def _number(fields: _Fields, kind: int) -> int:
    """Return a number, which nf_tables has in network byte order."""
    return int.from_bytes(fields.get(kind, b""), "big")
